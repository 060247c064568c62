"""Figures of an experiment and of a release's scores, in the report's style, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from coordinator.report.svg import COLOURS, INK, KEEP, LINE, LOST, MUTED, styled
from coordinator.simulation.experiment import SETTINGS
from coordinator.simulation.methods import METHODS, ORACLE
from coordinator.simulation.results import FIGURES, Line
from coordinator.simulation.scores import RETRIEVAL, Score
from protocol.files import write_atomic

PNG, SVG = "figure.png", "figure.svg"
_DPI = 150
# SMILE's fits stand out, rivals have a colour an embedding and a mark a clustering, the oracle is grey.
_OURS: Final = ("--c0", "--c4", "--c0")
_THEIRS: Final = ("--c1", "--c5", "--c3", "--c6", "--c2")
_MARKS: Final = ("o", "s", "^", "D", "v", "P")
_SOLID: Final = (0.0, ())
_DASHES: Final = (_SOLID, (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.2, 1, 1.2)))
_SPREAD = 0.74  # of the distance between two values, over which methods stand side by side


@dataclass(frozen=True)
class _Look:
    colour: str
    mark: str
    dash: tuple[float, tuple[float, ...]]
    ours: bool
    hollow: bool = False


def draw_experiment(folder: Path, lines: Sequence[Line]) -> tuple[Path, Path]:
    """A panel for each metric and setting, a line for each method, bars of one standard error.

    The accuracy of U is the embedding's: it is drawn once for all clusterings of one embedding, and not for
    the oracle, whose U is the truth.
    """
    settings = sorted({line.setting for line in lines})
    looks = _looks([m for m in METHODS if any(line.method == m for line in lines)])
    width = 1.1 + 3.3 * max(len(settings), 2)
    height = 1.25 + 2.5 * len(FIGURES)
    with _figure(width, height) as figure:
        panels = figure.subplots(len(FIGURES), len(settings), sharey="row", squeeze=False)
        left, bottom = 0.72 / width, 1.3 / height
        figure.subplots_adjust(left, bottom, 1 - 0.12 / width, 1 - 0.12 / height, wspace=0.07, hspace=0.13)
        for column, setting in enumerate(settings):
            here = [line for line in lines if line.setting == setting]
            for place, (metric, words) in enumerate(FIGURES.items()):
                axes = panels[place, column]
                _panel(axes, here, metric, looks)
                if column == 0:
                    axes.set_ylabel(words)
                if place == len(FIGURES) - 1:
                    axes.set_xlabel(f"{setting}: {SETTINGS[setting].title}")
                else:
                    axes.tick_params(labelbottom=False)
        _legends(figure, looks, 0.72 / width, height)
        return _save(figure, folder, PNG, SVG)


def _panel(axes: Axes, lines: Sequence[Line], metric: str, looks: dict[str, _Look]) -> None:
    values = sorted({line.value for line in lines})
    shown = [m for m in looks if metric != "accuracy_u" or _first_of_embedding(m, looks)]
    for number, method in enumerate(shown):
        look = looks[method]
        own = {line.value: line.figures[metric] for line in lines if line.method == method}
        at = [i for i, value in enumerate(values) if value in own and np.isfinite(own[value].mean)]
        mean = np.array([own[values[i]].mean for i in at])
        error = np.nan_to_num(np.array([own[values[i]].error for i in at]))
        shift = _SPREAD * ((number + 0.5) / len(shown) - 0.5)
        axes.errorbar(
            np.array(at, dtype=float) + shift,
            mean,
            error,
            color=look.colour,
            linestyle="",
            marker=look.mark,
            markersize=5.5 if look.ours else 3.6,
            markerfacecolor="white" if look.hollow else look.colour,
            markeredgewidth=1.0 if look.ours else 0.6,
            elinewidth=1.3 if look.ours else 0.8,
            zorder=3 if look.ours else 2,
        )
        axes.plot(
            np.array(at, dtype=float) + shift,
            mean,
            color=look.colour,
            linestyle=look.dash,
            linewidth=1.8 if look.ours else 0.8,
            alpha=1.0 if look.ours else 0.4,
            zorder=2.5 if look.ours else 1.5,
        )
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.tick_params(axis="x", length=0)
    for edge in np.arange(len(values) - 1) + 0.5:
        axes.axvline(edge, color=LINE, linewidth=0.6, zorder=0)


def _looks(methods: Sequence[str]) -> dict[str, _Look]:
    """How each method is drawn; the same experiment always looks the same."""
    embeddings = list(dict.fromkeys(m.split(" + ")[0] for m in METHODS if " + " in m and not _oracle(m)))
    clusterings = list(dict.fromkeys(m.split(" + ")[1] for m in METHODS if " + " in m))
    ours = [m for m in METHODS if " + " not in m]
    looks = {}
    for method in methods:
        if " + " not in method:
            place = ours.index(method)
            looks[method] = _Look(
                COLOURS[_OURS[place % 3]], _MARKS[place % 6], _SOLID, ours=True, hollow=place > 0
            )
            continue
        embedding, clustering = method.split(" + ")
        place = clusterings.index(clustering)
        colour = LOST if _oracle(method) else COLOURS[_THEIRS[embeddings.index(embedding) % len(_THEIRS)]]
        looks[method] = _Look(colour, _MARKS[place % 6], _DASHES[place % 4], ours=False)
    return looks


def _oracle(method: str) -> bool:
    return method.split(" + ", maxsplit=1)[0] == ORACLE


def _first_of_embedding(method: str, looks: dict[str, _Look]) -> bool:
    family = method.split(" + ", maxsplit=1)[0]
    return not _oracle(method) and method == next(m for m in looks if m.split(" + ")[0] == family)


def _legends(figure: Figure, looks: dict[str, _Look], left: float, height: float) -> None:
    """One row for SMILE's fits, one for the embeddings' colours, one for the clusterings' marks."""
    embeddings: dict[str, Line2D] = {}
    clusterings: dict[str, Line2D] = {}
    for method, look in looks.items():
        if " + " in method:
            embedding, clustering = method.split(" + ")
            embeddings.setdefault(
                f"{embedding} (oracle)" if _oracle(method) else embedding,
                _handle(look.colour, "", _SOLID, 3.0),
            )
            clusterings.setdefault(clustering, _handle(MUTED, look.mark, look.dash, 1.0))
    ours = {
        method: _handle(look.colour, look.mark, look.dash, 2.0, hollow=look.hollow)
        for method, look in looks.items()
        if look.ours
    }
    named = (("", ours), ("embedding", embeddings), ("+ clustering", clusterings))
    rows = [(title, handles) for title, handles in named if handles]
    for place, (title, handles) in enumerate(rows):
        down = (0.62 - 0.24 * place) / height
        figure.text(left, down, title, color=MUTED, va="center")
        indent = left + 0.95 / figure.get_figwidth() if len(rows) > 1 else left
        figure.legend(
            handles=list(handles.values()), labels=list(handles), loc="center left",
            bbox_to_anchor=(indent, down), ncols=len(handles), frameon=False, borderpad=0,
            borderaxespad=0, columnspacing=1.8, handlelength=2.6, labelcolor=INK,
        )  # fmt: skip


