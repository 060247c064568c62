"""The report page of a release: one HTML file without script that asks the network for nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from coordinator.report import figures
from coordinator.report.data import SURE, QualityRow, ReportData, SiteFacts, SiteRelease, Summary, summarise
from coordinator.report.svg import COLOURS
from coordinator.report.text import safe_text, share

_MOST_WARNINGS: Final = 12
_FIRST_MEMBERS: Final = 5


def render(data: ReportData) -> str:
    """The page as HTML text; the same data give the same text.

    Text of other parties is shortened, freed of invisible characters and escaped; the page's content
    security policy forbids scripts and every request.
    """
    summary = summarise(data)
    bound = figures.bound_history(data.fit.history)
    return (
        _environment()
        .get_template("template.html.j2")
        .render(
            data=data,
            summary=summary,
            answer=_answer(summary),
            tiles=_tiles(summary),
            absent=[site for site in data.sites if site.release is None],
            rows=[_site_row(site) for site in data.sites],
            sum_notes=[
                site.name
                for site in data.sites
                if site.release is not None and not _adds_up(site.release, data.floors.margin_rounding)
            ],
            quality_rows=_quality_rows(data.quality.rows) if data.quality is not None else [],
            warnings=data.fit.warnings[:_MOST_WARNINGS],
            more_warnings=max(0, len(data.fit.warnings) - _MOST_WARNINGS),
            kept=figures.kept_and_withheld(data.sites),
            embedding_map=figures.embedding_map(data.codes, data.sites),
            coverage=figures.coverage(data.codes, data.sites),
            sizes=figures.cluster_sizes(data.codes),
            posterior=figures.posterior_histogram(data.codes),
            audit=figures.site_recognised(data.audit.lines) if data.audit.lines else None,
            audited=figures.AUDITED,
            bound=bound,
            review=data.reviewed,
            first_members=_FIRST_MEMBERS,
            colours=COLOURS,
            sure=SURE,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        text=safe_text,
        number=_number,
        share=share,
        grouped=_grouped,
        # The drawings are this package's own and escape their texts themselves.
        drawn=lambda drawing: Markup(drawing.svg),  # noqa: S704
    )
    return environment


@dataclass(frozen=True)
class _Tile:
    value: str
    label: str
    note: str


@dataclass(frozen=True)
class _Cell:
    """A table cell: its column's name for narrow screens, its words, and how to show them."""

    column: str
    text: str
    kind: str = ""


@dataclass(frozen=True)
class _SiteRow:
    site: SiteFacts
    cells: tuple[_Cell, ...]


@dataclass(frozen=True)
class _QualityLine:
    row: QualityRow
    cells: tuple[_Cell, ...]


def _answer(s: Summary) -> str:
    """The report in one sentence."""
    text = f"{_count(s.n_codes, 'code')} of {_count(s.n_sites, 'site')} "
    text += f"{'was' if s.n_codes == 1 else 'were'} mapped into {_count(s.n_clusters, 'cluster')}"
    if s.expected is None:
        return text + "."
    placed = f"the {_count(s.n_free, 'code')} that the fit placed" if s.n_anchored else "them"
    return f"{text}; of {placed}, {share(s.expected)} are expected to be right."


def _tiles(s: Summary) -> list[_Tile]:
    standard = s.n_with_target / s.n_codes if s.n_codes else None
    withheld = "–" if s.n_withheld is None else _number(s.n_withheld) if s.n_withheld else "none"
    note = "not stated" if s.n_withheld is None else "too few patients; summed over sites"
    return [
        _Tile(_number(s.n_codes), "codes mapped", f"{_number(s.n_anchored)} of them given before the fit"),
        _Tile(_number(s.n_clusters), "clusters", f"{_number(s.n_alone)} of them hold one code only"),
        _Tile(_number(s.n_shared), "clusters across sites", "with codes of two sites or more"),
        _Tile(
            "–" if standard is None else share(standard),
            "of codes have a standard code",
            f"{_number(s.n_with_target)} codes",
        ),
        _Tile(
            "–" if s.expected is None else share(s.expected),
            "of placed codes expected right",
            "their mean probability",
        ),
        _Tile(withheld, "codes withheld by sites", note),
    ]


def _site_row(site: SiteFacts) -> _SiteRow:
    r = site.release
    if r is None:
        return _SiteRow(site, ())
    kept = r.mass_kept if r.mass_kept is not None and 0 <= r.mass_kept <= 1 else None
    return _SiteRow(
        site,
        (
            _cell("Patients (rounded)", r.n_patients),
            _cell("Codes seen", r.codes_seen),
            _cell("Codes released", r.codes_released),
            _withheld("Codes withheld", r.codes_suppressed),
            _withheld("Codes lost without a pair", r.codes_without_pairs),
            _cell("Pairs released", r.pairs_released),
            _withheld("Pairs withheld", r.pairs_suppressed),
            _Cell("Co-occurrences kept", share(kept), "" if kept is not None else "unknown"),
            _cell("Anchors", r.anchors),
            _cell("Dimensions", r.embedding_dim),
            _Cell("Sent", _bytes(r.bytes_sent), "" if r.bytes_sent is not None else "unknown"),
        ),
    )


def _cell(column: str, value: int | None) -> _Cell:
    return _Cell(column, _number(value), "unknown" if value is None else "")


def _withheld(column: str, value: int | None) -> _Cell:
    """A count of what stayed at the site: never a bare zero, never a bare number."""
    if value is None:
        return _Cell(column, "not stated", "unknown")
    return _Cell(column, _number(value), "withheld") if value else _Cell(column, "none", "nothing")


def _adds_up(r: SiteRelease, rounding: int) -> bool:
    """Whether the codes released, withheld and lost are the codes seen, as far as the site stated them."""
    parts = (r.codes_released, r.codes_suppressed, r.codes_without_pairs)
    stated = [part for part in parts if part is not None]
    return r.codes_seen is None or len(stated) < len(parts) or abs(sum(stated) - r.codes_seen) <= 2 * rounding


def _quality_rows(rows: tuple[QualityRow, ...]) -> list[_QualityLine]:
    """Scores as words; the best of each column is marked."""
    columns = (("AMI", "ami"), ("hits@1", "hits1"), ("hits@5", "hits5"))
    best = {}
    for _, name in columns:
        values = [v for v in (getattr(row, name) for row in rows) if v is not None and math.isfinite(v)]
        best[name] = max(values, default=None)
    lines = []
    for row in rows:
        cells = []
        for title, name in columns:
            value, error = getattr(row, name), getattr(row, f"{name}_se")
            kind = "best" if value is not None and value == best[name] and len(rows) > 1 else ""
            cells.append(_Cell(title, _score(value, error), kind))
        lines.append(_QualityLine(row, tuple(cells)))
    return lines


def _score(value: float | None, error: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not measured"
    return f"{value:.3f}" if error is None or not math.isfinite(error) else f"{value:.3f} ± {error:.3f}"


def _number(value: int | None) -> str:
    return "not stated" if value is None else f"{value:,}"


def _count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def _bytes(value: int | None) -> str:
    if value is None:
        return "not stated"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def _grouped(digest: str) -> str:
    """A digest in groups of eight, to be compared by eye."""
    plain = safe_text(digest, 160)
    return " ".join(plain[i : i + 8] for i in range(0, len(plain), 8))
