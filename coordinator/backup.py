"""A copy of the whole home folder, made while its programs run: database, keys, rounds, releases, configuration.

    TO/backup.json        `Backup`: every file with its SHA-256
    TO/database.sqlite    the database, by SQLite's own backup; or database.pgdump, by pg_dump
    TO/home/              the other files

The database is copied first. Files appear before the rows that name them, and none is changed afterwards, so that all that
the copied rows name is among the files that are copied next. What goes the other way is watched for: a withdrawal erases
files, a change of keys replaces them. If one came between, everything is copied again. The review log is the exception:
its file in the home says how long the log was, and is copied before the log.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.config import Home
from coordinator.database import parse_url, sqlite_file
from coordinator.dumps import DUMPS, Kind, copy_sqlite, dump
from coordinator.migrations import HEAD
from coordinator.store import Store
from coordinator.tables import Published, Round, Site, Submission
from coordinator.version import SOFTWARE
from protocol.canonical import digest, file_digest
from protocol.console import Step
from protocol.errors import FederationError, UsageError
from protocol.files import sync_folder, write_atomic
from protocol.keys import key_file_public
from protocol.published import MANIFEST

INDEX, TREE = "backup.json", "home"
_FIRST = "review-head.json"
_TRIES = 3
_NOT_NEEDED = frozenset({"running.lock", "services.json", "superexec.secret"})
_PASSING = (".lock", ".part", ".db-wal", ".db-shm", ".db-journal")
_SQLITE = b"SQLite format 3\0"


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or not parts.parts or ".." in parts.parts or str(parts) != path:
        raise ValueError("no path inside of the home folder")
    return path


class Entry(BaseModel):
    """A file or folder of the home."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, AfterValidator(_inside)]
    mode: int = Field(ge=0, le=0o777)
    mtime_ns: int = Field(0, description="An envelope is held against its expiry at the time when it came.")
    size: int = Field(0, ge=0)
    sha256: str = Field("", description="Empty for a folder.")


class Backup(BaseModel):
    """What `backup.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["smile-backup/1"] = "smile-backup/1"
    created: datetime
    software: str
    study: str
    study_digest: str
    database: Kind
    revision: str = Field(description="Of the database.")
    database_sha256: str
    passphrase: bool = Field(description="Whether the private keys open with a passphrase only.")
    sites: dict[str, int] = Field(description="Number of each site's last accepted release.")
    rounds: dict[str, str] = Field(description="State of each round.")
    versions: int = Field(description="Number of the last published version; 0 for none.")
    missing: tuple[str, ...] = Field(
        description="Files that the database names and the home has not, or not as they were accepted."
    )
    outside: tuple[str, ...] = Field(description="What the home refers to outside of itself; not copied.")
    folders: tuple[Entry, ...]
    files: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all files but the database."""
        return sum(f.size for f in self.files)


@dataclass
class _Told:
    """What the copied database says, read from the same snapshot."""

    sites: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, str] = field(default_factory=dict)
    versions: int = 0
    named: dict[str, str] = field(default_factory=dict)
    """Path in the home -> SHA-256, or "" where any content will do."""


