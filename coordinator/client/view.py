"""What a notebook shows of a release: HTML in which every text of others is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from coordinator.report.text import safe_text

if TYPE_CHECKING:
    from coordinator.client.release import MapRelease, Translation


def release_html(release: MapRelease) -> str:
    """A table of what the release is."""
    m = release.manifest
    state = "signature holds" if release.verified else "<b>nobody checked who signed it</b>"
    rows = [
        ("study", _text(m.study.get("id", ""))),
        ("version", f"{m.version}, {m.created:%Y-%m-%d}, {state}"),
        ("codes", f"{m.codes:,} in {m.clusters:,} clusters"),
        ("sites", _text(", ".join(release.sites))),
        ("digest", f"<code>{_text(release.digest)}</code>"),
    ]
    return _table(rows)


def translation_html(found: Translation) -> str:
    """A table of one code's mapping."""
    target = f"{_text(found.target)} {_text(found.target_name)}" if found.target else "no standard code"
    how = "given" if found.given else f"found, probability {found.probability:.2f}"
    alternatives = ", ".join(f"{_text(c.code)} {_text(c.name)}".strip() for c in found.alternatives)
    rows = [
        ("code", f"{_text(found.code)} {_text(found.name)}"),
        ("standard code", target),
        ("how", how if found.target else ""),
        ("predicate", _text(found.predicate)),
        ("review", _text("; ".join(f"{r.verdict} {r.target or 'no standard code'}" for r in found.reviews))),
        ("alternatives", alternatives),
        ("sites", _text(", ".join(found.sites))),
    ]
    return _table((name, cell) for name, cell in rows if cell)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f"<tr><th style='text-align:left'>{n}</th><td style='text-align:left'>{c}</td></tr>" for n, c in rows
    )
    return f"<table>{body}</table>"


def _text(value: object) -> str:
    return escape(safe_text(value))
