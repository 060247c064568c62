"""Messages to sites and their replies, and files in blocks over them.

Every reply is taken for hostile: its sender, its types and its lengths are checked here, and
nothing of it is parsed beyond that.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException
from pydantic import Field, ValidationError

from coordinator.flower.desk import State
from protocol.canonical import file_digest
from protocol.errors import VersionError
from protocol.messages import Message as FrozenMessage
from protocol.sections import Identifier
from protocol.version import PROTOCOL, SOFTWARE, check_protocol

R = TypeVar("R")
Request = Mapping[str, int | str | bytes]
CONFIG, BLOCK, DATA, RAW = "config", "block", "data", "raw"
MAX_FILE = 4 << 30

_STATED: Request = {"protocol": PROTOCOL, "software": SOFTWARE}

WINDOW = 6
"""Blocks on the way at once: a SuperNode that finds no message waiting sleeps for three seconds."""

TTL_SECONDS = 600.0
"""Flower drops a message then; a block must pass the line within it."""

GRACE_SECONDS = 60.0
"""After its turn a transfer begins no block, and waits so long for those on the way."""

DISK_RESERVE = 1 << 30
MAX_FAILURES = 300
"""Failed calls of the SuperLink in a row that end the run: about a minute."""


class SiteAnswer(FrozenMessage):
    """A site's answer to `query.call`, as it must be."""

    round: Identifier
    state: Literal["unknown", "preparing", "awaiting-approval", "sealed", "refused", "delivered"]
    detail: str = Field(max_length=2000)
    sha256: str = Field(pattern="^([0-9a-f]{64})?$")
    size: int = Field(ge=0, le=MAX_FILE)
    receipt: str = Field(max_length=16 << 10)


class SiteError(Exception):
    """A site did not do its part; the state says what follows, None that it stays as it was."""

    def __init__(self, reason: str, state: State | None = None) -> None:
        super().__init__(printable(reason))
        self.state = state


def printable(text: str) -> str:
    """A site's words without control characters, at most 2,000 of them."""
    return "".join(c if c.isprintable() else " " for c in text[:2000])


# --- Messages ------------------------------------------------------------------------------------------


class Post:
    """Pushes messages and pulls replies, each reply on its own, so that a bad one harms no other.

    Args:
        room: which of a site's two rooms the messages are for, that of rounds or that of secure sums.
        tick: seconds between two pulls.
    """

    def __init__(self, grid: Grid, room: Literal["round", "sum"] = "round", tick: float = 0.2) -> None:
        self._grid, self._room, self._tick = grid, room, tick
        self._online: set[int] = set()
        self._failures = 0

    def online(self) -> set[int]:
        """Nodes whose heartbeat the SuperLink has, as far as it could be asked."""
        nodes = self._patiently(lambda: set(self._grid.get_node_ids()))
        self._online = self._online if nodes is None else nodes
        return self._online

    def send(self, node: int, action: str, config: Request, data: bytes | None = None) -> str:
        """Push one message; returns its id.

        Raises:
            SiteError: Flower did not take it.
        """
        content = RecordDict({CONFIG: ConfigRecord({**_STATED, "room": self._room, **config})})
        if data is not None:
            content[BLOCK] = ArrayRecord({DATA: Array("uint8", (len(data),), RAW, data)})
        message = Message(content, dst_node_id=node, message_type=f"query.{action}", ttl=TTL_SECONDS)
        while (ids := self._patiently(lambda: list(self._grid.push_messages([message])))) is None:
            self.pause()
        if not ids or not ids[0]:
            raise SiteError("Flower took no message for the site")
        return ids[0]

    def take(self, message_id: str, node: int) -> RecordDict | None:
        """The reply's content, or None while there is none.

        Raises:
            SiteError: an error came back, or something that is no reply of this node.
        """
        try:
            replies = self._patiently(lambda: list(self._grid.pull_messages([message_id])))
        except (RunNotRunningException, httpx.HTTPError):
            raise
        except Exception as error:
            # Flower parses the reply here, in many ways that can fail; the site alone wrote it.
            raise SiteError(f"The site's reply cannot be read ({type(error).__name__})", "refused") from None
        if not replies:
            return None
        reply = replies[0]
        if reply.metadata.reply_to_message_id != message_id:
            raise SiteError("A reply belongs to another message", "refused")
        if reply.has_error():
            raise _site_error(reply.error)
        if reply.metadata.src_node_id != node:
            raise SiteError("A reply came from another node than was asked", "refused")
        return reply.content

    def wait(self, message_id: str, node: int, until: float) -> RecordDict:
        """The reply's content, waited for until a monotonic time.

        Raises:
            SiteError: as `take`, or the time is over.
        """
        while (content := self.take(message_id, node)) is None:
            if time.monotonic() > until:
                raise SiteError("The site's answer is late")
            self.pause()
        return content

    def pause(self) -> None:
        """Sleep for one tick."""
        time.sleep(self._tick)

    def _patiently(self, call: Callable[[], R]) -> R | None:
        """What the SuperLink answers; None if it stumbled, as it does when its database is locked."""
        try:
            result = call()
        except httpx.HTTPError:
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            return None
        self._failures = 0
        return result