def _handle(
    colour: str, mark: str, dash: tuple[float, tuple[float, ...]], width: float, *, hollow: bool = False
) -> Line2D:
    return Line2D(
        [],
        [],
        color=colour,
        linestyle=dash,
        linewidth=width,
        marker=mark,
        markersize=5,
        markerfacecolor="white" if hollow else colour,
    )


def draw_scores(folder: Path, scores: Sequence[Score], title: str) -> tuple[Path, Path]:
    """Each score with its interval, a row each, by metric; a tick marks chance."""
    metrics = list(dict.fromkeys(_heading(score) for score in scores))
    rows = len(scores) + 0.8 * len(metrics)
    margin = 0.3 + 0.075 * max(len(_row_name(score)) for score in scores)
    width, height = margin + 5.2, 1.05 + 0.26 * rows
    with _figure(width, height) as figure:
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
        return _save(figure, folder, PNG, SVG)


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


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with styled(width, height) as (figure, axes):
        figure.delaxes(axes)
        yield figure


def _save(figure: Figure, folder: Path, png: str, svg: str) -> tuple[Path, Path]:
    paths = folder / png, folder / svg
    for path in paths:
        buffer = io.BytesIO()
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(buffer, format=path.suffix[1:], dpi=_DPI, facecolor="white", metadata=metadata)
        write_atomic(path, buffer.getvalue(), mode=0o644)
    return paths
