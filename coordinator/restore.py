"""From a backup to a home folder, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import tomllib
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import URL

from coordinator.backup import INDEX, TREE, Backup
from coordinator.config import Home
from coordinator.database import parse_url, sqlite_file
from coordinator.dumps import DUMPS, check_empty, copy_sqlite, restore_postgresql
from coordinator.migrations import REVISIONS
from protocol.canonical import file_digest
from protocol.console import Step
from protocol.errors import FederationError, UsageError
from protocol.files import copy_atomic, sync_folder, write_atomic
from protocol.study import validation_reasons


def read_backup(source: Path) -> Backup:
    """What a backup says of itself.

    Raises:
        UsageError: the folder is no backup.
        FederationError: a newer program made it.
    """
    try:
        found = Backup.model_validate_json((source / INDEX).read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{source} is no backup", why=f"it has no {INDEX}") from None
    except ValidationError as error:
        raise UsageError(f"{source / INDEX} is not valid", why=validation_reasons(error)) from None
    if found.revision not in REVISIONS:
        raise FederationError(
            f"The backup {source} has a database of revision {found.revision}, and this program knows up to {REVISIONS[-1]}",
            why=f"{found.software} made it",
            do="Upgrade smile-federation on this machine first",
        )
    return found


def restore(
    source: Path, folder: Path, *, database: str = "", progress: Step = lambda _name, _share: None
) -> Backup:
    """Make a home folder from a backup, whole or not at all.

    Args:
        source: the backup.
        folder: the new home; missing, or empty.
        database: URL of an empty database in place of the one in `coordinator.toml`.
        progress: told what is copied, and the share that is done.

    Raises:
        UsageError: it is no backup, or home or database are not empty.
        FederationError: a file of it is missing, altered or not listed, or the home cannot be written.
    """
    found, folder = read_backup(source), folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"The folder {folder} is not empty", do="Name a new folder")
    _check_listed(source, found)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        try:
            _copy_files(source, found, work, progress)
            url = _database_of(work, folder, database, found)
            progress("database", 1.0)
            outside = _fill(source, found, url, work=work, folder=folder)
            os.sync()
            if folder.exists():
                folder.rmdir()
            try:
                work.rename(folder)
            except OSError:
                if outside is not None:
                    outside.unlink()
                raise
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise FederationError(
            f"The home folder {folder} cannot be written",
            why=error.strerror or str(error),
            do="Nothing was left there; check rights and room on its disk",
        ) from None
    return found


def _check_listed(source: Path, found: Backup) -> None:
    """Nothing is missing, and nothing was added."""
    listed = {INDEX, DUMPS[found.database], *(f"{TREE}/{f.path}" for f in found.files)}
    there = {p.relative_to(source).as_posix() for p in source.rglob("*") if not p.is_dir() or p.is_symlink()}
    for name in sorted(listed ^ there):
        raise _damaged(source, name, "missing" if name in listed else "not listed")
    if file_digest(source / DUMPS[found.database]) != found.database_sha256:
        raise _damaged(source, DUMPS[found.database], "altered")


def _copy_files(source: Path, found: Backup, work: Path, progress: Step) -> None:
    """Each file is digested as it is read; none can be used before all hold."""
    for entry in found.folders:
        (work / entry.path).mkdir(mode=0o700)
    for number, entry in enumerate(found.files):
        progress(f"files: {number + 1:,} of {len(found.files):,}", number / len(found.files))
        copy_atomic(source / TREE / entry.path, work / entry.path, mode=entry.mode)
        if file_digest(work / entry.path) != entry.sha256:
            raise _damaged(source, f"{TREE}/{entry.path}", "altered")
        os.utime(work / entry.path, ns=(entry.mtime_ns, entry.mtime_ns))
    for entry in reversed(found.folders):
        (work / entry.path).chmod(entry.mode)


def _database_of(work: Path, folder: Path, database: str, found: Backup) -> URL:
    """Where the database goes; a database of the configuration's own must be empty.

    Raises:
        UsageError: it is not, or is of the other kind.
    """
    if database:
        _name_database(work / "coordinator.toml", parse_url(database))
    url = parse_url(Home(work).config.database or f"sqlite:///{folder / 'coordinator.db'}")
    if (url.get_backend_name() == "sqlite") != (found.database == "sqlite"):
        raise UsageError(
            f"The backup holds a database of {found.database}",
            do="Name an empty one of that kind with --database",
        )
    check_empty(url)
    return url


def _name_database(path: Path, url: URL) -> None:
    plain, before = path.read_text(encoding="utf-8"), tomllib.loads(path.read_text(encoding="utf-8"))
    line = (
        f'database = "{url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)}"\n'
    )
    without = re.sub(r"^\s*database\s*=.*\n?", "", plain, count=1, flags=re.MULTILINE)
    changed = line + without
    try:
        after = tomllib.loads(changed)
    except tomllib.TOMLDecodeError:
        after = {}
    if {**before, "database": None} != {**after, "database": None}:
        raise UsageError(
            "database in coordinator.toml of the backup cannot be replaced",
            do="Restore without --database, into the one that it names",
        )
    write_atomic(path, changed)


def _fill(source: Path, found: Backup, url: URL, *, work: Path, folder: Path) -> Path | None:
    """Put the database where it belongs; returns its file if that lies outside of the home."""
    dump, file = source / DUMPS[found.database], sqlite_file(url)
    if file is None:
        restore_postgresql(url, dump)
        return None
    own = file.is_relative_to(folder)
    target = work / file.relative_to(folder) if own else file
    target.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    copy_sqlite(dump, target)
    return None if own else file


def _damaged(source: Path, name: str, how: str) -> FederationError:
    return FederationError(
        f"The file {name} of the backup {source} is {how}",
        why="it is not what backup.json says",
        do="Use another copy of this backup, or an earlier one; nothing was restored",
    )
