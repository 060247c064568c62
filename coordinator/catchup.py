"""After the restore of a backup: what was accepted and published since, from what this coordinator has signed.

Sites refuse a coordinator that has forgotten what it accepted from them: else it could ask for a thing twice and subtract.
But its signed calls, and the manifests of its published versions, name the last accepted release of each site, and lie with
sites and readers. Nobody else could have signed them, so they are believed; they move the store forward, never back.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from coordinator.config import Home
from coordinator.publish import CONSORTIUM
from coordinator.store import Store
from coordinator.tables import Published, Round, RoundEvent, Site, utc_now
from protocol.errors import EnvelopeError, FederationError, ProtocolError, StudyError, UsageError
from protocol.messages import PublishedManifest, RoundCall
from protocol.published import MAX_MANIFEST, verify_manifest
from protocol.signed import open_signed


@dataclass(frozen=True)
class Learnt:
    """What a signed document told the store that it did not know.

    Attributes:
        sites: number of the release that was accepted last, of sites for which it was unknown.
        version: a published version that was unknown; 0 for none.
        round: a round that was unknown; its name stays taken. Empty for none.
    """

    sites: dict[str, int]
    version: int
    round: str


def catch_up(home: Home, store: Store, path: Path) -> Learnt:
    """Learn from one document, in one transaction.

    Args:
        home: of the coordinator.
        store: its store.
        path: `manifest.json` of a published version, or a signed call, as a site keeps it in `countersigned/`.

    Raises:
        UsageError: it cannot be read, or a version before it is unknown too.
        StudyError: it is of another study.
        ProtocolError, EnvelopeError: it is neither of them, or this coordinator's keys did not sign it.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or "") from None
    found = _verified(home, data, path)
    if found.study_digest != home.study.digest:
        raise StudyError(f"{path} is of another study file than this coordinator's")
    with store.begin() as session:
        if isinstance(found, RoundCall):
            told = ((site, *last) for site, last in found.expected.items())
            new = _note_round(
                session, found.round, utc_now(), "A call for it was signed; what came of it is lost"
            )
            return Learnt(_forward(session, told), 0, new)
        taken = [s for s in found.sites if s.state == "received"]
        forward = _forward(session, ((s.site, s.sequence, s.manifest_digest) for s in taken))
        at = found.created.replace(tzinfo=None)
        new = _note_round(
            session, found.round, at, f"Version {found.version} was made of it; the rest is lost"
        )
        version = _note_version(session, found, [s.site for s in taken])
        return Learnt(forward, version, new)


def _verified(home: Home, data: bytes, path: Path) -> RoundCall | PublishedManifest:
    trust = home.identity.trust(home.keys.public())
    for keys in trust.listed:
        # A key that may be in other hands could sign a call today, which bears no date.
        if keys.digest not in trust.revoked:
            with suppress(ProtocolError):
                return open_signed(data, RoundCall, keys)
    try:
        return verify_manifest(data, trust, where=str(path))
    except EnvelopeError:
        raise
    except ProtocolError:
        raise ProtocolError(
            f"{path} is neither a call nor a manifest that this coordinator has signed",
            do="Give manifest.json of a published version, or a file of a site's folder countersigned",
        ) from None


def _forward(session: Session, told: Iterable[tuple[str, int, str]]) -> dict[str, int]:
    moved = {}
    for name, sequence, digest in told:
        site = session.get(Site, name, with_for_update=True)
        if site is None or site.withdrawn is not None:
            continue
        if sequence == site.accepted_sequence and digest != site.accepted_digest:
            raise FederationError(
                f"Release {sequence} of site {name} is another one here than the one that this coordinator has signed for",
                why="after the restore the same number was accepted again",
                do="Restore the backup into a new home folder, and catch up before anything is collected",
            )
        if sequence > site.accepted_sequence:
            site.accepted_sequence, site.accepted_digest = sequence, digest
            moved[name] = sequence
    return moved


def _note_round(session: Session, name: str, at: datetime, detail: str) -> str:
    """A round that is not known any more keeps its name: sites remember how they answered it."""
    if session.get(Round, name) is not None:
        return ""
    session.add(Round(name=name, state="aborted", call=b"", opened=at, expires=at))
    session.flush()
    session.add(RoundEvent(round=name, state="aborted", detail=f"Learnt after a restore: {detail}"))
    return name


def _note_version(session: Session, found: PublishedManifest, sites: list[str]) -> int:
    """A version whose files are not here any more keeps its number: sites take in no other one."""
    if found.audience != CONSORTIUM:
        raise UsageError(
            f"The manifest is that of site {found.audience}'s own copy of version {found.version}",
            why="the next version names the one before by the manifest for all",
            do="Give manifest.json of the version that was published for all",
        )
    known = session.get(Published, found.version)
    if known is not None:
        if known.manifest_digest != found.digest:
            raise ProtocolError(
                f"This coordinator has published two versions {found.version}",
                why="after the restore another one got its number",
                do="Restore the backup into a new home folder, and catch up before anything is published",
            )
        return 0
    last = session.scalar(select(func.max(Published.version))) or 0
    if found.version != last + 1:
        raise UsageError(
            f"Version {last + 1} is unknown here too",
            do=f"Give its manifest before that of version {found.version}",
        )
    session.add(
        Published(
            version=found.version,
            round=found.round,
            manifest_digest=found.digest,
            fitted_with=" ".join(sites),
            created=found.created.replace(tzinfo=None),
            erased=True,
        )
    )
    return found.version
