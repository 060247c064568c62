"""A site whose machine is lost: the same site with new keys, a new ledger, and its place in the sequence of releases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from coordinator.config import Home
from coordinator.keychange import sign_calls_again
from coordinator.setup import check_new_keys
from coordinator.store import Delivery, Site, SiteKey, Store, Submission
from coordinator.tables import OldNodeKey
from protocol.errors import UsageError
from protocol.messages import Enrolment, RoundCall
from protocol.published import verify_folder
from protocol.signed import open_signed


@dataclass(frozen=True)
class Replaced:
    """What a replacement did.

    Attributes:
        ledger_head: of the lost machine's ledger, as it was seen last; empty if it never was.
        doubtful: accepted releases that count no more, since they came after the machine was lost.
        sealed_again: the version that waits for delivery to the new machine; 0 for none.
    """

    ledger_head: str
    doubtful: tuple[Submission, ...]
    sealed_again: int


def replace(
    home: Home, store: Store, enrolment: Enrolment, *, now: datetime, lost_since: datetime | None = None
) -> Replaced:
    """Enrol a site's new machine in place of the old one, after a person has compared the new fingerprint.

    Its old keys are revoked, its sequence goes on, and what the coordinator has seen of the old ledger is asked for no
    more. What was accepted before stands, unless the machine was in other hands by then.

    Args:
        home: of the coordinator.
        store: its store.
        enrolment: from `setup.read_enrolment`.
        now: UTC, with its zone.
        lost_since: the old machine may be in other hands since then.

    Raises:
        UsageError: the site is not enrolled, has withdrawn, or the keys were used before; or `lost_since` is still to come.
        EnvelopeError: the keys are malformed.
    """
    site = store.site(enrolment.site)
    begun = _begun(home, store, site, enrolment)
    if not begun:
        check_new_keys(store, enrolment)
    if site.withdrawn is not None:
        raise UsageError(
            f"Site {site.name} withdrew on {site.withdrawn:%Y-%m-%d}",
            do="If it joins anew, with a new home folder and new keys: coordinator enroll --again",
        )
    if lost_since is not None and lost_since > now:
        raise UsageError(f"{lost_since:%Y-%m-%d %H:%M} UTC is still to come", do="Say since when it was lost")
    head = _last_head(store, site) if begun else store.ledger_heads().get(site.name, "")
    doubtful = [] if begun else _store(store, enrolment, now, lost_since)
    # Last, since by the old ledger's head in the calls a replacement that was interrupted is known.
    sealed = _seal_again(home, store, store.site(site.name))
    sign_calls_again(home, store, without_head=site.name)
    return Replaced(head, tuple(doubtful), sealed)


def _begun(home: Home, store: Store, site: Site, enrolment: Enrolment) -> bool:
    """Whether the same command was killed after the keys were stored, before the calls were signed again."""
    if site.public_keys.digest != enrolment.keys.digest or not (head := _last_head(store, site)):
        return False
    keys = home.keys.public()
    calls = (open_signed(found.call, RoundCall, keys) for found in store.rounds() if found.call)
    return any(call.ledger_heads.get(site.name) == head for call in calls)


def _last_head(store: Store, site: Site) -> str:
    """Of the ledger before the present one."""
    with store.begin() as session:
        query = (
            select(Submission.ledger_head)
            .where(Submission.site == site.name, Submission.ledger_head != "")
            .where(Submission.received < site.enrolled)
            .order_by(Submission.id.desc())
        )
        return session.scalars(query).first() or ""


def _store(
    store: Store, enrolment: Enrolment, now: datetime, lost_since: datetime | None
) -> list[Submission]:
    moment = now.astimezone(UTC).replace(tzinfo=None)
    since = moment if lost_since is None else lost_since.astimezone(UTC).replace(tzinfo=None)
    with store.begin() as session:
        site = session.get_one(Site, enrolment.site)
        for key in session.scalars(select(SiteKey).where(SiteKey.site == site.name)):
            key.until = key.until or moment
            key.revoked = min(key.revoked or since, since)
        session.add(OldNodeKey(site=site.name, node_key=site.node_key, at=moment))
        site.keys, site.known_keys = enrolment.keys.model_dump_json(), ""
        site.node_key, site.contact, site.enrolled = enrolment.node_key, enrolment.contact, moment
        session.add(SiteKey(digest=enrolment.keys.digest, site=site.name, keys=site.keys, since=moment))
        query = select(Submission).where(Submission.site == site.name, Submission.state == "accepted")
        doubtful = list(session.scalars(query.where(Submission.received >= since)))
        for submission in doubtful:
            submission.state = "refused"
            submission.detail = "It came after the site's machine was lost: it may be someone else's."
        return doubtful


def _seal_again(home: Home, store: Store, site: Site) -> int:
    """The newest version for the new keys, if the site was in it: the old ones would open it nowhere."""
    published = next((v for v in reversed(store.versions()) if v.withdrawn is None), None)
    if published is None or site.name not in published.sites:
        return 0
    from coordinator.publish import seal_bundle, site_copies  # noqa: PLC0415 - its report takes seconds to import

    folder = home.release_folder(published.version)
    own = site_copies(folder) / site.name
    folder = own if own.exists() else folder
    seal_bundle(home, site, folder, verify_folder(folder, home.keys.public()))
    with store.begin() as session:
        row = session.get(Delivery, (published.version, site.name))
        if row is not None:
            session.delete(row)
    return published.version
