"""Copies of folders with databases that somebody may still have open."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

_DATABASE = ".db"


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a folder; its SQLite databases by SQLite itself.

    A connection that is collected in this moment folds its write-ahead log into the database and removes the log, so that
    a plain copy would miss what it saw a moment ago, or half of what was written.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(f"*{_DATABASE}", f"*{_DATABASE}-*"))
    for path in source.rglob(f"*{_DATABASE}"):
        copy = target / path.relative_to(source)
        with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(copy)) as other:
            one.backup(other)
        copy.chmod(path.stat().st_mode & 0o777)
    return target
