"""The figure of calibration curves: stated probability against the share that is right, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes

from coordinator.report.image import canvas, save
from coordinator.report.svg import INK, KEEP, LOST, MUTED
from coordinator.scoring.curve import Bin, debiased_calibration_error

_PANEL: Final = 3.1  # inches


def draw_calibration(folder: Path, curves: Mapping[str, Sequence[Bin]], title: str) -> tuple[Path, Path]:
    """`figure.png` and `figure.svg`: a panel for each curve, its bins with their intervals beside the diagonal.

    Args:
        folder: where they are written.
        curves: name -> bins; at least one.
        title: one line above the panels.
    """
    width, height = 0.75 + (_PANEL + 0.35) * len(curves), _PANEL + 1.35
    with canvas(width, height) as figure:
        axes = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(0.62 / width, 0.55 / height, 1 - 0.2 / width, 1 - 0.75 / height, wspace=0.12)
        for panel, (name, curve) in zip(axes, curves.items(), strict=True):
            _panel(panel, name, curve)
        axes[0].set_ylabel("share that is right")
        figure.text(0.12 / width, 1 - 0.2 / height, title, va="center", color=MUTED)
        return save(figure, folder)


def _panel(axes: Axes, name: str, curve: Sequence[Bin]) -> None:
    stated, right = np.array([b.stated for b in curve]), np.array([b.right for b in curve])
    reach = np.array([[b.right - b.low for b in curve], [b.high - b.right for b in curve]])
    axes.grid(visible=True, axis="both")
    axes.plot([0, 1], [0, 1], color=LOST, linewidth=1.4)
    axes.errorbar(
        stated,
        right,
        yerr=np.maximum(reach, 0.0),
        fmt="o",
        markersize=4.5,
        color=KEEP,
        elinewidth=1.4,
        capsize=0,
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_xlabel("stated probability")
    axes.set_title(name, loc="left", fontsize=9, fontweight="bold", color=INK)
    n, error = sum(b.n for b in curve), debiased_calibration_error(curve)
    said = f"{n:,} mappings\nerror {error:.3f}"
    axes.annotate(said, (0.97, 0.05), xycoords="axes fraction", ha="right", va="bottom", color=MUTED)
