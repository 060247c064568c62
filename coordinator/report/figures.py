"""The report's figures, drawn with matplotlib: each says in words what it shows.

Legends are left to the page, since letters inside a figure shrink with it on a phone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from coordinator.recogniser.verdict import Recognised
from coordinator.report.data import SURE, CodeTable, SiteFacts, TextArray, numbered
from coordinator.report.svg import (
    COLOURS,
    INK,
    KEEP,
    LINE,
    LOST,
    MUTED,
    WITHHELD,
    WITHHELD_SOFT,
    inline_svg,
    styled,
)
from coordinator.report.text import safe_text, share

MOST_VECTOR_POINTS: Final = 5_000
"""Above this many codes the map's points are one picture: a page of shapes would be slow and large."""

# A picture's pixels cannot follow the theme: tones that are readable on white and on near-black.
_PICTURE: Final = ("#4a5fe6", "#b8602c", "#28a873", "#a04ab8", "#3a9be8", "#d9951d", "#8c4a66", "#858b94")
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_REST: Final = 7  # palette place of the categories beyond those with a mark of their own
_TOP: Final = 2 * len(_MARKERS)  # seven colours with filled marks, then the same with open ones
_MOST_ROWS: Final = 18
_FILLS: Final[tuple[dict[str, Any], ...]] = (
    {"color": KEEP},
    {"facecolor": WITHHELD_SOFT, "edgecolor": WITHHELD, "hatch": "/////"},
    {"color": LOST},
)


@dataclass(frozen=True)
class Key:
    """One entry of a legend: its words, and the colour (as CSS) and marker that stand for it.

    `marker` is a matplotlib marker, or "bar" or "hatch" for a filled or hatched bar;
    `hollow` marks are outlines.
    """

    label: str
    colour: str
    marker: str
    hollow: bool = False


@dataclass(frozen=True)
class Drawing:
    """An SVG element, what it shows in words, its legend, and its natural width in CSS pixels."""

    svg: str
    alt: str
    legend: tuple[Key, ...]
    width: int


def _drawing(
    figure: Figure, name: str, alt: str, keys: tuple[Key, ...], tips: dict[str, list[str]] | None = None
) -> Drawing:
    return Drawing(inline_svg(figure, name, alt, tips), alt, keys, round(96 * figure.get_figwidth()))


def embedding_map(codes: CodeTable, sites: Sequence[SiteFacts]) -> Drawing:
    """The released codes on the plane, coloured and shaped by category; above 5,000 one picture."""
    held = codes.held
    groups = _groups(codes.category[held])
    vector = len(held) <= MOST_VECTOR_POINTS
    tips: dict[str, list[str]] = {}
    with styled(7.6, 5.6) as (figure, axes):
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.99)
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        # The rest lies below, the smallest named category on top: a large one would cover it.
        for number in [*range(_TOP, len(groups)), *range(min(_TOP, len(groups)))]:
            rows = groups[number][1]
            key, colour = _mark(number, vector)
            drawn = axes.plot(
                *codes.xy[held[rows]].T,
                linestyle="",
                marker=key.marker,
                markersize=4.5 if vector else 3,
                markerfacecolor="none" if key.hollow else colour,
                markeredgecolor=colour if key.hollow else "none",
                markeredgewidth=0.9 if vector else 0.8,
                alpha=0.8 if vector else 0.6,
                rasterized=not vector,
            )[0]
            if vector:
                drawn.set_gid(f"points-{number}")
                tips[f"points-{number}"] = [_tip(codes, sites, int(i)) for i in held[rows]]
        named = "; ".join(f"{label} {len(rows):,}" for label, rows in groups)
        alt = f"Map of {len(held):,} codes, a mark each, coloured and shaped by category: {named}."
        keys = tuple(
            replace(_mark(number, vector)[0], label=f"{label} ({len(rows):,})")
            for number, (label, rows) in enumerate(groups)
        )
        return _drawing(figure, "map", alt, keys, tips)


def _mark(number: int, vector: bool) -> tuple[Key, str]:
    """Mark of the n-th commonest category and the colour to draw it with; dots for the rest of many."""
    rest = number >= _TOP
    place = _REST if rest else number % len(_MARKERS)
    colour = COLOURS[f"--c{place}"] if vector else _PICTURE[place]
    # Shapes follow the page's theme, so their legend does; a picture's legend has the picture's colours.
    css = f"var(--c{place})" if vector else colour
    marker = "." if rest else _MARKERS[place]
    return Key("", css, marker, hollow=len(_MARKERS) <= number < _TOP), colour