def make_backup(home: Home, target: Path, *, progress: Step = lambda _name, _share: None) -> Backup:
    """Copy a home folder, whole or not at all; its programs may go on meanwhile.

    Args:
        home: of the coordinator.
        target: a new folder, outside of the home.
        progress: told what is copied, and the share that is done.

    Raises:
        UsageError: the target exists, or lies in the home.
        FederationError: the copy cannot be written, or pg_dump is missing, or the home changes all the time.
    """
    target = target.absolute()
    if target.exists():
        raise UsageError(f"{target} exists already", do="Name a new folder; a backup never overwrites one")
    if target.resolve().is_relative_to(home.folder.resolve()):
        raise UsageError(f"{target} lies in the home folder itself", do="Name a folder on another disk")
    store = Store(home.database_url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for turn in range(1, _TRIES + 1):
            work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
            try:
                before = _marks(home, store)
                found = _copy(home, store, work, progress)
                if not _kept(before, _marks(home, store)) or (_lost(home, found) and turn < _TRIES):
                    continue
                write_atomic(work / INDEX, found.model_dump_json(indent=1) + "\n")
                os.sync()
                work.rename(target)
                sync_folder(target.parent)
                return found
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise FederationError(
            f"The backup {target} cannot be written",
            why=error.strerror or str(error),
            do="Nothing was left there; check rights and room on its disk",
        ) from None
    raise FederationError(
        f"No backup was made in {_TRIES} attempts",
        why="keys were changed, or a site withdrew, while files were copied",
        do="Run it again when that has ended",
    )


def _copy(home: Home, store: Store, work: Path, progress: Step) -> Backup:
    """Everything but the index; `missing` holds what the database names and the copy has not."""
    tree = work / TREE
    tree.mkdir(mode=0o700)
    told, first = _Told(), home.folder / _FIRST
    early = _copy_file(first, tree / _FIRST, _FIRST) if first.exists() else None
    progress("database", 0.0)
    url = parse_url(home.database_url)
    kind: Kind = "sqlite" if sqlite_file(url) else "postgresql"
    dump(url, work / DUMPS[kind], lambda session: _read(session, told))
    files, folders, outside = [early] if early else [], [], _outside(home)
    paths = list(_walk(home, outside))
    for number, path in enumerate(paths):
        name = path.relative_to(home.folder).as_posix()
        try:
            if path.is_dir():
                (tree / name).mkdir(mode=0o700)
                folders.append(Entry(path=name, mode=path.stat().st_mode & 0o777))
            else:
                progress(f"files: {number + 1:,} of {len(paths):,}", number / len(paths))
                files.append(_copy_file(path, tree / name, name))
        except FileNotFoundError:
            continue  # it was replaced or erased meanwhile; if that mattered, it is found out below
    copied = {f.path: f.sha256 for f in files}
    missing = [p for p, sha256 in told.named.items() if p not in copied or (sha256 and copied[p] != sha256)]
    return Backup(
        created=datetime.now(UTC).replace(microsecond=0),
        software=SOFTWARE,
        study=home.study.id,
        study_digest=home.study.digest,
        database=kind,
        revision=HEAD,
        database_sha256=file_digest(work / DUMPS[kind]),
        passphrase=key_file_public(home.identity.key) is not None,
        sites=told.sites,
        rounds=told.rounds,
        versions=told.versions,
        missing=tuple(sorted(missing)),
        outside=tuple(sorted(outside)),
        folders=tuple(folders),
        files=tuple(files),
    )


def _copy_file(source: Path, target: Path, name: str) -> Entry:
    """Copy a file and digest what was written; a SQLite database by SQLite."""
    status, state, size = source.stat(), hashlib.sha256(), 0
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600))
    with source.open("rb") as data, target.open("wb") as copy:
        start = data.read(len(_SQLITE))
        data.seek(0)
        if start != _SQLITE:
            while chunk := data.read(1 << 20):
                copy.write(chunk)
                state.update(chunk)
                size += len(chunk)
    if start == _SQLITE:
        copy_sqlite(source, target)
        size, sha256 = target.stat().st_size, file_digest(target)
    else:
        sha256 = state.hexdigest()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return Entry(
        path=name, mode=status.st_mode & 0o777, mtime_ns=status.st_mtime_ns, size=size, sha256=sha256
    )


def _walk(home: Home, outside: list[str]) -> Iterator[Path]:
    """Folders and files to copy, each folder before what it holds."""
    database = sqlite_file(parse_url(home.database_url))
    for folder, folders, names in os.walk(home.folder):
        here = Path(folder)
        folders[:] = sorted(n for n in folders if not n.startswith(".part-"))
        for name in list(folders):
            if (here / name).is_symlink():
                folders.remove(name)
                outside.append(str(here / name))
        if here != home.folder:
            yield here
        for name in sorted(names):
            path = here / name
            if path.is_symlink():
                outside.append(str(path))
            elif (
                not _left_out(home, path) and path not in {database, home.folder / _FIRST} and path.is_file()
            ):
                yield path


def _left_out(home: Home, path: Path) -> bool:
    """What a home makes anew when its programs start."""
    if path.name in _NOT_NEEDED or path.name.startswith(".part-") or path.name.endswith(_PASSING):
        return True
    return path.parent == home.flower and path.suffix == ".log"


def _outside(home: Home) -> list[str]:
    named = (home.config.knowledge, home.config.titles, home.config.text_model)
    places = [(home.folder / n).resolve() for n in named if n]
    return [str(p) for p in places if not p.is_relative_to(home.folder.resolve())]


def _read(session: Session, told: _Told) -> None:
    told.sites = dict(session.execute(select(Site.name, Site.accepted_sequence).order_by(Site.name)).all())
    told.rounds = dict(session.execute(select(Round.name, Round.state).order_by(Round.name)).all())
    told.named = {
        f"rounds/{s.round}/received/{s.site}.sealed": s.envelope_digest
        for s in session.scalars(select(Submission).where(Submission.state == "accepted"))
        if s.envelope_digest and told.rounds[s.round] != "aborted"
    }
    for version, erased in session.execute(select(Published.version, Published.erased)):
        told.versions = max(told.versions, version)
        if not erased:
            told.named[f"releases/v{version}/{MANIFEST}"] = ""


def _marks(home: Home, store: Store) -> dict[str, str]:
    """What changes when files are taken away from rows: keys, calls, the steps of withdrawals."""
    keys = [p for p in home.identity.key.parent.rglob("*.key") if p.is_file()]
    marks = {str(p): file_digest(p) for p in (*keys, home.folder / "invitation.json")}
    marks |= {f"call {r.name}": digest(r.call) for r in store.rounds()}
    return marks | {"withdrawals": str([(w.id, w.step) for w in store.withdrawals()])}


def _kept(before: dict[str, str], after: dict[str, str]) -> bool:
    """Nothing was taken away; what is new, a round that was opened meanwhile, does no harm."""
    return before.items() <= after.items()


def _lost(home: Home, found: Backup) -> bool:
    """Whether the copy lacks what the home has: it was replaced between the database and the files."""
    return any((home.folder / path).exists() for path in found.missing)
