"""Sites, rounds, accepted releases and published versions, in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import ForeignKey, LargeBinary, String, UniqueConstraint, create_engine, event, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from protocol.errors import FederationError, RoundError, UsageError
from protocol.keys import PublicKeys


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


class Base(DeclarativeBase):
    """All tables; times are UTC without a zone."""


class Site(Base):
    """An enrolled site and its place in the sequence of releases."""

    __tablename__ = "site"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    keys: Mapped[str] = mapped_column(String(8192))
    node_key: Mapped[str] = mapped_column(String(1024))
    contact: Mapped[str] = mapped_column(String(200), default="")
    enrolled: Mapped[datetime] = mapped_column(default=_now)
    accepted_sequence: Mapped[int] = mapped_column(default=0)
    accepted_digest: Mapped[str] = mapped_column(String(64), default="")
    result_digest: Mapped[str] = mapped_column(String(64), default="")

    @property
    def public_keys(self) -> PublicKeys:
        """The site's keys as enrolled."""
        return PublicKeys.model_validate_json(self.keys)


class Round(Base):
    """A round: planned -> open -> closed -> fitted -> published -> delivered."""

    __tablename__ = "round"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="open")
    call: Mapped[bytes] = mapped_column(LargeBinary)
    opened: Mapped[datetime] = mapped_column(default=_now)
    expires: Mapped[datetime]


class Submission(Base):
    """A site's release in a round: accepted, refused or quarantined."""

    __tablename__ = "submission"
    __table_args__ = (UniqueConstraint("round", "site"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("round.name"))
    site: Mapped[str] = mapped_column(ForeignKey("site.name"))
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(String(2000), default="")
    sequence: Mapped[int] = mapped_column(default=0)
    manifest_digest: Mapped[str] = mapped_column(String(64), default="")
    envelope_digest: Mapped[str] = mapped_column(String(64), default="")
    ledger_head: Mapped[str] = mapped_column(String(64), default="")
    received: Mapped[datetime] = mapped_column(default=_now)


class Published(Base):
    """A published version; versions are never changed."""

    __tablename__ = "published"

    version: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("round.name"))
    manifest_digest: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime] = mapped_column(default=_now)


class Delivery(Base):
    """A site's signed receipt for a version."""

    __tablename__ = "delivery"

    version: Mapped[int] = mapped_column(ForeignKey("published.version"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"), primary_key=True)
    receipt: Mapped[str] = mapped_column(String(20_000))
    received: Mapped[datetime] = mapped_column(default=_now)


class Store:
    """The database of one study.

    Args:
        url: a SQLAlchemy URL; tables are made where they are missing.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        if url.startswith("sqlite"):
            event.listen(self.engine, "connect", _careful_sqlite)
        try:
            Base.metadata.create_all(self.engine)
        except OperationalError as error:
            raise FederationError(
                "The coordinator's database cannot be opened",
                why=str(error.orig),
                do="Check its URL, file and rights",
            ) from None
        self._session = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def begin(self) -> Iterator[Session]:
        """One transaction: all of the block is stored, or nothing."""
        with self._session.begin() as session:
            yield session

    def sites(self) -> list[Site]:
        """The enrolled sites by name."""
        with self.begin() as session:
            return list(session.scalars(select(Site).order_by(Site.name)))

    def add_site(self, site: Site) -> None:
        """Enrol a site.

        Raises:
            UsageError: a site of this name is enrolled.
        """
        try:
            with self.begin() as session:
                session.add(site)
        except IntegrityError:
            raise UsageError(
                f"Site {site.name!r} is already enrolled", do="Nothing was changed; compare its fingerprint"
            ) from None

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

    def set_round_state(self, name: str, state: str) -> None:
        """Move a round on."""
        with self.begin() as session:
            session.get_one(Round, name).state = state

    def submissions(self, round_name: str) -> list[Submission]:
        """The submissions of a round by site."""
        with self.begin() as session:
            query = select(Submission).where(Submission.round == round_name).order_by(Submission.site)
            return list(session.scalars(query))

    def record_submission(self, submission: Submission) -> None:
        """Store a submission; an accepted one moves its site's sequence on in the same transaction."""
        with self.begin() as session:
            query = select(Submission).where(
                Submission.round == submission.round, Submission.site == submission.site
            )
            old = session.scalars(query).one_or_none()
            if old is not None:
                session.delete(old)
                session.flush()
            session.add(submission)
            if submission.state == "accepted":
                site = session.get_one(Site, submission.site)
                site.accepted_sequence = submission.sequence
                site.accepted_digest = submission.manifest_digest

    def versions(self) -> list[Published]:
        """All published versions, oldest first."""
        with self.begin() as session:
            return list(session.scalars(select(Published).order_by(Published.version)))

    def record_published(self, version: int, round_name: str, manifest_digest: str) -> None:
        """Store a new version and move its round on in one transaction."""
        with self.begin() as session:
            session.add(Published(version=version, round=round_name, manifest_digest=manifest_digest))
            session.get_one(Round, round_name).state = "published"

    def record_delivery(self, version: int, site: str, receipt: str, result_digest: str) -> None:
        """Store a site's receipt."""
        with self.begin() as session:
            session.merge(Delivery(version=version, site=site, receipt=receipt))
            session.get_one(Site, site).result_digest = result_digest

    def deliveries(self, version: int) -> list[Delivery]:
        """The receipts of a version."""
        with self.begin() as session:
            return list(session.scalars(select(Delivery).where(Delivery.version == version)))


def _careful_sqlite(connection: object, _record: object) -> None:
    """Foreign keys hold, a writer waits for another, and a committed row is on the disk."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("foreign_keys=ON", "busy_timeout=10000", "journal_mode=WAL", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