def _groups(category: TextArray, most: int = _TOP) -> list[tuple[str, NDArray[np.intp]]]:
    """Rows of each category, the commonest first; those beyond `most` together, last."""
    names, inverse = numbered(category)
    counts = np.bincount(inverse, minlength=len(names))
    order = sorted(range(len(names)), key=lambda k: (-counts[k], names[k]))
    first = [
        (safe_text(names[k], 40) or "no category", np.flatnonzero(inverse == k).astype(np.intp))
        for k in order[:most]
    ]
    rest = order[most:]
    if rest:
        first.append((f"{len(rest)} other categories", np.flatnonzero(np.isin(inverse, rest))))
    return first


def _tip(codes: CodeTable, sites: Sequence[SiteFacts], i: int) -> str:
    """A point's tooltip, a line for each fact."""
    names = ", ".join(
        safe_text(site.name, 32) for site, has in zip(sites, codes.member[i], strict=True) if has
    )
    code = f"{safe_text(codes.curie[i], 64)} {safe_text(codes.title[i], 90)}".strip()
    place = "given" if codes.anchored[i] else f"probability {codes.posterior[i]:.2f}"
    target = f"{safe_text(codes.target[i], 64)} {safe_text(codes.target_title[i], 90)}".strip()
    standard = f"→ {target}" if codes.target[i] else "→ no standard code"
    return f"{code}\n{names} · cluster {codes.cluster[i]}, {place}\n{standard}"


def coverage(codes: CodeTable, sites: Sequence[SiteFacts]) -> Drawing:
    """Codes of each category by site: numbers, shaded by the share of the category's codes."""
    held = codes.held
    groups = _groups(codes.category[held], _MOST_ROWS)
    counts = np.array([codes.member[held[rows]].sum(axis=0) for _, rows in groups]).reshape(
        len(groups), len(sites)
    )
    total = np.array([len(rows) for _, rows in groups])
    n_rows, n_columns = len(groups), len(sites) + 1
    margin = 0.2 + 0.075 * max((len(label) for label, _ in groups), default=0)
    width, height = margin + 0.05 + 0.86 * n_columns, 0.62 + 0.27 * max(n_rows, 1)
    with styled(width, height) as (figure, axes):
        figure.subplots_adjust(
            left=margin / width, right=1 - 0.05 / width, bottom=0.02, top=1 - 0.58 / height
        )
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlim(0, n_columns)
        axes.set_ylim(max(n_rows, 1), 0)
        heads = [_wrapped(site.name) for site in sites] + ["all sites"]
        axes.set_xticks(np.arange(n_columns) + 0.5, heads)
        axes.set_yticks(np.arange(n_rows) + 0.5, [label for label, _ in groups])
        axes.tick_params(axis="x", top=False, bottom=False, labeltop=True, labelbottom=False, labelcolor=INK)
        axes.tick_params(axis="y", labelcolor=INK)
        for column, site in enumerate(sites):
            if site.release is None:
                _cell(axes, column, 0, n_rows, facecolor="none", edgecolor=LINE, hatch="///")
                continue
            for row in range(n_rows):
                part = float(counts[row, column] / total[row])
                # At most 55 % of the colour: dark text, or light text in the dark theme, stays readable.
                _cell(axes, column, row, 1, facecolor=KEEP, alpha=0.04 + 0.51 * part)
                words = f"{counts[row, column]:,} · {share(part)}" if counts[row, column] else "–"
                axes.text(column + 0.5, row + 0.5, words, ha="center", va="center_baseline", fontsize=8.5)
        for row in range(n_rows):
            axes.text(
                n_columns - 0.5, row + 0.5, f"{total[row]:,}", ha="center", va="center_baseline", color=MUTED
            )
        said = "; ".join(
            f"{label}: "
            + ", ".join(
                f"{safe_text(s.name, 32)} {k:,}"
                for s, k in zip(sites, counts[r], strict=True)
                if s.release is not None
            )
            for r, (label, _) in enumerate(groups)
        )
        keys = tuple(
            Key(f"{safe_text(s.name, 32)}: no release ({safe_text(s.state, 20)})", "var(--line)", "hatch")
            for s in sites
            if s.release is None
        )
        return _drawing(figure, "coverage", f"Released codes by category and site. {said}.", keys)


def _wrapped(name: str) -> str:
    """A site's name in lines that fit a column."""
    return "\n".join(textwrap.wrap(safe_text(name, 32), 11))


def _cell(axes: Axes, x: float, y: float, rows: int, **style: Any) -> None:
    gap = 0.03
    axes.add_patch(Rectangle((x + gap, y + gap), 1 - 2 * gap, rows - 2 * gap, linewidth=0, **style))


_PARTS: Final = ("codes", "pairs", "co-occurrences")


