"""What both command lines share: errors as sentences, progress bars, tables and JSON."""

from __future__ import annotations

import errno
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from protocol import logs
from protocol.errors import FederationError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_SECONDS_A_LINE = 10.0
# What a program cannot mend: no space, a quota, a disk that takes no writing or fails, too many open files.
_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})

Step = Callable[[str, float], None]


def run_app(app: typer.Typer) -> NoReturn:
    """Run a command line; a `FederationError` becomes one line on stderr and its exit code."""
    try:
        app()
    except FederationError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        where = f": {error.filename}" if error.filename else ""
        told = FederationError(
            "The machine could not go on",
            why=f"{error.strerror}{where}",
            do="Nothing is half-written; mend that and run the command again",
        )
        _complain(str(told))
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)
    sys.exit(0)


def _complain(text: str) -> None:
    """Why the command ends: for people, or as a line of a log that is JSON."""
    if logs.is_json():
        logging.getLogger("smile").error("%s", text)
        return
    err.print("error:", style="bold red", end=" ")
    err.print(text, markup=False)


def stop_event() -> threading.Event:
    """An event that SIGTERM and SIGINT set, so that services end their own processes first."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


def print_json(value: Any) -> None:
    """One JSON document on stdout, for machines."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """A table for people; numbers are set to the right."""
    out.print(grid_of(title, columns, rows))


def grid_of(title: str, columns: list[str], rows: list[list[Any]]) -> Table:
    """The table itself, for a display that changes."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for i, name in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows) and bool(rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_cell(v) for v in row))
    return grid


def shown(text: str, limit: int = 100) -> str:
    """Another party's text, fit for a terminal: no control, direction or format characters, no markup, one line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    return escape(plain if len(plain) <= limit else plain[: limit - 1] + "…")


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator[Step]:
    """A progress bar on stderr; the block calls the yielded function with a step's name and its share done."""
    if quiet or not err.is_terminal:
        yield _log_steps(quiet=quiet, title=title)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task, last = bar.add_task(title, total=1.0), [""]

        def step(name: str, share: float) -> None:
            if _kind(name) != last[0]:
                # What one step took says nothing of how long the next will take.
                last[0] = _kind(name)
                bar.reset(task, total=1.0)
            bar.update(task, description=f"{title}: {name}", completed=share)

        yield step


def _log_steps(*, quiet: bool, title: str) -> Step:
    """Without a terminal, each new step is one line, and one in ten seconds if only its figures change."""
    last, said = "", 0.0

    def step(name: str, _share: float) -> None:
        nonlocal last, said
        now = time.monotonic()
        if quiet or (_kind(name) == last and (name == last or now - said < _SECONDS_A_LINE)):
            return
        last, said = _kind(name), now
        err.print(f"{title}: {name}", markup=False)

    return step


def _kind(name: str) -> str:
    """A step's name without its figures."""
    return name.partition(":")[0]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
