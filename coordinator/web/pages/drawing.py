"""A code's neighbourhood as SVG: a small graph, and a cloud of words. Nothing in it needs a script or a style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Final

from coordinator.graph.edges import Edges
from coordinator.graph.queries import Neighbour
from coordinator.web.pages.rendering import shown

Link = Callable[[str], str]
WIDTH: Final = 960
"""Of both drawings, in their own units."""
COLOURS: Final = (
    "#2b3fd0", "#a04e1e", "#1f9d69", "#7a2a92", "#1c8ae6", "#cf8a10", "#6b1440", "#5f666f",
)  # fmt: skip
_ROW, _MARGIN, _REACH = 34.0, 44.0, 185.0
_LABEL: Final = 34  # characters that have room beside the ellipse
_WORD: Final = 40
_LEAST, _LARGEST = 13.0, 40.0  # sizes of words


def draw_graph(
    code: str, name: str, near: Sequence[Neighbour], edges: Edges, *, link: Link | None = None
) -> str:
    """A code in the middle of its neighbours, and the edges among all of them.

    Neighbours stand on an ellipse, codes of one category side by side, at equal heights on either side so that labels cannot
    touch. A line is the wider the larger the weight; it is broken where one code speaks against the other.

    Args:
        code: in the middle.
        name: what it is called.
        near: its neighbours.
        edges: among them and the code.
        link: code -> address of its page; none if None.

    Returns:
        an `svg` element; every text of others is escaped.
    """
    order = sorted(range(len(near)), key=lambda i: (near[i].category, i))
    right = order[: (len(order) + 1) // 2]
    left = order[len(right) :][::-1]
    height = 2 * _MARGIN + _ROW * max(2, len(right))
    middle = (WIDTH / 2, height / 2)
    place = {code: middle}
    for side, rows in ((1.0, right), (-1.0, left)):
        for number, i in enumerate(rows):
            along = (number + 0.5) / len(rows) * 2 - 1
            place[near[i].code] = (
                middle[0] + side * _REACH * math.sqrt(1 - along * along),
                middle[1] + along * (height / 2 - _MARGIN),
            )
    colour = colours(n.category for n in near)
    parts = [_line(edges, row, code, place) for row in _back_to_front(edges, code)]
    parts += [_node(n, place[n.code], middle[0], colour[n.category], link) for n in near]
    own = f"{shown(code, _LABEL)} {shown(name, _LABEL)}".strip()
    parts.append(
        f'<circle cx="{middle[0]:.1f}" cy="{middle[1]:.1f}" r="9" fill="currentColor"><title>{escape(own)}</title></circle>'
        f'<text x="{middle[0]:.1f}" y="{middle[1] - 15:.1f}" text-anchor="middle" font-weight="700" fill="currentColor" '
        f'class="halo">{escape(shown(name or code, 28))}</text>'
    )
    return _svg(height, f"{own} and the codes that it is related to", parts)


def draw_cloud(near: Sequence[Neighbour], *, link: Link | None = None) -> str:
    """The names of a code's neighbours, the larger the stronger they are related; the strongest in the middle.

    Args:
        near: neighbours, the strongest first.
        link: code -> address of its page; none if None.

    Returns:
        an `svg` element; every text of others is escaped.
    """
    strength = [abs(n.weight) if n.weight else 0.0 for n in near]
    top = max(strength, default=0.0) or 1.0
    colour = colours(n.category for n in near)
    rows: list[list[tuple[str, float, float]]] = []
    room = 0.0
    for n, worth in zip(near, strength, strict=True):
        size = _LEAST + (_LARGEST - _LEAST) * math.sqrt(worth / top)
        text = shown(n.name or n.code, _WORD)
        size = min(size, size * (WIDTH - 40) / _wide(text, size))
        wide = _wide(text, size)
        if not rows or wide > room:
            rows.append([])
            room = WIDTH - 40.0
        room -= wide + 22
        word = f'<text font-size="{size:.1f}" {colour[n.category]}>{escape(text)}</text>'
        rows[-1].append((_linked(word, n.code, link), wide, size))
    # The first row is the strongest: it goes to the middle, later ones below and above it by turns.
    rows = rows[1::2][::-1] + rows[::2]
    parts, y = [], 14.0
    for row in rows:
        tall = max(size for _, _, size in row)
        y += tall
        x = (WIDTH - sum(wide for _, wide, _ in row) - 22 * (len(row) - 1)) / 2
        for word, wide, _ in row:
            parts.append(word.replace("<text ", f'<text x="{x:.1f}" y="{y:.1f}" ', 1))
            x += wide + 22
        y += 0.35 * tall
    return _svg(y + 14, "Names of related codes, the larger the stronger the relation", parts)


def colours(categories: Iterable[str]) -> Mapping[str, str]:
    """Category -> the attributes of its colour, in the order of names; a page in the dark changes it by the class."""
    known = enumerate(sorted(set(categories)))
    return {
        category: f'class="c{i % len(COLOURS)}" fill="{COLOURS[i % len(COLOURS)]}"' for i, category in known
    }


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    said = escape(shown(title, 200))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}" '
        f'font-family="system-ui, sans-serif" font-size="13"><title>{said}</title>{"".join(parts)}</svg>'
    )


def _back_to_front(edges: Edges, code: str) -> list[int]:
    """Rows of the edges; those of the code in the middle last, so that they lie on top."""
    return sorted(
        range(len(edges)),
        key=lambda row: code in (edges.codes[edges.left[row]], edges.codes[edges.right[row]]),
    )


def _line(edges: Edges, row: int, code: str, place: Mapping[str, tuple[float, float]]) -> str:
    ends = edges.codes[edges.left[row]], edges.codes[edges.right[row]]
    (x1, y1), (x2, y2) = place[ends[0]], place[ends[1]]
    weight = float(edges.weight[row])
    size = min(1.0, abs(weight)) if math.isfinite(weight) else 0.0
    broken = ' stroke-dasharray="5 4"' if edges.sign[row] < 0 else ""
    strong = code in ends
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor" '
        f'stroke-opacity="{0.6 if strong else 0.18}" stroke-width="{(1.0 if strong else 0.8) + 7 * size:.1f}"{broken}/>'
    )


def _node(n: Neighbour, at: tuple[float, float], middle: float, colour: str, link: Link | None) -> str:
    side = 1 if at[0] >= middle else -1
    anchor = "start" if side > 0 else "end"
    full = escape(f"{shown(n.code)} {shown(n.name)}".strip())
    drawn = (
        f'<g><title>{full}</title><circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="6" {colour}/>'
        f'<text x="{at[0] + side * 12:.1f}" y="{at[1] + 4.5:.1f}" text-anchor="{anchor}" fill="currentColor">'
        f"{escape(shown(n.name or n.code, _LABEL))}</text></g>"
    )
    return _linked(drawn, n.code, link)


def _linked(drawn: str, code: str, link: Link | None) -> str:
    return drawn if link is None else f'<a href="{escape(link(code))}">{drawn}</a>'


def _wide(text: str, size: float) -> float:
    """About how wide a text is; letters of other scripts may be as wide as they are high."""
    return size * sum(0.58 if c.isascii() else 1.0 for c in text) or size
