"""The ledger for an auditor: one file, and a statement beside it that the site has signed.

The file holds what each line of the ledger says, so the chain can be checked from it; the statement
binds the file's bytes to the site's key, whose fingerprint the auditor compares with the coordinator's list.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from protocol.canonical import canonical_json, digest
from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import open_signed, peek, sign_message
from site_agent.ledger import Entry, chain
from site_agent.signers import standing

Format = Literal["json", "csv"]
_COLUMNS = ("entry", "time", "event", "facts", "previous", "head")


class LedgerStatement(Message):
    """A site's word for an exported ledger."""

    site: Identifier
    keys: PublicKeys
    entries: int = Field(ge=0)
    head: str = Field(pattern="^([0-9a-f]{64})?$")
    sha256: HexDigest = Field(description="Of the exported file.")
    exported: AwareDatetime


@dataclass(frozen=True)
class Audited:
    """An exported ledger that holds.

    Attributes:
        statement: whose it is; compare the fingerprint of its keys.
        entries: all of them.
    """

    statement: LedgerStatement
    entries: tuple[Entry, ...]


def signature_path(path: Path) -> Path:
    """Where the statement of an exported file lies."""
    return path.with_name(f"{path.name}.sig")


def export(
    entries: Sequence[Entry], path: Path, *, form: Format, site: str, keys: PrivateKeys
) -> LedgerStatement:
    """Write the ledger and the signed statement beside it.

    Args:
        entries: verified.
        path: of the file; the statement gets `.sig` behind it.
        form: JSON, a list of objects; or CSV, with the facts of each entry as JSON.
        site: whose ledger it is.
        keys: the site's.

    Raises:
        UsageError: the files cannot be written.
    """
    data = _json(entries) if form == "json" else _csv(entries)
    statement = LedgerStatement(
        site=site,
        keys=keys.public(),
        entries=len(entries),
        head=entries[-1].head if entries else "",
        sha256=digest(data),
        exported=datetime.now(UTC).replace(microsecond=0),
    )
    try:
        write_atomic(path, data)
        write_atomic(signature_path(path), sign_message(statement, keys))
    except OSError as error:
        raise UsageError(
            f"The export {path} cannot be written", why=error.strerror or "", do="Name another file"
        ) from None
    return statement


def read_export(path: Path) -> Audited:
    """An exported ledger, if signature, chain, and the approvals in it hold. It needs no home folder.

    Raises:
        UsageError: the file or its statement is not there.
        ProtocolError: it is no exported ledger, or was altered.
        EnvelopeError: the statement's signature does not hold.
        FederationError: the chain is broken, or an approval in it does not hold.
    """
    try:
        data, signed = path.read_bytes(), signature_path(path).read_bytes()
    except OSError as error:
        raise UsageError(
            f"The exported ledger {path} cannot be read with its signature",
            why=f"{error.filename}: {error.strerror}",
            do=f"Keep {path.name} and {signature_path(path).name} side by side",
        ) from None
    statement = open_signed(signed, LedgerStatement, peek(signed, LedgerStatement).keys)
    if statement.sha256 != digest(data):
        raise ProtocolError(
            f"The exported ledger {path} was altered after it was signed",
            do="Ask the site for another export",
        )
    entries = chain([_line(record) for record in _records(data, path)], str(path))
    if (len(entries), entries[-1].head if entries else "") != (statement.entries, statement.head):
        raise ProtocolError(f"The exported ledger {path} is not the one that its signature speaks of")
    standing(entries)
    return Audited(statement, entries)


def _record(entry: Entry) -> dict[str, Any]:
    return {
        "entry": entry.number,
        "time": entry.time,
        "event": entry.event,
        "facts": dict(entry.facts),
        "previous": entry.previous,
        "head": entry.head,
    }


def _json(entries: Sequence[Entry]) -> bytes:
    return (json.dumps([_record(e) for e in entries], ensure_ascii=False, indent=1) + "\n").encode()


def _csv(entries: Sequence[Entry]) -> bytes:
    """Cells begin with a digit, a letter or a brace: no spreadsheet takes one for a formula."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow(_record(entry) | {"facts": canonical_json(dict(entry.facts)).decode()})
    return sink.getvalue().encode()


def _records(data: bytes, path: Path) -> list[Mapping[str, Any]]:
    try:
        text = data.decode()
        if text.startswith("["):
            return list(json.loads(text))
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [row | {"facts": json.loads(row["facts"])} for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ProtocolError(f"{path} is no exported ledger") from None


def _line(record: Mapping[str, Any]) -> bytes:
    """The line of the ledger that a record was made from."""
    try:
        own = {"previous": record["previous"], "time": record["time"], "event": record["event"]}
        return canonical_json({**record["facts"], **own})
    except (TypeError, KeyError, ValueError):
        raise FederationError("The exported ledger holds something that is no entry") from None
