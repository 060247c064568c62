"""Cursors of lists: where a page ends in one version, under one set of filters."""

from __future__ import annotations

import base64
import hashlib
import json

from coordinator.web.problems import ServiceError


def write_cursor(digest: str, filters: object, last: str) -> str:
    """What `next` says.

    Args:
        digest: of the version, which never changes; so a list neither skips nor repeats anything.
        filters: that the list was made with.
        last: key of the page's last item.
    """
    data = f"{_mark(digest, filters)}{last}".encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_cursor(cursor: str, digest: str, filters: object) -> str:
    """The key after which the page begins.

    Raises:
        ServiceError: 422, it is no cursor of this list.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        text = ""
    mark = _mark(digest, filters)
    if not text.startswith(mark):
        raise ServiceError(
            422,
            "The cursor is not one of this list",
            why="it belongs to another version, to other filters, or was altered",
            do="Begin at the first page, without a cursor; name the version by its number rather than as latest",
        )
    return text.removeprefix(mark)


def _mark(digest: str, filters: object) -> str:
    return hashlib.sha256(f"{digest} {json.dumps(filters)}".encode()).hexdigest()[:12]
