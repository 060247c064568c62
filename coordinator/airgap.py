"""Rounds without a line: calls and results go out as files, releases and receipts come in as files.

What comes in is laid on the round's desk, where Flower would have laid it, and passes the same checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coordinator import rounds
from coordinator.config import Home
from coordinator.flower.desk import RoundDesk, SiteProgress
from coordinator.store import Store
from protocol.canonical import file_digest
from protocol.envelope import MAGIC, read_header
from protocol.errors import EnvelopeError, ProtocolError, RoundError, UsageError
from protocol.files import copy_atomic, write_atomic
from protocol.messages import Receipt
from protocol.signed import peek

_MAX_RECEIPT = 16 << 10


@dataclass(frozen=True)
class Taken:
    """What became of one file.

    Attributes:
        round: that it belongs to.
        site: that it came from.
        kind: `release` or `receipt`.
        state: `accepted`, `refused`, or for a receipt `delivered`.
        detail: why it was refused.
    """

    round: str
    site: str
    kind: str
    state: str
    detail: str = ""


def pack(home: Home, store: Store, name: str, site: str, folder: Path) -> list[Path]:
    """Write the call of a round, and the result for a site if there is one, into the carrier's folder.

    Raises:
        UsageError: no such site or round, or the folder cannot be written to.
        RoundError: the site has withdrawn.
    """
    found, desk = store.round(name), RoundDesk(home.round_folder(name))
    if store.site(site).withdrawn is not None:
        raise RoundError(f"Site {site} has withdrawn from the study", do="Carry nothing to it")
    call, result = folder / f"{name}.call", folder / f"{name}-{site}.result"
    try:
        write_atomic(call, found.call, mode=0o644)
        if not desk.outgoing(site).exists():
            return [call]
        copy_atomic(desk.outgoing(site), result, mode=0o644)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be written to", why=str(error.strerror), do="Name another one"
        ) from None
    return [call, result]


def bring_in(home: Home, store: Store, file: Path) -> Taken:
    """Take in a sealed release or a signed receipt, whichever the file is.

    Raises:
        UsageError: it cannot be read, is neither, or names a round or site that there is not.
        RoundError: another release of the site was accepted in the round, or the site has withdrawn.
        EnvelopeError: a receipt that the site did not sign.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(_MAX_RECEIPT + 1)
    except OSError as error:
        raise UsageError(f"The file {file} cannot be read", why=str(error.strerror)) from None
    return _release(home, store, file) if start.startswith(MAGIC) else _receipt(home, store, file, start)


def _release(home: Home, store: Store, file: Path) -> Taken:
    try:
        header = read_header(file)
    except EnvelopeError:
        raise _neither(file) from None
    if header.kind != "release":
        raise UsageError(f"The file {file} is a result for site {header.site}, no release of one")
    name, site = header.round, header.site
    _check_member(store, name, site)
    before = next((s for s in store.submissions(name) if s.site == site), None)
    if before is not None and before.state == "accepted" and before.envelope_digest != file_digest(file):
        raise RoundError(
            f"Round {name} has another release of site {site}",
            why="it was accepted, and one round takes one release of a site",
            do="Open a new round for this one",
        )
    desk = RoundDesk(home.round_folder(name))
    copy_atomic(file, desk.received(site))
    desk.log(f"{site} release carried in from a file")
    taken = next((s for s in rounds.take_in(home, store, name) if s.site == site), None)
    if taken is None:  # it withdrew in this moment
        raise RoundError(f"Site {site} has withdrawn from the study", do="Erase the file")
    size = file.stat().st_size
    desk.report(SiteProgress(site=site, state="received", bytes_done=size, bytes_total=size))
    return Taken(name, site, "release", taken.state, taken.detail)


def _receipt(home: Home, store: Store, file: Path, data: bytes) -> Taken:
    try:
        receipt = peek(data, Receipt)
    except ProtocolError:
        raise _neither(file) from None
    name, site = receipt.round, receipt.site
    _check_member(store, name, site)
    desk = RoundDesk(home.round_folder(name))
    before = desk.progress(site)
    update = {"state": "delivered", "detail": f"Version {receipt.version} arrived", "receipt": data.decode()}
    desk.report(before.model_copy(update=update))
    try:
        stored = site in rounds.take_receipts(home, store, name)
    except (EnvelopeError, ProtocolError):
        desk.report(before)
        raise
    if not stored:
        desk.report(before)
        detail = f"It is for version {receipt.version}, and not for what the round has published"
        return Taken(name, site, "receipt", "refused", detail)
    return Taken(name, site, "receipt", "delivered")


def _check_member(store: Store, name: str, site: str) -> None:
    store.round(name)
    if store.site(site).withdrawn is not None:
        raise RoundError(f"Site {site} has withdrawn from the study", do="Erase the file")


def _neither(file: Path) -> UsageError:
    return UsageError(
        f"The file {file} is neither a sealed release nor a receipt",
        do="Bring the files that site-agent export wrote, unchanged",
    )