def kept_and_withheld(sites: Sequence[SiteFacts]) -> Drawing:
    """Of what each site saw, the shares released, withheld and lost: codes, pairs, co-occurrence mass."""
    names = [textwrap.wrap(safe_text(site.name, 32), 16) for site in sites]
    margin = 0.2 + 0.08 * max((len(line) for lines in names for line in lines), default=0)
    width, height = margin + 1.5 * len(_PARTS), 0.36 + 0.34 * len(sites)
    said: list[str] = []
    with styled(width, height) as (figure, axes):
        figure.subplots_adjust(left=margin / width, right=1, bottom=0, top=1 - 0.32 / height)
        axes.set_axis_off()
        axes.set_xlim(0, 1.5 * len(_PARTS))  # inches; a bar is one inch, its number stands behind it
        axes.set_ylim(max(len(sites), 1), 0)
        for place, part in enumerate(_PARTS):
            axes.text(1.5 * place, -0.15, part, color=MUTED, va="bottom")
        for row, (site, lines) in enumerate(zip(sites, names, strict=True)):
            at = row + 0.5
            axes.text(-margin, at, "\n".join(lines), va="center")
            told = []
            for place, shares in enumerate(_site_shares(site)):
                words = share(shares[0]) if shares else "not stated"
                told.append(f"{_PARTS[place]} {words}")
                if shares:
                    _stacked(axes, 1.5 * place, at, shares)
                axes.text(1.5 * place + (1.05 if shares else 0), at, words, va="center_baseline")
            if site.release is None:
                axes.text(
                    0, at, f"no release ({safe_text(site.state, 20)})", color=MUTED, va="center_baseline"
                )
            state = ", ".join(told) or f"no release ({safe_text(site.state, 20)})"
            said.append(f"{' '.join(lines)}: {state}")
        keys = (
            Key("released", "var(--keep)", "bar"),
            Key("withheld: too few patients", "var(--withheld)", "hatch"),
            Key("lost: no pair passed the floor", "var(--lost)", "bar"),
        )
        return _drawing(figure, "kept", f"Shares released by each site. {'; '.join(said)}.", keys)


def _site_shares(site: SiteFacts) -> list[tuple[float, float, float] | None]:
    """For each of `_PARTS` the shares released, withheld and lost; nothing for a site without a release."""
    r = site.release
    if r is None:
        return []
    mass = r.mass_kept
    return [
        _shares(r.codes_released, r.codes_suppressed, r.codes_without_pairs),
        _shares(r.pairs_released, r.pairs_suppressed, 0),
        (mass, 1 - mass, 0.0) if mass is not None and 0 <= mass <= 1 else None,
    ]


def _shares(
    released: int | None, withheld: int | None, lost: int | None
) -> tuple[float, float, float] | None:
    """Shares of what a site saw; `None` where a part is not stated or negative, or nothing was seen."""
    if released is None or withheld is None or lost is None or min(released, withheld, lost) < 0:
        return None
    whole = released + withheld + lost
    return (released / whole, withheld / whole, lost / whole) if whole else None


def _stacked(axes: Axes, left: float, at: float, shares: tuple[float, float, float]) -> None:
    """A bar one inch long, from `left`."""
    for part, style in zip(shares, _FILLS, strict=True):
        axes.barh(at, part, left=left, height=0.5, linewidth=0, **style)
        left += part


def cluster_sizes(codes: CodeTable) -> Drawing:
    """How many clusters have 1, 2, 3, ... codes, with and without a standard code."""
    held = codes.held
    _, inverse, sizes = np.unique(codes.cluster[held], return_inverse=True, return_counts=True)
    known = np.bincount(inverse, weights=codes.target[held] != "", minlength=len(sizes)) > 0
    edges = [1, 2, 3, 4, 5, 6, 8, 11, 21]
    labels = ["1", "2", "3", "4", "5", "6–7", "8–10", "11–20", "21+"]
    place = np.searchsorted(np.array(edges), np.asarray(sizes), side="right") - 1
    with_standard = np.bincount(place[known], minlength=len(edges))
    without = np.bincount(place[~known], minlength=len(edges))
    alt = "Clusters by number of codes: " + "; ".join(
        f"{label}: {a + b:,} ({b:,} without a standard code)"
        for label, a, b in zip(labels, with_standard, without, strict=True)
    )
    keys = (
        Key("with a standard code", "var(--keep)", "bar"),
        Key("no standard code", "var(--withheld)", "hatch"),
    )
    axis_labels = ("codes in the cluster", "clusters")
    return _columns("sizes", (with_standard, without), labels, axis_labels, alt=alt, keys=keys)


