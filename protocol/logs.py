"""What processes that run for long say of themselves: lines for people, or one JSON object a line.

The environment variable `SMILE_LOG_FORMAT` says which: `text`, or `json` with these members::

    time      UTC, ISO 8601, to the millisecond
    level     debug, info, warning, error or critical
    process   which program: coordinator-serve, fleet-proxy, site-agent, site-runner ...
    message   in words
    site, round   where it is about one
    error     {type, trace}: an exception's class, and file, line and function of each frame, the innermost last

Nothing of the data is in it. An exception's own text may quote a value and is left out, in both forms, so its place has to do;
a site's log also hides where its data lie. Everything goes to standard error: what a command reports is on standard output.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from protocol.errors import UsageError

FORMAT: Final = "SMILE_LOG_FORMAT"
"""Environment variable: text or json."""

_FRAMES: Final = 20
_LONGEST: Final = 2000
_PACKAGES: Final = Path(__file__).parents[1]
_ABOUT_ROUND: Final = re.compile(r"(?:^R|\bof r)ound ([a-z0-9-]{1,32})\b")

Failure = tuple[type[BaseException], BaseException, TracebackType | None]


def wanted() -> str:
    """`text` or `json`, as the environment says.

    Raises:
        UsageError: it says something else.
    """
    found = os.environ.get(FORMAT, "") or "text"
    if found not in {"text", "json"}:
        raise UsageError(f"SMILE_LOG_FORMAT is {found[:40]!r}", do="Set it to text or json, or leave it out")
    return found


def configure(process: str, *, site: str = "", hide: Iterable[str] = ()) -> None:
    """Send all that this process logs to standard error, warnings and exceptions that nobody caught too.

    Args:
        process: its name in each line.
        site: the site's name, at a site.
        hide: texts that no line may hold, such as where the data lie.

    Raises:
        UsageError: the environment names no format that there is.
    """
    hidden = tuple(sorted({text for text in hide if len(text) > 1}, key=len, reverse=True))
    form: _Form = (_Json if wanted() == "json" else _Text)(process, site, hidden)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(form)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # One line for each request would be all that a log holds, and its addresses are nobody's business.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda told: _uncaught(
        told.exc_type, told.exc_value or told.exc_type(), told.exc_traceback
    )


def speaker(say: Callable[[str], None]) -> Callable[[str], None]:
    """What a long-running command tells people: by `say`, or as lines of the log where that is JSON.

    Args:
        say: prints a sentence.
    """
    if not is_json():
        return say
    log = logging.getLogger("smile")
    return lambda text: log.info("%s", text)


def is_json() -> bool:
    """Whether this process was configured to log JSON."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.getLogger().handlers)


class _Form(logging.Formatter):
    """What both forms have in common."""

    def __init__(self, process: str, site: str, hidden: Sequence[str]) -> None:
        super().__init__()
        self.process, self.site, self._hidden = process, site, hidden

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The members of a line."""
        message = self.clean(record.getMessage())
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.process,
            "message": message,
        }
        if self.site:
            found["site"] = self.site
        about = getattr(record, "round", "") or (m[1] if (m := _ABOUT_ROUND.search(message)) else "")
        if about:
            found["round"] = about
        if record.exc_info and record.exc_info[0] is not None:
            found["error"] = error_of(record.exc_info)
        return found

    def clean(self, text: str) -> str:
        """In one line, without what is hidden: nobody who is quoted can begin a line of their own."""
        for hidden in self._hidden:
            text = text.replace(hidden, "(hidden)")
        text = "".join(c if c.isprintable() else " " for c in text[:_LONGEST])
        return " ".join(text.split())


class _Json(_Form):
    """One JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record))


class _Text(_Form):
    """One line; an exception's frames stand behind it."""

    def format(self, record: logging.LogRecord) -> str:
        found = self.fields(record)
        line = f"{found['time']} {found['level']} {self.process}: {found['message']}"
        if error := found.get("error"):
            line += f" [{error['type']} at {' < '.join(reversed(error['trace']))}]"
        return line


def error_of(failure: Failure) -> dict[str, Any]:
    """An exception's class and place, and nothing that it says."""
    kind, _, place = failure
    frames = [f"{_short(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_tb(place)]
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return {"type": name, "trace": frames[-_FRAMES:]}


def _short(file: str) -> str:
    """A source file without the folders above this software's, or above the installed packages."""
    path = Path(file)
    for above in (_PACKAGES, *(Path(p) for p in sys.path if p)):
        if path.is_relative_to(above):
            return str(path.relative_to(above))
    return path.name


def _uncaught(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, place)
        return
    logging.getLogger("smile").critical(
        "the process ends by an error that nobody foresaw", exc_info=(kind, error, place)
    )
