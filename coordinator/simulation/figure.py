"""The figure of an experiment, in the report's style, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from coordinator.report.image import canvas, save
from coordinator.report.svg import COLOURS, INK, LINE, LOST, MUTED
from coordinator.simulation.experiment import SETTINGS
from coordinator.simulation.methods import METHODS, ORACLE, PAIRS
from coordinator.simulation.results import FIGURES, Line

# SMILE's fits stand out, rivals have a colour an embedding and a mark a clustering, the oracle and the pairs alone
# are grey.
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
    the oracle, whose U is the truth. The pairs alone have neither U nor centers.
    """
    settings = sorted({line.setting for line in lines})
    looks = _looks([m for m in METHODS if any(line.method == m for line in lines)])
    width = 1.1 + 3.3 * max(len(settings), 2)
    height = 1.25 + 2.5 * len(FIGURES)
    with canvas(width, height) as figure:
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
        return save(figure, folder)


def _panel(axes: Axes, lines: Sequence[Line], metric: str, looks: dict[str, _Look]) -> None:
    values = sorted({line.value for line in lines})
    shown = [m for m in looks if metric != "accuracy_u" or _first_of_embedding(m, looks)]
    shown = [m for m in shown if m != PAIRS or metric == "ami"]
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
    ours = [m for m in METHODS if " + " not in m and m != PAIRS]
    looks = {}
    for method in methods:
        if method == PAIRS:
            looks[method] = _Look(MUTED, "x", _DASHES[2], ours=False)
            continue
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
        if " + " not in method
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
