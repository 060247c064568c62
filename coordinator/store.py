"""Sites, rounds, accepted releases and published versions, in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from coordinator.database import open_engine
from coordinator.roundstates import check_move
from coordinator.tables import (
    Delivery,
    Exclusion,
    Published,
    Round,
    RoundEvent,
    Site,
    SiteKey,
    Submission,
    Withdrawal,
    utc_now,
)
from protocol.errors import RoundError, StoreError, UsageError
from protocol.keylist import VerifiedKeys


class Store:
    """The database of one study.

    Args:
        url: of SQLite or PostgreSQL (`coordinator.database`); it is made, or brought up to date, where it must be.

    Raises:
        UsageError: the URL cannot be used.
        FederationError: the database cannot be opened, or is not this program's.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self._session = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def begin(self, *, alone: bool = False) -> Iterator[Session]:
        """One transaction: all of the block is stored, or nothing.

        Args:
            alone: what is read in it is still so when it is stored. On SQLite no other writer comes between; on PostgreSQL
                the rows that matter must be read with `with_for_update`.

        Raises:
            StoreError: the database cannot be reached, is locked, or has no room.
        """
        try:
            with self._session.begin() as session:
                if alone and self.engine.dialect.name == "sqlite":
                    # Its driver would begin with the first change, after what was read.
                    session.connection().exec_driver_sql("BEGIN IMMEDIATE")
                yield session
        except OperationalError as error:
            raise StoreError(
                "The coordinator's database could not be used",
                why=str(error.orig).strip().splitlines()[0],
                do="Nothing was stored; see to its server or its disk, and run the command again",
            ) from None

    def sites(self) -> list[Site]:
        """The sites that were ever enrolled, by name; withdrawn ones too."""
        with self.begin() as session:
            # By bytes, in Python: PostgreSQL sorts by a language's rules.
            return sorted(session.scalars(select(Site)), key=lambda site: site.name)

    def members(self) -> list[Site]:
        """The enrolled sites by name, without those that have withdrawn."""
        return [site for site in self.sites() if site.withdrawn is None]

    def site(self, name: str) -> Site:
        """One site.

        Raises:
            UsageError: none of this name was ever enrolled.
        """
        with self.begin() as session:
            found = session.get(Site, name)
        if found is None:
            raise UsageError(f"Site {name!r} is not enrolled", do="List the sites with coordinator sites")
        return found

    def site_keys(self, name: str) -> list[SiteKey]:
        """Every key that a site has had, the first one first."""
        with self.begin() as session:
            query = select(SiteKey).where(SiteKey.site == name).order_by(SiteKey.since)
            return list(session.scalars(query))

    def add_site(self, site: Site) -> None:
        """Enrol a site, or one again that has withdrawn: its sequence begins anew.

        Raises:
            UsageError: a site of this name is enrolled.
        """
        try:
            with self.begin(alone=True) as session:
                before = session.get(Site, site.name)
                if before is None:
                    session.add(site)
                elif before.withdrawn is None:
                    raise _enrolled(site.name)
                else:
                    site.accepted_sequence, site.withdrawn, site.known_keys = 0, None, ""
                    site.accepted_digest = site.result_digest = ""
                    site.enrolled = utc_now()
                    session.merge(site)
                session.flush()
                session.add(SiteKey(digest=site.public_keys.digest, site=site.name, keys=site.keys))
        except IntegrityError:  # of two commands at once, or keys that another site has
            raise _enrolled(site.name) from None

    def follow_keys(self, name: str, verified: VerifiedKeys, *, now: datetime) -> list[Submission]:
        """Take in a site's key list: its present keys, and which ones it has revoked.

        What a key signed that came after the key was lost may be someone else's: such releases are
        refused from now on, and a fit that was made with them no longer holds.

        Args:
            name: the site.
            verified: from `verify_key_list` against what was known of the site.
            now: UTC, with its zone.

        Returns:
            the accepted releases that are refused now.
        """
        moment = now.astimezone(UTC).replace(tzinfo=None)
        with self.begin(alone=True) as session:
            site = session.get_one(Site, name, with_for_update=True)
            for keys in verified.listed:
                row = session.get(SiteKey, keys.digest)
                if row is None:
                    row = SiteKey(digest=keys.digest, site=name, keys=keys.model_dump_json(), since=moment)
                    session.add(row)
                if keys.digest != verified.listed[-1].digest:
                    row.until = row.until or moment
                if keys.digest in verified.revoked:
                    row.revoked = verified.revoked[keys.digest].astimezone(UTC).replace(tzinfo=None)
            site.keys = verified.listed[-1].model_dump_json()
            site.known_keys = verified.known.model_dump_json()
            session.flush()
            query = (
                select(Submission)
                .join(SiteKey, SiteKey.digest == Submission.signer)
                .where(Submission.site == name, Submission.state == "accepted")
                .where(Submission.received >= SiteKey.revoked)
            )
            doubtful = list(session.scalars(query))
            for submission in doubtful:
                submission.state = "refused"
                submission.detail = "It came after the site's key was lost: it may be someone else's."
            return doubtful

    def round(self, name: str) -> Round:
        """A round.

        Raises:
            RoundError: there is none of this name.
        """
        with self.begin() as session:
            found = session.get(Round, name)
        if found is None:
            raise RoundError(f"There is no round {name!r}", do="List them with coordinator round status")
        return found

    def rounds(self) -> list[Round]:
        """All rounds, oldest first."""
        with self.begin() as session:
            return list(session.scalars(select(Round).order_by(Round.opened)))

    def add_round(self, found: Round, detail: str = "") -> None:
        """Store a new round and its first event.

        Raises:
            UsageError: there is one of this name.
        """
        try:
            with self.begin() as session:
                session.add(found)
                session.flush()
                session.add(RoundEvent(round=found.name, state=found.state, detail=detail))
        except IntegrityError:
            raise UsageError(
                f"Round {found.name!r} exists", do="Take a new name; coordinator round status lists them"
            ) from None

    def move_round(self, name: str, to: str, detail: str = "", **changes: Any) -> None:
        """Move a round on, with the event that says so; `changes` of its columns are stored with it.

        Raises:
            RoundError: there is no such move from where it stands.
        """
        with self.begin(alone=True) as session:
            found = session.get_one(Round, name, with_for_update=True)
            check_move(name, found.state, to)
            _note_move(session, found, to, detail)
            for column, value in changes.items():
                setattr(found, column, value)

    def note_round(self, name: str, detail: str, **changes: Any) -> None:
        """An event of a round that stays where it is."""
        with self.begin() as session:
            found = session.get_one(Round, name)
            session.add(RoundEvent(round=name, state=found.state, detail=detail[:2000]))
            for column, value in changes.items():
                setattr(found, column, value)

    def set_round_step(self, name: str, step: str, share: float) -> None:
        """How far the work of the round's state is, for those who watch."""
        with self.begin() as session:
            found = session.get_one(Round, name)
            found.step, found.share = step[:200], share

    def round_events(self, name: str) -> list[RoundEvent]:
        """What happened to a round, the first event first."""
        with self.begin() as session:
            query = select(RoundEvent).where(RoundEvent.round == name).order_by(RoundEvent.id)
            return list(session.scalars(query))

    def exclusions(self, name: str) -> dict[str, Exclusion]:
        """The sites that a round does without."""
        with self.begin() as session:
            found = session.scalars(select(Exclusion).where(Exclusion.round == name))
            return {e.site: e for e in found}

    def set_exclusion(self, name: str, site: str, because: str, *, to: str) -> None:
        """Leave a site out of a round, or with an empty reason take it back in; the round moves in the same transaction."""
        with self.begin(alone=True) as session:
            found = session.get_one(Round, name, with_for_update=True)
            row = session.get(Exclusion, (name, site))
            if row is not None:
                session.delete(row)
                session.flush()
            if because:
                session.add(Exclusion(round=name, site=site, because=because))
            if to != found.state:
                check_move(name, found.state, to)
            detail = f"{site} is excluded: {because}" if because else f"{site} is included again"
            _note_move(session, found, to, detail)

    def submissions(self, round_name: str) -> list[Submission]:
        """The submissions of a round by site."""
        with self.begin() as session:
            found = session.scalars(select(Submission).where(Submission.round == round_name))
            return sorted(found, key=lambda submission: submission.site)

    def ledger_heads(self) -> dict[str, str]:
        """Site -> head of its ledger in the release that was accepted last; sites without one are left out.

        A site whose machine was replaced has begun a new ledger since.
        """
        with self.begin() as session:
            query = select(Submission).join(Site, Site.name == Submission.site)
            query = query.where(Submission.state == "accepted", Submission.received >= Site.enrolled)
            query = query.order_by(Submission.id)
            return {s.site: s.ledger_head for s in session.scalars(query) if s.ledger_head}

    def record_submission(self, submission: Submission) -> None:
        """Store a submission, with its event; an accepted one moves its site's sequence on in the same transaction.

        Raises:
            RoundError: the site has withdrawn meanwhile.
        """
        with self.begin(alone=True) as session:
            site = session.get(Site, submission.site, with_for_update=True)
            if site is not None and site.withdrawn is not None:
                raise RoundError(f"Site {submission.site} has withdrawn", do="Its release was not taken in")
            query = select(Submission).where(
                Submission.round == submission.round, Submission.site == submission.site
            )
            old = session.scalars(query).one_or_none()
            if old is not None:
                session.delete(old)
                session.flush()
            session.add(submission)
            verdict = f"{submission.site}: {submission.state} {submission.detail}".rstrip()
            state = session.get_one(Round, submission.round).state
            session.add(RoundEvent(round=submission.round, state=state, detail=verdict[:2000]))
            if submission.state == "accepted":
                session.flush()
                site = session.get_one(Site, submission.site)
                site.accepted_sequence = submission.sequence
                site.accepted_digest = submission.manifest_digest

    def versions(self) -> list[Published]:
        """All published versions, oldest first."""
        with self.begin() as session:
            return list(session.scalars(select(Published).order_by(Published.version)))

    def record_published(
        self, version: int, round_name: str, manifest_digest: str, sites: Sequence[str]
    ) -> None:
        """Store a new version and move its round on in one transaction.

        Args:
            version: its number.
            round_name: the round that was fitted.
            manifest_digest: of its manifest for all.
            sites: whose releases it was fitted with.

        Raises:
            RoundError: one of them has withdrawn meanwhile.
        """
        with self.begin(alone=True) as session:
            for name in sites:
                site = session.get(Site, name, with_for_update=True)
                if site is not None and site.withdrawn is not None:
                    raise RoundError(
                        f"Site {name} has withdrawn since the round was fitted",
                        do="Run coordinator fit again",
                    )
            row = Published(version=version, round=round_name, manifest_digest=manifest_digest)
            row.fitted_with = " ".join(sites)
            session.add(row)
            found = session.get_one(Round, round_name)
            check_move(round_name, found.state, "published")
            _note_move(session, found, "published", f"Version {version}")

    def record_delivery(self, version: int, site: str, receipt: str, result_digest: str) -> None:
        """Store a site's receipt."""
        with self.begin() as session:
            session.merge(Delivery(version=version, site=site, receipt=receipt))
            session.get_one(Site, site).result_digest = result_digest

    def deliveries(self, version: int) -> list[Delivery]:
        """The receipts of a version."""
        with self.begin() as session:
            return list(session.scalars(select(Delivery).where(Delivery.version == version)))

    def begin_withdrawal(self, withdrawal: Withdrawal) -> None:
        """Shut a site out: from this transaction on none of its keys is good for anything."""
        with self.begin(alone=True) as session:
            site = session.get_one(Site, withdrawal.site, with_for_update=True)
            site.withdrawn, site.contact = withdrawal.at, ""
            for key in session.scalars(select(SiteKey).where(SiteKey.site == site.name)):
                key.until = key.until or withdrawal.at
                key.revoked = key.revoked or withdrawal.at
            for submission in session.scalars(select(Submission).where(Submission.site == site.name)):
                # Digests stay: they say nothing of the data, and prove later what was erased.
                submission.state, submission.detail = "withdrawn", ""
            versions = select(Published).where(Published.version.in_(withdrawal.versions))
            for version in session.scalars(versions):
                version.withdrawn = version.withdrawn or withdrawal.at
            session.add(withdrawal)

    def save_withdrawal(self, withdrawal: Withdrawal) -> None:
        """Store how far a withdrawal is."""
        with self.begin() as session:
            session.merge(withdrawal)

    def withdrawals(self) -> list[Withdrawal]:
        """Every withdrawal, the first one first."""
        with self.begin() as session:
            return list(session.scalars(select(Withdrawal).order_by(Withdrawal.id)))

    def mark_erased(self, version: int) -> None:
        """Note that a version's files are gone."""
        with self.begin() as session:
            session.get_one(Published, version).erased = True

    def set_call(self, name: str, call: bytes) -> None:
        """Replace a round's signed call."""
        with self.begin() as session:
            session.get_one(Round, name).call = call


def _note_move(session: Session, found: Round, to: str, detail: str) -> None:
    found.state, found.step, found.share = to, "", 0.0
    session.add(RoundEvent(round=found.name, state=to, detail=detail[:2000]))


def _enrolled(name: str) -> UsageError:
    return UsageError(f"Site {name!r} is already enrolled", do="Nothing was changed; compare its fingerprint")


__all__ = ["Delivery", "Published", "Round", "Site", "SiteKey", "Store", "Submission", "Withdrawal"]
