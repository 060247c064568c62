"""From a template and values to an HTML answer: the environment, the filters and what every page shows."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from coordinator.library import Library, Version
from coordinator.report.text import safe_text, share
from coordinator.web.access import csrf_token, current_person
from coordinator.web.pages import words
from coordinator.web.reading import Reading

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"


def render(request: Request, template: str, *, reading: Reading | None = None, **values: Any) -> HTMLResponse:
    """A page; `reading`, where given, is the release that it speaks of, and the one that its links lead to."""
    library: Library = request.app.state.library
    person = current_person(request)
    version = reading.version if reading else None
    shared = {
        "study": library.home.study,
        "latest": next(
            (v for v in reversed(request.app.state.known_versions.now()) if v.withdrawn is None), None
        ),
        "version": version,
        "release": reading.release if reading else None,
        "person": person,
        "csrf": csrf_token(request) if person else "",
        "assets": assets(),
        "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
        "q": "",
    }
    return HTMLResponse(environment().get_template(template).render(shared | values))


@cache
def environment() -> Environment:
    """Jinja with autoescape: no value reaches a page unescaped."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        bytes=in_bytes,
        count=count,
        day=day,
        figure=figure,
        number=lambda value: f"{value:,}",
        share=share,
        signed=signed,
        text=shown,
        grouped=lambda digest: " ".join(digest[i : i + 8] for i in range(0, len(digest), 8)),
    )
    made.globals.update(url=url, concept_url=concept_url, words=words)
    return made


@cache
def assets() -> str:
    """Where style and scripts lie: a path that changes when they do, so that a browser may keep them for ever."""
    content = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"/static/{content.hexdigest()[:12]}"


def url(version: Version | int, path: str = "", /, **query: Any) -> str:
    """A page of a version; parameters that are empty are left out."""
    number = version if isinstance(version, int) else version.number
    given = {k: v for k, v in query.items() if v not in ("", None, (), [])}
    tail = f"?{urlencode(given, doseq=True)}" if given else ""
    return f"/v/{number}" + (f"/{path}" if path else "") + tail


def concept_url(version: Version | int, code: str) -> str:
    """The permanent address of a code in a version."""
    return url(version, f"concept/{quote(code, safe=':')}")


def shown(text: object, limit: int = 160) -> str:
    """Text of another party in one line, without invisible characters, at most `limit` long."""
    plain = safe_text(text, limit)
    # The report guards what people copy into spreadsheets; here the apostrophe would read as part of a name.
    return plain[1:] if plain[:1] == "'" and str(text).lstrip()[:1] != "'" else plain


def figure(value: float, digits: int = 2) -> str:
    """A number with a true minus sign, or a dash."""
    return f"{value:.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign; what rounds to nothing has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(text.replace("−", "-")) == 0 else text


def count(value: int, noun: str, plural: str = "") -> str:
    """`1 code`, `2 codes`."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def day(moment: datetime) -> str:
    """A day as people of every country read it alike."""
    return f"{moment.day} {moment:%B %Y}"


def in_bytes(size: int) -> str:
    """A file's size."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= step:
            return f"{size / step:.1f} {unit}"
    return f"{size} bytes"
