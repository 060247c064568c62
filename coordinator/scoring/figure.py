"""The figure of a release's scores, in the report's style, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from coordinator.report.image import canvas, save
from coordinator.report.svg import INK, KEEP, LOST, MUTED
from coordinator.scoring.scores import RETRIEVAL, Score


def draw_scores(folder: Path, scores: Sequence[Score], title: str) -> tuple[Path, Path]:
    """Each score with its interval, a row each, by metric; a tick marks chance."""
    metrics = list(dict.fromkeys(_heading(score) for score in scores))
    rows = len(scores) + 0.8 * len(metrics)
    margin = 0.3 + 0.075 * max(len(_row_name(score)) for score in scores)
    width, height = margin + 5.2, 1.05 + 0.26 * rows
    with canvas(width, height) as figure:
        axes = figure.add_subplot()
        figure.subplots_adjust(margin / width, 0.55 / height, 1 - 0.75 / width, 1 - 0.4 / height)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        at, ticks, names = 0.0, [], []
        for metric in metrics:
            axes.annotate(
                metric, (0, at), (-margin * 72 + 8, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontweight="bold",
            )  # fmt: skip
            at += 0.9
            for score in (s for s in scores if _heading(s) == metric):
                _score_row(axes, score, at)
                ticks.append(at)
                names.append(_row_name(score))
                at += 1.0
            at -= 0.1
        axes.set_ylim(at - 0.2, -0.7)
        low = min([0.0, *(s.low for s in scores if np.isfinite(s.low))])
        axes.set_xlim(min(low, 0.0) - 0.01, 1.01)
        axes.set_yticks(ticks, names)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_xlabel("value with its 95 % interval; the grey tick is chance")
        figure.text(8 / 72 / width, 1 - 0.16 / height, title, va="center", color=MUTED)
        return save(figure, folder)


def _heading(score: Score) -> str:
    """Retrieval has several figures of one group, the others one figure of several groups."""
    return f"{score.group} ({score.n:,})" if score.metric in RETRIEVAL else score.metric


def _row_name(score: Score) -> str:
    return score.metric if score.metric in RETRIEVAL else f"{score.group} ({score.n:,})"


def _score_row(axes: Axes, score: Score, at: float) -> None:
    if np.isfinite(score.chance):
        axes.plot([score.chance] * 2, [at - 0.3, at + 0.3], color=LOST, linewidth=2.2, solid_capstyle="butt")
    axes.plot([score.low, score.high], [at, at], color=KEEP, linewidth=1.6, solid_capstyle="butt")
    axes.plot(score.value, at, marker="o", markersize=5, color=KEEP)
    words = f"{score.value:.3f}" if np.isfinite(score.value) else "none"
    axes.annotate(
        words, (1, at), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
    )
