"""The examination as one HTML page without any outside resource, and without any value of fewer patients than the floor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from site_agent.doctor.examination import Examination
from site_agent.doctor.findings import Check
from site_agent.doctor.numbers import Numbers, percent
from site_agent.doctor.picture import Bar, events_by_year, patients_by_events
from site_agent.doctor.profiling import Profile

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_WORD = {"ok": "✓ ok", "look": "! look", "failed": "✗ failed"}

# SVG units are CSS pixels at the page's full width.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 250, 52, 44, 12

_STYLE = """
:root { color-scheme: light dark; --page: #f4f6f8; --card: #fff; --ink: #1b2431; --muted: #55606f; --line: #dde2e9;
  --bar: #1663b0; --ok: #1c6b3f; --look: #7a4a00; --look-soft: #fdf1dc; --failed: #a01c1c; --failed-soft: #fbe4e4; }
@media (prefers-color-scheme: dark) { :root { --page: #0f141a; --card: #171d25; --ink: #e8edf3; --muted: #a7b2c0;
  --line: #303a47; --bar: #4a9ae8; --ok: #6fcf97; --look: #f0c476; --look-soft: #33291a; --failed: #ff9a9a;
  --failed-soft: #3a1c1c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 48px; }
h1 { margin: 0 0 4px; font-size: 30px; line-height: 1.2; }
h2 { margin: 0 0 4px; font-size: 20px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 62em; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; margin: 18px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 0; padding: 0;
  list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tiles b { display: block; font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; line-height: 1.4; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 7px 8px; text-align: left; vertical-align: top; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--muted); font-size: 13px; vertical-align: bottom; }
th[scope="row"] { font-weight: 600; }
.checks th[scope="row"] { width: 11em; } .checks td:nth-child(2) { width: 6em; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ok { color: var(--ok); } .look { color: var(--look); font-weight: 650; } .failed { color: var(--failed); font-weight: 650; }
tr.is-look { background: var(--look-soft); } tr.is-failed { background: var(--failed-soft); }
.plot { display: grid; grid-template-columns: minmax(0, 2fr) minmax(220px, 1fr); gap: 8px 28px; align-items: start; }
.scroll { overflow: auto; max-height: 320px; } .scroll th { overflow-wrap: normal; white-space: nowrap; }
.scroll thead th { white-space: normal; min-width: 5em; }
@media (max-width: 760px) { .plot { grid-template-columns: minmax(0, 1fr); } section { padding: 14px; } }
@media print { .scroll { max-height: none; } section { break-inside: avoid; } }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, "Segoe UI", Roboto, Arial, "Liberation Sans", sans-serif; fill: var(--muted); }
svg .bar { fill: var(--bar); } svg .few { fill: none; stroke: var(--muted); stroke-dasharray: 3 2; }
svg .grid { stroke: var(--line); }
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
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{about}</p>
{body}
</main>
</body>
</html>
"""


def page(found: Examination, *, version: str, now: datetime | None = None) -> str:
    """The page; of the data it tells only what at least as many patients have as a pair of codes needs.

    Args:
        found: what `examine` found out.
        version: of the agent.
        now: the time that it shows.
    """
    numbers, site, study = Numbers(), "", ""
    if found.before[0].result != "failed":
        policy = found.home.policy()
        numbers = Numbers(max(2, policy.min_pair_patients), policy.margin_rounding)
        site, study = found.home.config.site, found.home.study.id
    parts = [_checks(found.checks(numbers))]
    if found.profile is not None:
        parts = [_tiles(found.profile, numbers), *parts, *_data(found.profile, numbers)]
    when = f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    about = f"Study {study}. site-agent {version}, {when}. " if study else f"site-agent {version}, {when}. "
    if found.profile is not None:
        rounded = f", others are rounded to {numbers.step}" if numbers.step > 1 else ""
        about += f"Numbers below {numbers.floor} are not shown{rounded}. Nothing of this page leaves the site unless you send it."
    title = f"Data of site {site}" if site else "A site's data"
    return _PAGE.format(title=escape(title), style=_STYLE, about=escape(about), body="\n".join(parts))


def _checks(checks: Sequence[Check]) -> str:
    rows = []
    for name, result, finding in checks:
        # What failed may quote a row of the data.
        said = (
            finding
            if result != "failed"
            else "The reason is in the terminal, and not here: it may quote the data."
        )
        rows.append(
            f'<tr class="is-{result}"><th scope="row">{escape(name)}</th><td class="{result}">{_WORD[result]}</td>'
            f"<td>{escape(said)}</td></tr>"
        )
    head = _head(["check", "result", "what was found"])
    return _section(
        "Checks",
        "What says “look” is for you to judge; what has failed must be mended before the first release.",
        f'<table class="checks"><caption>All checks</caption>{head}<tbody>{"".join(rows)}</tbody></table>',
    )


def _tiles(p: Profile, n: Numbers) -> str:
    years = [y.year for y in p.years if not n.hidden(y.patients)]
    tiles = [
        (n.count(p.rows), "rows"),
        (n.count(p.patients), "patients"),
        (n.count(p.codes), "codes"),
        (n.count(p.left_out), "rows left out"),
    ]
    if years:
        tiles.append((f"{years[0]}–{years[-1]}", "years"))
    return (
        f'<ul class="tiles">{"".join(f"<li><b>{escape(b)}</b><span>{s}</span></li>" for b, s in tiles)}</ul>'
    )


def _data(p: Profile, n: Numbers) -> list[str]:
    whole = p.rows + p.left_out
    parts = []
    if p.skipped:
        reasons = sorted(p.skipped.items(), key=lambda item: -item[1])
        rows = [[r, n.count(k), "" if n.hidden(k) else percent(k, whole)] for r, k in reasons]
        table = _table("Rows left out by reason", ["reason", "rows", "share"], rows)
        parts.append(_section("Rows left out", "", table))
    told = [q for q in _QUANTILES if n.tells(q, p.patients)]
    below = ""
    if told:
        shares = ["of patients", *(f"{100 * q:.0f} %" for q in told)]
        values = ["have at most so many events", *(f"{p.quantile(q):,}" for q in told)]
        below = _table("Events that a share of the patients does not exceed", shares, [values])
    patients, years = patients_by_events(p), events_by_year(p)
    said = "Patients by their number of events."
    parts.append(_plot("Events a patient", said, ("events", "patients"), patients, n, p.patients, below))
    said = "Distinct events by year, or by some years where there are many."
    parts.append(_plot("Events by year", said, ("year", "events"), years, n, p.events))
    parts.append(_systems(p, n))
    return parts


def _systems(p: Profile, n: Numbers) -> str:
    rows = []
    for s in p.systems:
        share = "" if n.hidden(s.events) else percent(s.events, p.events)
        covered = [n.part(s.anchored_codes, s.codes), n.part(s.anchored_events, s.events)]
        kept = [n.count(s.codes - s.codes_below), n.part(s.events - s.events_below, s.events)]
        rows.append(
            [s.prefix, f"{s.kind}, {s.category}", n.count(s.codes), n.count(s.events), share]
            + kept
            + (covered if s.kind == "local" else ["not needed", "not needed"])
        )
    columns = ["system", "kind", "codes", "events", "share of events", "codes over the floor", "their events"]
    table = _table("Code systems", [*columns, "anchored codes", "their events"], rows)
    return _section(
        "Code systems",
        f"Codes of fewer than {p.floor} patients are withheld. Local codes without an anchor are placed by what they occur "
        "with alone.",
        f'<div class="scroll" tabindex="0">{table}</div>',
    )


def _plot(
    title: str,
    said: str,
    columns: tuple[str, str],
    bars: Sequence[Bar],
    n: Numbers,
    whole: int,
    below: str = "",
) -> str:
    """A histogram beside the table of its numbers."""
    rows = []
    for bar in bars:
        if n.hidden(bar.patients):
            rows.append([bar.label, f"<{n.floor} patients", ""])
        elif bar.number:
            rows.append([bar.label, n.count(bar.number), percent(bar.number, whole)])
    if any(n.hidden(b.patients) for b in bars):
        said += " Dashed: too few patients to show."
    table = f'<div class="scroll" tabindex="0">{_table(title, [*columns, "share"], rows)}</div>'
    return _section(
        title, said, f'<div class="plot"><div>{_svg(title, said, bars, n)}{below}</div>{table}</div>'
    )


def _svg(title: str, said: str, bars: Sequence[Bar], n: Numbers) -> str:
    """A bar chart; what may not be shown is a dashed stub of no height's meaning."""
    shown = [0 if n.hidden(b.patients) else n.rounded(b.number) for b in bars]
    ticks = _ticks(max([*shown, 1]))
    high, width, height = ticks[-1], _WIDTH - _LEFT - 8, _HEIGHT - _TOP - _BOTTOM
    step, base = width / max(1, len(bars)), _HEIGHT - _BOTTOM
    gap = min(6.0, step * 0.2)
    marks = []
    for tick in ticks:
        y = base - height * tick / high
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    turned = step < 12 + 7 * max((len(bar.label) for bar in bars), default=0)
    every = max(1, -(-15 * len(bars) // width))  # turned labels need about 15 pixels each
    for i, (bar, value) in enumerate(zip(bars, shown, strict=True)):
        x, tip = _LEFT + i * step, f"{bar.label}: {n.count(bar.number)}"
        if n.hidden(bar.patients):
            tip = f"{bar.label}: too few patients to show"
            marks.append(_bar(x + gap / 2, base - 10, step - gap, 10, "few", tip))
        elif value:
            tall = max(1.0, height * value / high)
            marks.append(_bar(x + gap / 2, base - tall, step - gap, tall, "bar", tip))
        if not turned:
            marks.append(
                f'<text x="{x + step / 2:.1f}" y="{base + 18}" text-anchor="middle">{escape(bar.label)}</text>'
            )
        elif i % every == 0:
            at, low = x + step / 2 + 4, base + 12
            turn = f'transform="rotate(-40 {at:.1f} {low})"'
            marks.append(
                f'<text x="{at:.1f}" y="{low}" text-anchor="end" {turn}>{escape(_start(bar.label))}</text>'
            )
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}. {escape(said)} The table beside it has the '
        f'numbers."><title>{name}</title>{"".join(marks)}</svg>'
    )


def _bar(x: float, y: float, width: float, height: float, kind: str, tip: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}><title>{escape(tip)}</title></rect>'


def _ticks(largest: int) -> list[int]:
    """Three to six round numbers from 0 to one not below the largest."""
    power = 10 ** max(0, len(str(largest)) - 1)
    step = next(s for s in (power // 5, power // 2, power, 2 * power) if s and largest <= 5 * s)
    return list(range(0, -(-largest // step) * step + 1, step))


def _short(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return str(number)


def _start(label: str) -> str:
    """A range's beginning; the rest is clear from the next one's."""
    return label.partition("–")[0]


def _section(title: str, said: str, content: str) -> str:
    intro = f"<p>{escape(said)}</p>" if said else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{content}</section>"


def _head(columns: Iterable[str], numeric: Sequence[bool] = ()) -> str:
    cells = [
        f'<th scope="col"{_numeric(i < len(numeric) and numeric[i])}>{escape(c)}</th>'
        for i, c in enumerate(columns)
    ]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows; columns of numbers are set to the right."""
    numeric = [i > 0 and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = []
    for row in rows:
        cells = "".join(f"<td{_numeric(numeric[i])}>{escape(row[i])}</td>" for i in range(1, len(row)))
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    head = _head(columns, numeric)
    return f"<table><caption>{escape(caption)}</caption>{head}<tbody>{''.join(lines)}</tbody></table>"


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit() or text[0] in "<>" or text == "not needed"


def _numeric(yes: bool) -> str:
    return ' class="n"' if yes else ""
