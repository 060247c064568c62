"""The desk of one round: the folder through which rounds and Flower's ServerApp talk.

The folder's name is the round's identifier.

    call.json                 the signed call, opaque                     written by the round
    sites.json                {site: node id}                             written by the round
    outgoing/SITE.sealed      the result for a site                       written by the round
    material.json             of a secure sum: what every site is sent    written by the sum
    received/SITE.sealed      a site's sealed file, its digest checked    written by the ServerApp
    refused/SITE              digests of a file that was refused, and of the keys then  written by the round
    run.json                  the run that is under way                   written by the driver
    received/SITE.SHA256.part a transfer under way                        written by the ServerApp
    progress/SITE.json        SiteProgress                                written by the ServerApp
    transport.log             what happened, a line each                  written by the ServerApp
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from protocol.errors import ProtocolError, RoundError, UsageError
from protocol.files import write_atomic
from protocol.messages import Message
from protocol.sections import Identifier
from protocol.signed import parse
from protocol.vocabulary import IDENTIFIER

MAX_CALL = 64 << 10

State = Literal[
    "invited",
    "offline",
    "preparing",
    "awaiting-approval",
    "sealed",
    "receiving",
    "received",
    "refused",
    "sending",
    "delivered",
]

_SITES: TypeAdapter[dict[str, int]] = TypeAdapter(dict[Identifier, Annotated[int, Field(ge=0, lt=1 << 64)]])


def utc_now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


class SiteProgress(Message):
    """How far the transport is with a site."""

    site: Identifier
    state: State = "invited"
    detail: str = Field("", max_length=2000, description="For people; a site's own words among them.")
    bytes_done: int = Field(0, ge=0)
    bytes_total: int = Field(0, ge=0)
    updated: str = Field(default_factory=utc_now, description="UTC, ISO 8601.")
    heard: str = Field(
        "", description="When the site last answered, UTC, ISO 8601; empty: never in this round."
    )
    receipt: str = Field("", max_length=16 << 10, description="Signed JSON of the site, unverified here.")


class RoundDesk:
    """The files of one round.

    Args:
        folder: its name is the round's identifier.

    Raises:
        UsageError: the folder's name is no identifier.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        if not IDENTIFIER.fullmatch(self.round_id):
            raise UsageError(
                f"{folder.name!r} is no name for a round", why="it may hold a-z, 0-9 and -, at most 32"
            )

    @property
    def round_id(self) -> str:
        """The folder's name."""
        return self.folder.name

    def open(self, call: bytes, sites: Mapping[str, int]) -> None:
        """Lay out the desk: the call and the node of each site that is asked.

        Raises:
            UsageError: the call has more than 64 KiB, or a site's name or node id is not valid.
        """
        if len(call) > MAX_CALL:
            raise UsageError(f"The call has {len(call)} bytes", why=f"the limit is {MAX_CALL}")
        try:
            _SITES.validate_python(dict(sites))
        except ValidationError as error:
            raise UsageError("The round's sites are not valid", why=error.errors()[0]["msg"]) from None
        for name in ("received", "outgoing", "progress"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self.folder / "call.json", call)
        write_atomic(self.folder / "sites.json", json.dumps(dict(sites), indent=1))

    def call(self) -> bytes:
        """The signed call.

        Raises:
            RoundError: the desk was not laid out.
        """
        return self._read("call.json")

    def sites(self) -> dict[str, int]:
        """Node id of each site.

        Raises:
            RoundError: the desk was not laid out, or the file is damaged.
        """
        try:
            return _SITES.validate_json(self._read("sites.json"))
        except ValidationError:
            raise RoundError(f"{self.folder / 'sites.json'} is damaged", do="Open the round again") from None

    def received(self, site: str) -> Path:
        """Where a site's sealed file is, or will be once its digest held."""
        return self.folder / "received" / f"{_named(site)}.sealed"

    def part(self, site: str, sha256: str) -> Path:
        """The bytes so far of a transfer; parts of other files of the site are deleted."""
        path = self.folder / "received" / f"{_named(site)}.{sha256}.part"
        for other in path.parent.glob(f"{site}.*.part"):
            if other != path:
                other.unlink()
        return path

    def refuse(self, site: str, sha256: str, keys: str) -> None:
        """Remember that a file was refused, so that it is not fetched again while the site has these keys."""
        (self.folder / "refused").mkdir(exist_ok=True, mode=0o700)
        write_atomic(self.folder / "refused" / _named(site), f"{sha256} {keys}")

    def refused(self, site: str) -> tuple[str, str]:
        """Digests of the file of a site that was refused last, and of its keys then; empty if none was."""
        try:
            sha256, _, keys = (self.folder / "refused" / _named(site)).read_text().partition(" ")
        except OSError:
            return "", ""
        return sha256, keys

    def forgive(self, site: str) -> None:
        """Fetch what was refused once more, if the site still has it."""
        (self.folder / "refused" / _named(site)).unlink(missing_ok=True)

    def outgoing(self, site: str) -> Path:
        """The result for a site; a site without this file gets none."""
        return self.folder / "outgoing" / f"{_named(site)}.sealed"

    @property
    def material(self) -> Path:
        """What every site is sent before it answers; only a step of a secure sum has it."""
        return self.folder / "material.json"

    def report(self, progress: SiteProgress) -> None:
        """Replace what is known of a site."""
        write_atomic(self._progress_path(progress.site), progress.model_dump_json())

    def progress(self, site: str) -> SiteProgress:
        """What is known of a site; `invited` before anything is."""
        try:
            return parse(self._progress_path(site).read_bytes(), SiteProgress)
        except (FileNotFoundError, ProtocolError):
            return SiteProgress(site=site, updated="")

    def log(self, line: str) -> None:
        """Append a line to transport.log."""
        with (self.folder / "transport.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{utc_now()} {line}\n")

    def _progress_path(self, site: str) -> Path:
        return self.folder / "progress" / f"{_named(site)}.json"

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            raise RoundError(f"Round {self.round_id} has no {name}", do="Open the round first") from None


def _named(site: str) -> str:
    if not IDENTIFIER.fullmatch(site):
        raise UsageError(f"{site!r} is no site name")
    return site
