"""Files as answers: strong ETags, conditions, and ranges (RFC 9110), so that a download can be resumed and never mixed."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from coordinator.web.problems import ServiceError

_CHUNK = 256 << 10
_RANGE = re.compile(r"bytes=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*")


@dataclass(frozen=True)
class Download:
    """A file whose content is known.

    Attributes:
        path: where it lies.
        name: under which it is saved.
        size: bytes.
        sha256: of its content, in hex.
        media_type: of its content.
    """

    path: Path
    name: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"


def send_file(request: Request, file: Download) -> Response:
    """The file, a part of it, or that the sender has it.

    One range is answered with 206; several at once with the whole file, as the standard allows.

    Raises:
        ServiceError: 412, 416, or 503 if the file is not what it was.
    """
    etag = f'"{file.sha256}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "content-disposition": _saved_as(file.name),
        "repr-digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",
    }
    given = request.headers
    if "if-match" in given and not _names(given["if-match"], etag, weak=False):
        raise ServiceError(
            412, f"{file.name} has another ETag", do="Fetch it from the start", headers=headers
        )
    if "if-none-match" in given and _names(given["if-none-match"], etag, weak=True):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, file.size, 200
    # A part is good only for whoever has the rest of the same content.
    same = given.get("if-range", etag) == etag
    if same and (part := _range(given.get("range", ""), file.size, headers)):
        start, end, status = *part, 206
        headers["content-range"] = f"bytes {start}-{end - 1}/{file.size}"
    headers["content-length"] = str(end - start)
    if getattr(request.state, "head", False):
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    stream = _bytes(file, start, end)
    return StreamingResponse(stream, status_code=status, headers=headers, media_type=file.media_type)


def _range(text: str, size: int, headers: dict[str, str]) -> tuple[int, int] | None:
    """Start and end of one range of bytes; None if there is none, or several, or what is there means nothing."""
    found = _RANGE.fullmatch(text)
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise ServiceError(
            416,
            f"The file has {size:,} bytes, none of them in the range",
            headers={"content-range": f"bytes */{size}", "etag": headers["etag"]},
        )
    return start, end


def _bytes(file: Download, start: int, end: int) -> Iterator[bytes]:
    with file.path.open("rb") as stream:
        stream.seek(start)
        while start < end:
            data = stream.read(min(_CHUNK, end - start))
            if not data:
                # The answer then ends before its promised length, which the receiver sees.
                raise ServiceError(503, f"{file.name} is shorter than it was")
            start += len(data)
            yield data


def _names(field: str, etag: str, *, weak: bool) -> bool:
    listed = [e.strip() for e in field.split(",")]
    if weak:
        listed = [e.removeprefix("W/") for e in listed]
    return "*" in listed or etag in listed


def _saved_as(name: str) -> str:
    # Names are of the release format or ours; a browser must not show the file as a page of this service.
    return f"attachment; filename*=utf-8''{urllib.parse.quote(name, safe='')}"
