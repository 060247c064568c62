"""A description as one HTML page without scripts or any outside resource: tables, and plots as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from site_agent.cohort.describing import CodeLift, Description, Lives
from site_agent.cohort.files import NOTICE, CohortManifest
from site_agent.cohort.survival import Survival

DAYS = (30, 90, 180, 365, 730, 1825)
"""Days after which the tables tell survival."""
_SHOWN = 30
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 280, 52, 12, 12, 44

_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b2431; --muted: #55606f; --line: #dde2e9;
  --one: #1663b0; --two: #a04e1e; --stop: #a01c1c; }
@media (prefers-color-scheme: dark) { :root { --page: #0f141a; --card: #171d25; --ink: #e8edf3; --muted: #a7b2c0;
  --line: #303a47; --one: #4a9ae8; --two: #f0a070; --stop: #ff9a9a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, Arial,
  "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { margin: 0 0 4px; font-size: 28px; line-height: 1.2; } h2 { margin: 0 0 4px; font-size: 20px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 62em; } .stop { color: var(--stop); font-weight: 650; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; margin: 18px 0 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.4; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 6px 8px; text-align: left; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--muted); font-size: 13px; } .n { text-align: right; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; max-width: 760px; height: auto; } .key b { color: var(--one); } .key i { color: var(--two); }
svg text { font: 12px system-ui, "Segoe UI", Arial, "Liberation Sans", sans-serif; fill: var(--muted); }
svg .grid { stroke: var(--line); } svg .one { stroke: var(--one); fill: none; } svg .two { stroke: var(--two); fill: none; }
svg .two { stroke-dasharray: 6 3; } svg .area-one { fill: var(--one); } svg .area-two { fill: var(--two); }
svg .area { fill-opacity: .15; } svg .even { stroke: var(--muted); stroke-dasharray: 3 3; }
""".strip()

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>A cohort at site {site}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<h1>A cohort at site {site}</h1>
<p class="stop">{notice}</p>
<p>{about}</p>
{body}
</main>
</body>
</html>
"""


def page(found: Description, told: CohortManifest, *, now: datetime | None = None) -> str:
    """The page; every text is escaped.

    Args:
        found: of `describe`.
        told: of the build.
        now: the time that it shows.
    """
    about = (
        f"{found.said[0].upper()}{found.said[1:]}: {found.cohort:,} patients, beside {found.rest:,} others of the same age, sex "
        f"and days. Release v{told.release}; {now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    )
    parts = [_codes(found)]
    if found.lives is not None:
        parts.append(_lives(found.lives))
    return _PAGE.format(
        site=escape(told.site), style=_STYLE, notice=NOTICE, about=escape(about), body="\n".join(parts)
    )


def _codes(found: Description) -> str:
    shown = found.codes[:_SHOWN]
    rows = []
    for c in shown:
        interval = f"{c.low:.2f} to {c.high:.2f}"
        cells = [c.code, c.name, str(c.cohort), str(c.rest), f"{c.lift:.2f}", interval]
        rows.append([*cells, "yes" if c.asked else ""])
    head = ["code", "name", "cohort", "rest", "lift", "95 % interval", "chosen by it"]
    said = (
        "Lift: the share of the cohort that has the code over that of the rest, by the lower limit of its interval. Each "
        "interval holds for its code alone. That the cohort has the codes it was chosen by says nothing."
    )
    return _section(
        "Codes that the cohort has more often",
        said,
        _forest([c for c in shown if not c.asked][:15]) + _table("Codes", head, rows, 2),
    )


def _forest(codes: Sequence[CodeLift]) -> str:
    """Lifts with their intervals, on a logarithmic axis."""
    if not codes:
        return ""
    low = math.floor(math.log2(min(1.0, *(c.low for c in codes))))
    high = math.ceil(math.log2(max(2.0, *(c.high for c in codes))))
    left, step = 180, 22
    width, height = _WIDTH - left - _RIGHT, step * len(codes)
    marks = []

    def x(value: float) -> float:
        return left + width * (math.log2(value) - low) / (high - low)

    for power in range(low, high + 1, max(1, (high - low) // 6)):
        at = x(2.0**power)
        marks.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height + 4}"/>')
        marks.append(f'<text x="{at:.1f}" y="{height + 20}" text-anchor="middle">{2.0**power:g}</text>')
    marks.append(f'<line class="even" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="4" y2="{height + 4}"/>')
    for i, c in enumerate(codes):
        y = 4 + step * (i + 0.5)
        tip = escape(f"{c.code} {c.name}: {c.lift:.2f} ({c.low:.2f} to {c.high:.2f})")
        marks.append(
            f'<g><title>{tip}</title><text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(c.code[:26])}</text>'
            f'<line class="one" stroke-width="2" x1="{x(c.low):.1f}" x2="{x(c.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle class="area-one" cx="{x(c.lift):.1f}" cy="{y:.1f}" r="4"/></g>'
        )
    name = "Lifts with their intervals. The table has the numbers."
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height + 28}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(marks)}</svg>"
    )


def _lives(lives: Lives) -> str:
    rows = []
    for day in DAYS:
        cells = [_share(curve.at(day)) for curve in (lives.cohort, lives.rest)]
        if any(cells):
            rows.append([f"{day} days", *cells])
    medians = [
        f"{m} days" if (m := c.median) is not None else "not reached" for c in (lives.cohort, lives.rest)
    ]
    rows.append(["median", *medians])
    rows.append(["patients", str(lives.cohort.patients), str(lives.rest.patients)])
    rows.append(["deaths", str(int(lives.cohort.deaths.sum())), str(int(lives.rest.deaths.sum()))])
    said = (
        f"Time begins on {lives.begin}. Kaplan-Meier with 95 % intervals by Greenwood's variance. {lives.left_out:,} patients "
        "were last seen, or died, before. The groups differ in more than what the cohort was chosen by: this is no effect."
    )
    key = '<p class="key"><b>cohort, solid</b>; <i>rest, dashed</i></p>'
    return _section(
        "Survival", said, key + _curves(lives) + _table("Survival", ["after", "cohort", "rest"], rows, 1)
    )


def _share(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"


def _curves(lives: Lives) -> str:
    longest = max(lives.cohort.longest, lives.rest.longest, 1)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    marks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _TOP + height * (1 - share)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
    for i in range(5):
        x, day = _LEFT + width * i / 4, longest * i // 4
        marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{day:,}</text>')
    marks.append(f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">days</text>')
    for curve, kind in ((lives.rest, "two"), (lives.cohort, "one")):
        marks.append(_curve(curve, kind, longest, width, height))
    name = "Survival of the cohort and of the rest. The table has the numbers."
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}"><title>{name}</title>'
        f"{''.join(marks)}</svg>"
    )


def _curve(curve: Survival, kind: str, longest: int, width: int, height: int) -> str:
    def path(values: Sequence[float]) -> list[str]:
        """Corners of the steps, from day 0 to the last observed one."""
        points, level = [(0, 1.0)], 1.0
        for time, value in zip(curve.time, values, strict=True):
            points += [(int(time), level), (int(time), float(value))]
            level = float(value)
        points.append((curve.longest, level))
        return [f"{_LEFT + width * t / longest:.1f},{_TOP + height * (1 - v):.1f}" for t, v in points]

    area = " ".join([*path(list(curve.low)), *reversed(path(list(curve.high)))])
    line = " ".join(path(list(curve.share)))
    return f'<polygon class="area area-{kind}" points="{area}"/><polyline class="{kind}" stroke-width="2" points="{line}"/>'


def _section(title: str, said: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(said)}</p>{content}</section>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first columns are texts and the others numbers."""

    def kind(i: int) -> str:
        return ' class="n"' if i >= texts else ""

    head = "".join(f'<th scope="col"{kind(i)}>{escape(c)}</th>' for i, c in enumerate(columns))
    lines = []
    for row in rows:
        cells = "".join(f"<td{kind(i)}>{escape(row[i])}</td>" for i in range(1, len(row)))
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