def _site_error(error: Error) -> SiteError:
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return SiteError("The site's node went offline", "offline")
    reason = error.reason or f"Flower's error code {error.code}"
    return SiteError(reason, "refused" if error.code == ErrorCode.INVALID_FAB else None)


def read_answer(content: RecordDict, round_id: str) -> SiteAnswer:
    """Check the content of a reply to `query.call`.

    Raises:
        SiteError: it does not follow the protocol.
    """
    record = content.get(CONFIG)
    fields = dict(record) if isinstance(record, ConfigRecord) else {}
    try:
        check_protocol(fields, "The site", here="this coordinator")
    except VersionError as error:
        raise SiteError(str(error), "refused") from None
    for name in _STATED:
        fields.pop(name, None)
    try:
        answer = SiteAnswer.model_validate(fields, strict=True)
    except ValidationError:
        raise SiteError("The site's answer does not follow the protocol", "refused") from None
    if answer.round != round_id:
        raise SiteError("The site's answer is about another round", "refused")
    return answer


def read_attached(content: RecordDict, answer: SiteAnswer) -> bytes | None:
    """The file that an answer speaks of, if the site sent it along; None for anything else."""
    if BLOCK not in content:
        return None
    try:
        return read_block(content, answer.size)
    except SiteError:
        return None


def read_block(content: RecordDict, size: int) -> bytes:
    """Check the content of a reply to `query.block`.

    Raises:
        SiteError: it is not a block of this size.
    """
    record = content.get(BLOCK)
    array = record.get(DATA) if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != RAW or len(array.data) != size:
        raise SiteError(f"The site sent something else than a block of {size} bytes", "refused")
    return array.data


def read_held(content: RecordDict, total: int) -> int:
    """Check the content of a reply to `query.deliver`.

    Raises:
        SiteError: it is not a number of bytes up to `total`.
    """
    record = content.get(CONFIG)
    held = record.get("held") if isinstance(record, ConfigRecord) else None
    if type(held) is not int or not 0 <= held <= total:
        raise SiteError("The site's answer does not follow the protocol", "refused")
    return held


# --- Transfers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One site's turn on the line; `report` is told the bytes done and their total."""

    post: Post
    node: int
    block: int
    until: float
    report: Callable[[int, int], None]

    def over(self) -> bool:
        """Whether no further block may begin."""
        return time.monotonic() > self.until

    def ask(self, action: str, config: Request, data: bytes | None = None) -> str:
        """Push one message to the site."""
        return self.post.send(self.node, action, config, data)

    def hear(self, message_id: str) -> RecordDict:
        """Wait for its reply."""
        return self.post.wait(message_id, self.node, self.until + GRACE_SECONDS)


def fetch(turn: Turn, part: Path, answer: SiteAnswer) -> bool:
    """Pull a site's sealed file into `part`, from the bytes held on; True once it is whole.

    Raises:
        SiteError: the site failed, the whole has another digest, or there is no room.
    """
    first = held = min(part.stat().st_size, answer.size) if part.exists() else 0
    if shutil.disk_usage(part.parent).free < answer.size - held + DISK_RESERVE:
        raise SiteError("The coordinator's disk has no room for the site's file")
    asked: deque[tuple[int, str]] = deque()
    position = held
    with part.open("r+b" if part.exists() else "w+b") as stream:
        stream.truncate(held)
        stream.seek(held)
        while held < answer.size:
            if turn.over():
                return False
            while len(asked) < WINDOW and position < answer.size:
                size = min(turn.block, answer.size - position)
                request: Request = {"sha256": answer.sha256, "offset": position, "size": size}
                asked.append((size, turn.ask("block", request)))
                position += size
            size, message_id = asked.popleft()
            stream.write(read_block(turn.hear(message_id), size))
            stream.flush()
            held += size
            turn.report(held, answer.size)
        os.fsync(stream.fileno())
    if file_digest(part) == answer.sha256:
        return True
    part.unlink()
    # Bytes of an earlier turn may have been damaged on our own disk: then the site gets another.
    state: State | None = None if first else "refused"
    raise SiteError("The file that arrived has another digest than the site announced", state)


def send(turn: Turn, source: Path, sha256: str) -> bool:
    """Push a result to a site; True once the site holds all.

    Each answer says how many bytes the site holds. It takes only the block that comes next, so
    after any other answer than the one that a block leads to, the transfer goes on from there:
    that is how bytes of an earlier turn are found.

    Raises:
        SiteError: the site failed, or keeps nothing of what it is sent.
    """
    total = source.stat().st_size
    request: Request = {"sha256": sha256, "total": total}
    asked: deque[tuple[int, str]] = deque()
    position = held = misses = 0
    with source.open("rb") as stream:
        while held < total:
            if turn.over():
                return False
            while len(asked) < WINDOW and position < total:
                stream.seek(position)
                data = stream.read(turn.block)
                message_id = turn.ask("deliver", {**request, "offset": position}, data)
                position += len(data)
                asked.append((position, message_id))
            expected, message_id = asked.popleft()
            held = read_held(turn.hear(message_id), total)
            turn.report(held, total)
            if held != expected:
                asked.clear()
                position = held
                misses += 1
            if misses > 2:
                raise SiteError("The site does not keep what it is sent; it will be sent again")
    return True
