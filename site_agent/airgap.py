"""Rounds without a line: the signed call and the sealed result come in as files, the sealed release and the receipt go out.

The files are those that Flower would carry, byte for byte, and pass the same checks: the carrier is trusted with nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.canonical import digest, file_digest
from protocol.envelope import MAGIC, read_header
from protocol.errors import EnvelopeError, ProtocolError, UsageError
from protocol.files import atomic_file
from protocol.messages import RoundCall
from protocol.signed import open_signed
from site_agent.agent import Agent
from site_agent.exchange import MAX_BLOCK, MAX_CALL, MAX_RESULT, Exchange, SiteStatus


@dataclass(frozen=True)
class Carried:
    """A file for the carrier.

    Attributes:
        path: in the folder that was named.
        kind: `release` or `receipt`.
        round: that it answers.
        sha256: of its bytes.
    """

    path: Path
    kind: str
    round: str
    sha256: str


def bring_in(agent: Agent, file: Path) -> list[str]:
    """Take a call or a result from the coordinator, and answer it at once; what happened, in words.

    Args:
        agent: the site's.
        file: what `coordinator round pack` wrote.

    Raises:
        UsageError: it cannot be read, is neither, or is for another site.
        EnvelopeError: the coordinator did not sign this call.
        RoundError: too many calls or results wait already.
    """
    try:
        with file.open("rb") as stream:
            start, size = stream.read(len(MAGIC)), os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise UsageError(f"The file {file} cannot be read", why=str(error.strerror)) from None
    if start == MAGIC:
        _result(agent, file, size)
    elif size <= MAX_CALL:
        data = file.read_bytes()
        try:
            open_signed(data, RoundCall, agent.home.invitation.keys)
        except EnvelopeError:
            raise
        except ProtocolError:
            raise _neither(file) from None
        agent.exchange.put_call(data)
    else:
        raise _neither(file)
    return agent.step()


def take_out(agent: Agent, folder: Path) -> list[Carried]:
    """Write what waits for the coordinator: each round's sealed release, or the receipt of its result.

    Each file stands in the ledger before it is written.

    Args:
        agent: the site's.
        folder: for the carrier; made if missing.

    Raises:
        UsageError: the folder cannot be written to.
    """
    with agent.locked():
        found = [_waiting(agent, status, folder) for status in agent.exchange.statuses()]
        carried = [one for one in found if one is not None]
        for one in carried:
            agent.ledger.append("exported", round=one.round, kind=one.kind, sha256=one.sha256)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for one in carried:
                with atomic_file(one.path, mode=0o644) as stream:
                    for block in _blocks(agent.exchange, one):
                        stream.write(block)
        except OSError as error:
            raise UsageError(
                f"The folder {folder} cannot be written to", why=str(error.strerror), do="Name another one"
            ) from None
    return carried


def _waiting(agent: Agent, status: SiteStatus, folder: Path) -> Carried | None:
    stem = f"{status.round}-{agent.home.config.site}"
    if status.state == "sealed":
        return Carried(folder / f"{stem}.release", "release", status.round, status.sha256)
    if status.receipt:
        return Carried(folder / f"{stem}.receipt", "receipt", status.round, digest(status.receipt.encode()))
    return None


def _blocks(exchange: Exchange, carried: Carried) -> Iterator[bytes]:
    if carried.kind == "receipt":
        status = exchange.status(carried.round)
        yield b"" if status is None else status.receipt.encode()
        return
    done = 0
    while block := exchange.read_block(carried.sha256, done, MAX_BLOCK):
        yield block
        done += len(block)


def _result(agent: Agent, file: Path, size: int) -> None:
    try:
        header = read_header(file)
    except EnvelopeError:
        raise _neither(file) from None
    site = agent.home.config.site
    if header.kind != "result" or header.site != site:
        what = (
            f"a {header.kind} of site {header.site}"
            if header.kind == "release"
            else f"for site {header.site}"
        )
        raise UsageError(
            f"The file {file} is {what}",
            why=f"this is site {site}",
            do="Bring the result that is for this site",
        )
    if size > MAX_RESULT:
        raise UsageError(f"The file {file} has {size} bytes", why=f"a result has at most {MAX_RESULT}")
    sha256, done = file_digest(file), 0
    with file.open("rb") as stream:
        while block := stream.read(MAX_BLOCK):
            agent.exchange.put_result_block(sha256, size, done, block)
            done += len(block)


def _neither(file: Path) -> UsageError:
    return UsageError(
        f"The file {file} is neither a call nor a result of this study's coordinator",
        do="Bring the files that coordinator round pack wrote, unchanged",
    )
