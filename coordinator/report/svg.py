"""The report's drawing style, and SVG from matplotlib made fit to stand inside an HTML page.

The SVG carries no fixed theme: colours of the palette become CSS variables of the page and text stays text
in the page's font. Identifiers are prefixed, since a page holds several drawings. Same figure, same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

# Light-theme values; the page defines each variable again for its dark theme. The category colours were
# chosen for distance under protanopia, deuteranopia and tritanopia (Machado et al. 2009): at least 18 CIELAB.
COLOURS: Final = {
    "--ink": "#1b2431",
    "--muted": "#55606f",
    "--line": "#dde2e9",
    "--keep": "#1663b0",
    "--withheld": "#c27c0e",
    "--withheld-soft": "#fdf1dc",
    "--lost": "#9aa4b1",
    "--c0": "#2b3fd0",
    "--c1": "#a04e1e",
    "--c2": "#28b379",
    "--c3": "#7a2a92",
    "--c4": "#1c8ae6",
    "--c5": "#e09a1a",
    "--c6": "#3a0a20",
    "--c7": "#70757d",
}
_VARIABLE: Final = {colour: name for name, colour in COLOURS.items()}
INK, MUTED, LINE = COLOURS["--ink"], COLOURS["--muted"], COLOURS["--line"]
KEEP, LOST = COLOURS["--keep"], COLOURS["--lost"]
WITHHELD, WITHHELD_SOFT = COLOURS["--withheld"], COLOURS["--withheld-soft"]

_STYLE: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a dollar sign in a category's name is a dollar sign
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "hatch.linewidth": 1.2,
}
_LINKS: Final = re.compile(r"(?<=^#)[\w.-]+|(?<=url\(#)[\w.-]+")


@contextmanager
def styled(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of so many inches (96 CSS pixels each) in the report's style."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # a user's own matplotlibrc does not restyle a published page
        mpl.rcParams.update(_STYLE)
        # Letters that matplotlib's font lacks are drawn by the reader's browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def inline_svg(figure: Figure, name: str, alt: str, tips: Mapping[str, Sequence[str]] | None = None) -> str:
    """The figure as one `<svg>` element for HTML; call it inside `styled`.

    Args:
        figure: what to draw.
        name: prefix of the element's identifiers, unique in the page.
        alt: what the figure shows, in words.
        tips: for the identifier (gid) of a plotted line, a tooltip for each of its points.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, dpi=200)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314  (matplotlib just wrote it)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # that style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        _to_html(element)
    for gid, texts in (tips or {}).items():
        marks = [mark for group in root.iter("g") if group.get("id") == gid for mark in group.iter("use")]
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, "title").text = text
    _own_ids(root, name)
    for group in root.iter("g"):
        _lift_style(group)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": alt})
    return ElementTree.tostring(root, encoding="unicode")


def _to_html(element: ElementTree.Element) -> None:
    """Drop namespaces and white space, and turn the palette's colours into CSS variables."""
    element.tag = element.tag.rpartition("}")[2]
    element.tail = None
    if element.tag != "text":
        element.text = None
    given = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    given.pop("space", None)
    if "fill" in given:  # a variable holds in a style only, not in an attribute
        given["style"] = f"fill: {given.pop('fill')}; {given.get('style', '')}"
    if "style" in given:
        style = re.sub(r" ?font-family: [^;]+;?", "", given["style"])
        given["style"] = re.sub("#[0-9a-f]{6}", lambda hit: _themed(hit[0]), style)
    element.attrib.clear()
    element.attrib.update(given)


def _themed(colour: str) -> str:
    return f"var({_VARIABLE[colour]})" if colour in _VARIABLE else colour


def _own_ids(root: ElementTree.Element, prefix: str) -> None:
    """Keep the identifiers that something refers to, prefixed and numbered; drop the rest."""
    used: dict[str, str] = {}
    for element in root.iter():
        for attribute in ("href", "style", "clip-path"):
            for target in _LINKS.findall(element.get(attribute, "")):
                used.setdefault(target, f"{prefix}-{len(used)}")
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name in used:
            element.set("id", used[name])
        for attribute in ("href", "style", "clip-path"):
            if attribute in element.attrib:
                value = element.attrib[attribute]
                element.set(attribute, _LINKS.sub(lambda hit: used[hit[0]], value))


def _lift_style(group: ElementTree.Element) -> None:
    """Give a group the style that all its marks share: thousands of points, one style."""
    styles = {child.get("style") for child in group}
    style = styles.pop() if len(styles) == 1 else None
    if len(group) > 1 and style and all(child.tag == "use" for child in group):
        group.set("style", style)
        for child in group:
            child.attrib.pop("style")
            for place in ("x", "y"):
                child.set(place, f"{float(child.get(place, '0')):.1f}")