def posterior_histogram(codes: CodeTable) -> Drawing:
    """Posteriors of the codes that the fit placed, in steps of 0.1; the anchored are not a result."""
    held = codes.held
    free = codes.posterior[held][~codes.anchored[held]]
    counts = np.bincount(np.minimum(np.floor(free * 10 + 1e-9), 9).astype(int), minlength=10)
    labels = [f".{k}" for k in range(10)]
    alt = f"Probabilities of {len(free):,} codes that were not given: " + "; ".join(
        f"{k / 10:.1f} to {(k + 1) / 10:.1f}: {count:,}" for k, count in enumerate(counts)
    )
    nothing = np.zeros_like(counts)
    sure = np.arange(10) / 10 >= SURE
    keys = (Key(f"sure ({SURE:.2f} or more)", "var(--keep)", "bar"), Key("less sure", "var(--lost)", "bar"))
    heights = (np.where(sure, counts, 0), nothing, np.where(sure, 0, counts))
    return _columns("posterior", heights, labels, ("probability, from", "codes"), alt=alt, keys=keys)


def _columns(
    name: str,
    heights: Sequence[NDArray[np.int64]],
    labels: Sequence[str],
    axis_labels: tuple[str, str],
    *,
    alt: str,
    keys: tuple[Key, ...],
) -> Drawing:
    """Stacked columns (kept, hatched, grey) with the sum written above each."""
    x, base = np.arange(len(labels)), np.zeros(len(labels), dtype=np.int64)
    with styled(4.0, 2.7) as (figure, axes):
        figure.subplots_adjust(left=0.13, right=0.99, bottom=0.17, top=0.95)
        for height, style in zip(heights, _FILLS, strict=False):
            axes.bar(x, height, bottom=base, width=0.8, linewidth=0, **style)
            base += height
        for at, total in zip(x, base, strict=True):
            if total:
                axes.annotate(
                    f"{total:,}", (at, total), (0, 2), textcoords="offset points", ha="center", fontsize=8
                )
        axes.set_xticks(x, labels, fontsize=8)
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        axes.set_ylim(0, max(1.0, 1.12 * float(base.max())))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return _drawing(figure, name, f"{alt}.", keys)


AUDITED: Final = {
    "released": "as released",
    "aligned": "in the shared space",
    "published": "as published",
}


def site_recognised(lines: Sequence[Recognised]) -> Drawing:
    """Matthews' correlation of each line of the audit, over the range that chance explains."""
    at = np.arange(len(lines))[::-1]
    with styled(4.6, 0.7 + 0.3 * len(lines)) as (figure, axes):
        height = figure.get_figheight()
        figure.subplots_adjust(left=0.42, right=0.97, bottom=0.5 / height, top=1 - 0.05 / height)
        for y, line in zip(at, lines, strict=True):
            axes.barh(y, line.limit, height=0.6, linewidth=0, color=LOST)
            axes.plot(line.mcc, y, marker="o", markersize=6, color=WITHHELD if line.beyond else KEEP)
        axes.set_yticks(at, [f"{AUDITED[line.kind]}, {line.recogniser}" for line in lines], fontsize=8)
        axes.set_xlim(min(-0.1, *(line.mcc - 0.05 for line in lines)), 1.0)
        axes.set_xlabel("Matthews' correlation of site said and true site")
        said = "; ".join(
            f"{AUDITED[line.kind]}, {line.recogniser}: {line.mcc:.2f}, chance up to {line.limit:.2f}"
            for line in lines
        )
        keys = (
            Key("no more than chance", "var(--keep)", "o"),
            Key("site recognised", "var(--withheld)", "o"),
            Key("chance, 95 %", "var(--lost)", "bar"),
        )
        return _drawing(figure, "audit", f"How far a vector tells its site. {said}.", keys)


def bound_history(history: NDArray[np.float64]) -> Drawing | None:
    """Gain of the bound over its first value, by iteration; `None` for fewer than two finite values."""
    step = np.flatnonzero(np.isfinite(history))
    if len(step) < 2:
        return None
    gain = history[step] - history[step[0]]
    falls = int((np.diff(gain) < 0).sum())
    alt = (
        f"The bound over {len(history)} iterations: it gained {gain[-1]:,.4g} in all, "
        f"{100 * (gain[-1] - gain[-2]) / (abs(gain[-1]) or 1):.2g} % of that in the last iteration, "
        f"and fell {falls} times."
    )
    with styled(4.0, 2.7) as (figure, axes):
        figure.subplots_adjust(left=0.17, right=0.97, bottom=0.17, top=0.95)
        axes.plot(step + 1, gain, color=KEEP, linewidth=1.8)
        axes.plot(step[-1] + 1, gain[-1], marker="o", markersize=5, color=KEEP)
        axes.set_xlabel("iteration")
        axes.set_ylabel("gain of the bound")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        return _drawing(figure, "bound", alt, ())
