"""The exchange folder: the only place of a site that its Flower processes can see.

The agent puts sealed files, states and receipts in; the Flower side puts calls and parts of
results in. What lies here is sealed, signed or public, so the Flower side, which talks to the
network, may run as another user of the machine who shares nothing but this folder's group.

    calls/SHA256.json       signed calls of the coordinator        written by the Flower side
    calls/.heard            empty: its time says when the coordinator last asked something
    status/ROUND.json       what the site says of a round          written by the agent
    sealed/SHA256.sealed    sealed releases, ready to be fetched   written by the agent
    results/SHA256.part     a result under way                     written by the Flower side
    results/SHA256.sealed   a whole result, its digest checked     written by the Flower side
    sums/                   the same folders for secure sums: signed messages and masked vectors
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from protocol.canonical import digest, file_digest
from protocol.errors import ProtocolError, RoundError
from protocol.files import sync_folder, write_atomic
from protocol.messages import Message, RoundCall
from protocol.sections import Identifier
from protocol.signed import parse, peek
from protocol.vocabulary import IDENTIFIER

MAX_CALL = 64 << 10
MAX_CALLS = 16
MAX_BLOCK = 32 << 20
MAX_RESULT = 4 << 30
MAX_RESULTS = 4

_HEX = re.compile(r"[0-9a-f]{64}")
_AGENT_FOLDERS = ("status", "sealed")
_FLOWER_FOLDERS = ("calls", "results")
# The group reads what the other side wrote; the set-group-ID bit hands the group on to new files.
_AGENT_MODE, _FLOWER_MODE, _FILE_MODE = 0o2750, 0o2770, 0o640
_HEARD = ".heard"

State = Literal["unknown", "preparing", "awaiting-approval", "sealed", "refused", "delivered"]


class SiteStatus(Message):
    """What a site says of a round: all that the coordinator learns before the sealed file itself."""

    round: Identifier
    state: State
    detail: str = Field("", max_length=2000, description="For people.")
    sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="Of the site's sealed file (sealed), or of the result or material that it speaks of.",
    )
    size: int = Field(0, ge=0, description="Bytes of that file.")
    receipt: str = Field("", max_length=16 << 10, description="Signed JSON, opaque to the transport.")


class Exchange:
    """The folder's two sides; every method leaves the folder whole if it fails.

    Args:
        root: the folder; it is made where it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not root.is_dir():
            root.mkdir(parents=True)
            root.chmod(_AGENT_MODE)
        for names, mode in ((_AGENT_FOLDERS, _AGENT_MODE), (_FLOWER_FOLDERS, _FLOWER_MODE)):
            for name in names:
                folder = root / name
                if not folder.is_dir():
                    folder.mkdir()
                    folder.chmod(mode)

    @cached_property
    def sums(self) -> Exchange:
        """The room of secure sums; what one agent waits for is never taken by the other."""
        return Exchange(self.root / "sums")

    # --- Flower side -----------------------------------------------------------------------------------

    def put_call(self, data: bytes) -> None:
        """Keep a call for the agent; the same bytes again change nothing.

        Raises:
            ProtocolError: more than 64 KiB.
            RoundError: 16 calls wait already.
        """
        if len(data) > MAX_CALL:
            raise ProtocolError(f"A call of {len(data)} bytes is refused", why=f"the limit is {MAX_CALL}")
        path = self.root / "calls" / f"{digest(data)}.json"
        if path.exists():
            return
        if len(_regular(path.parent, ".json")) >= MAX_CALLS:
            raise RoundError(
                "The site takes no further call",
                why=f"{MAX_CALLS} calls wait for its agent",
                do="Ask the site to run its agent",
            )
        write_atomic(path, data, mode=_FILE_MODE)

    def note_heard(self) -> None:
        """The coordinator has asked something; when it did last is the time of a file that holds nothing."""
        with contextlib.suppress(OSError):  # a full disk must not keep the answer back
            (self.root / "calls" / _HEARD).touch(mode=_FILE_MODE)

    def status(self, round_id: str) -> SiteStatus | None:
        """What the agent last said of a round.

        Raises:
            ProtocolError: the identifier, or the file, is not valid.
        """
        path = self._status_path(round_id)
        try:
            return parse(path.read_bytes(), SiteStatus)
        except FileNotFoundError:
            return None

    def read_block(self, sha256: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a sealed file from `offset` on; empty at its end.

        Raises:
            ProtocolError: not a digest, not such a range, or more than 32 MiB.
            RoundError: there is no such file.
        """
        if offset < 0 or not 0 < size <= MAX_BLOCK:
            raise ProtocolError(f"A block of {size} bytes at {offset} cannot be read")
        try:
            stream = _open_regular(self.root / "sealed" / f"{_checked(sha256)}.sealed", os.O_RDONLY)
        except OSError:
            raise RoundError(f"The site holds no sealed file {sha256[:12]}") from None
        try:
            return os.pread(stream, size, offset)
        finally:
            os.close(stream)

    def put_result_block(self, sha256: str, total: int, offset: int, data: bytes) -> int:
        """Append a block of a result and say how many bytes are held.

        Only a block that begins where the held bytes end is written. Any other, an empty one too,
        changes nothing, so the answer tells a sender where to go on. Beginning another result drops
        an unfinished one.

        Raises:
            ProtocolError: not a digest, a size beyond the limits, or the whole has another digest.
            RoundError: four results wait for the agent.
        """
        final = self.root / "results" / f"{_checked(sha256)}.sealed"
        if final.exists():
            return final.stat().st_size
        if not 0 < total <= MAX_RESULT or len(data) > MAX_BLOCK or offset < 0 or offset + len(data) > total:
            raise ProtocolError(f"A block of {len(data)} bytes at {offset} of {total} is refused")
        part = final.with_suffix(".part")
        if not part.exists():
            self._make_room(final.parent)
        descriptor = _open_regular(part, os.O_RDWR | os.O_CREAT)
        try:
            held = os.fstat(descriptor).st_size
            if offset == held and data:
                _append(descriptor, held, data)
                held += len(data)
            if held >= total:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if held >= total:
            self._finish(part, final, sha256)
        return held

    # --- Agent side ------------------------------------------------------------------------------------

    def calls(self) -> list[bytes]:
        """The waiting calls, oldest first; nobody has checked them yet.

        A file that the Flower side put here by another way than `put_call` is no call: it may be a
        pipe, a link, of any length, or gone before it is read.
        """
        found = []
        for path in _regular(self.root / "calls", ".json"):
            with contextlib.suppress(OSError, RoundError):
                data = _read_at_most(path, MAX_CALL + 1)
                if len(data) <= MAX_CALL and path.stem == digest(data):
                    found.append(data)
        return found

    def drop_call(self, data: bytes) -> None:
        """Forget a call, for instance one that does not verify."""
        (self.root / "calls" / f"{digest(data)}.json").unlink(missing_ok=True)

    def set_status(self, status: SiteStatus) -> None:
        """Say how far a round is; a sealed file that the round no longer names is deleted."""
        before = self.status(status.round)
        write_atomic(self._status_path(status.round), status.model_dump_json(), mode=_FILE_MODE)
        if before is not None and before.state == "sealed" and before.sha256 != status.sha256:
            self._delete_sealed(before.sha256)

    def statuses(self) -> list[SiteStatus]:
        """What the agent last said of each round; a file that is damaged is left out."""
        found = []
        for path in _regular(self.root / "status", ".json"):
            with contextlib.suppress(OSError, ProtocolError):
                found.append(parse(path.read_bytes(), SiteStatus))
        return found

    def sweep(self) -> None:
        """Remove what an agent that was killed left: parts of files, and sealed files that no status names."""
        named = {status.sha256 for status in self.statuses() if status.state == "sealed"}
        for name in _AGENT_FOLDERS:
            for path in (self.root / name).iterdir():
                part = path.name.startswith(".part-") or path.suffix == ".new"
                if part or (path.suffix == ".sealed" and path.stem not in named):
                    path.unlink(missing_ok=True)

    def put_sealed(self, path: Path) -> tuple[str, int]:
        """Move a sealed file in, under its digest; returns the SHA-256 in hex and the bytes."""
        sha256 = file_digest(path)
        target = self.root / "sealed" / f"{sha256}.sealed"
        staged = target.with_suffix(".new")
        shutil.move(path, staged)
        # A moved file keeps its old group, which the Flower side need not be in.
        if staged.stat().st_gid != (group := target.parent.stat().st_gid):
            os.chown(staged, -1, group)
        staged.chmod(_FILE_MODE)
        with staged.open("rb") as stream:
            os.fsync(stream.fileno())
        staged.replace(target)
        sync_folder(target.parent)
        return sha256, target.stat().st_size

    def results(self) -> list[Path]:
        """Whole results, oldest first; the agent moves or deletes them."""
        return _regular(self.root / "results", ".sealed")

    def take_result(self, sha256: str, most: int) -> bytes | None:
        """The bytes of a whole result, which leaves the folder; None if it is not there.

        The Flower side can write here by other ways than `put_result_block`, so the digest is checked again.

        Raises:
            ProtocolError: it has another digest, or more than `most` bytes.
        """
        path = self.root / "results" / f"{_checked(sha256)}.sealed"
        try:
            data = _read_at_most(path, most + 1)
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        if len(data) > most or digest(data) != sha256:
            raise ProtocolError("The bytes that arrived are not those announced, or too many")
        return data

    def clear(self, round_id: str) -> None:
        """Forget a round: its calls, its status and the sealed file that the status names."""
        for data in self.calls():
            with contextlib.suppress(ProtocolError):
                if peek(data, RoundCall).round == round_id:
                    self.drop_call(data)
        status = self.status(round_id)
        self._status_path(round_id).unlink(missing_ok=True)
        if status is not None and status.sha256:
            self._delete_sealed(status.sha256)

    # --- Both ------------------------------------------------------------------------------------------

    def heard(self) -> datetime | None:
        """When the coordinator last asked something, UTC; None for never."""
        try:
            return datetime.fromtimestamp((self.root / "calls" / _HEARD).lstat().st_mtime, UTC)
        except OSError:
            return None

    def _status_path(self, round_id: str) -> Path:
        if not IDENTIFIER.fullmatch(round_id):
            raise ProtocolError("A round's name has other characters than a-z, 0-9 and -, or more than 32")
        return self.root / "status" / f"{round_id}.json"

    def _delete_sealed(self, sha256: str) -> None:
        (self.root / "sealed" / f"{_checked(sha256)}.sealed").unlink(missing_ok=True)

    def _make_room(self, folder: Path) -> None:
        if len(_regular(folder, ".sealed")) >= MAX_RESULTS:
            raise RoundError(
                "The site takes no further result",
                why=f"{MAX_RESULTS} results wait for its agent",
                do="Ask the site to run its agent",
            )
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)

    def _finish(self, part: Path, final: Path, sha256: str) -> None:
        if file_digest(part) != sha256:
            part.unlink()
            raise ProtocolError(
                "The result that arrived has another digest than announced", do="Send it again from its start"
            )
        part.chmod(_FILE_MODE)
        part.replace(final)
        sync_folder(final.parent)


def _checked(sha256: str) -> str:
    if not _HEX.fullmatch(sha256):
        raise ProtocolError("A file is named by the 64 hex digits of its SHA-256, and by nothing else")
    return sha256


def _regular(folder: Path, suffix: str) -> list[Path]:
    """Plain files only, oldest first: a link that the other side left is not followed."""
    found = []
    for path in folder.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):  # the other side may take it away at any moment
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime_ns, path.name))
    return [folder / name for _, name in sorted(found)]


def _read_at_most(path: Path, size: int) -> bytes:
    descriptor = _open_regular(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(size)


def _open_regular(path: Path, flags: int) -> int:
    # Without O_NONBLOCK a pipe in the file's place would hold its opener for ever.
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, _FILE_MODE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RoundError("The site's exchange folder holds something that is not a plain file")
    return descriptor


def _append(descriptor: int, held: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.pwrite(descriptor, view, held + len(data) - len(view)) :]
    except OSError:
        # A full disk: keep what was whole before, so that the sender can go on from there.
        os.ftruncate(descriptor, held)
        raise
