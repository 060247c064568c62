"""The tables of the coordinator's database."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, UniqueConstraint, false
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from protocol.keylist import KnownKeys
from protocol.keys import PublicKeys


def utc_now() -> datetime:
    """Now, in UTC, without a zone."""
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
    enrolled: Mapped[datetime] = mapped_column(default=utc_now)
    accepted_sequence: Mapped[int] = mapped_column(default=0)
    accepted_digest: Mapped[str] = mapped_column(String(64), default="")
    result_digest: Mapped[str] = mapped_column(String(64), default="")
    known_keys: Mapped[str] = mapped_column(String(1024), default="")
    withdrawn: Mapped[datetime | None] = mapped_column(default=None)

    @property
    def public_keys(self) -> PublicKeys:
        """The site's present keys."""
        return PublicKeys.model_validate_json(self.keys)

    @property
    def known(self) -> KnownKeys:
        """How far its key list was followed; the list begins with the enrolled keys."""
        if self.known_keys:
            return KnownKeys.model_validate_json(self.known_keys)
        return KnownKeys(party=self.name, first=self.public_keys.digest)


class SiteKey(Base):
    """Every key that a site has ever had here: in use from `since` until `until`."""

    __tablename__ = "site_key"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"))
    keys: Mapped[str] = mapped_column(String(8192))
    since: Mapped[datetime] = mapped_column(default=utc_now)
    until: Mapped[datetime | None] = mapped_column(default=None)
    revoked: Mapped[datetime | None] = mapped_column(default=None)

    @property
    def public_keys(self) -> PublicKeys:
        """The keys themselves."""
        return PublicKeys.model_validate_json(self.keys)


class OldNodeKey(Base):
    """A Flower key that a site has replaced; its node is shut out once the services run."""

    __tablename__ = "old_node_key"

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"))
    node_key: Mapped[str] = mapped_column(String(1024))
    at: Mapped[datetime] = mapped_column(default=utc_now)
    denied: Mapped[bool] = mapped_column(default=False)


class Round(Base):
    """A round, and where it stands in `coordinator.rounds.states`."""

    __tablename__ = "round"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), default="open")
    call: Mapped[bytes] = mapped_column(LargeBinary)
    opened: Mapped[datetime] = mapped_column(default=utc_now)
    expires: Mapped[datetime]
    days: Mapped[int] = mapped_column(default=30, server_default="30")
    by_file: Mapped[bool] = mapped_column(default=False, server_default=false())
    step: Mapped[str] = mapped_column(String(200), default="", server_default="")
    share: Mapped[float] = mapped_column(default=0.0, server_default="0")


class RoundEvent(Base):
    """One move of a round, or one thing decided about it; never changed."""

    __tablename__ = "round_event"

    id: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("round.name"), index=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    state: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str] = mapped_column(String(2000), default="")


class Exclusion(Base):
    """A site whose release a round does without, and why."""

    __tablename__ = "exclusion"

    round: Mapped[str] = mapped_column(ForeignKey("round.name"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"), primary_key=True)
    because: Mapped[str] = mapped_column(String(500))
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Submission(Base):
    """A site's release in a round: accepted, refused, or withdrawn with its site."""

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
    signer: Mapped[str] = mapped_column(String(64), default="")
    received: Mapped[datetime] = mapped_column(default=utc_now)


class Published(Base):
    """A published version. Versions are never changed; one may be withdrawn, and its files erased."""

    __tablename__ = "published"

    version: Mapped[int] = mapped_column(primary_key=True)
    round: Mapped[str] = mapped_column(ForeignKey("round.name"))
    manifest_digest: Mapped[str] = mapped_column(String(64))
    fitted_with: Mapped[str] = mapped_column(String(100_000), default="")
    created: Mapped[datetime] = mapped_column(default=utc_now)
    withdrawn: Mapped[datetime | None] = mapped_column(default=None)
    erased: Mapped[bool] = mapped_column(default=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites whose releases it was fitted with."""
        return tuple(self.fitted_with.split())


class Delivery(Base):
    """A site's signed receipt for a version."""

    __tablename__ = "delivery"

    version: Mapped[int] = mapped_column(ForeignKey("published.version"), primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"), primary_key=True)
    receipt: Mapped[str] = mapped_column(String(20_000))
    received: Mapped[datetime] = mapped_column(default=utc_now)


class ReviewRecord(Base):
    """One record of the review log (`coordinator.review.record.Decision`), signed; never changed or deleted."""

    __tablename__ = "review_record"

    # Given by the log, never by the database: two writers of one number cannot both be stored.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    signed: Mapped[bytes] = mapped_column(LargeBinary)


class ReviewHead(Base):
    """The last record of the review log: whoever appends moves this row on in the same transaction."""

    __tablename__ = "review_head"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(default=0)
    digest: Mapped[str] = mapped_column(String(64), default="")


class AccessToken(Base):
    """What lets a person into the web service; the token itself is known to its holder only."""

    __tablename__ = "access_token"

    number: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=utc_now)
    expires: Mapped[datetime | None] = mapped_column(default=None)
    revoked: Mapped[datetime | None] = mapped_column(default=None)


class Withdrawal(Base):
    """A site's withdrawal and how far it is: each step is stored when it has ended."""

    __tablename__ = "withdrawal"

    id: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(ForeignKey("site.name"))
    reason: Mapped[str] = mapped_column(String(2000))
    at: Mapped[datetime] = mapped_column(default=utc_now)
    node_key: Mapped[str] = mapped_column(String(1024))
    node_denied: Mapped[bool] = mapped_column(default=False)
    erase_versions: Mapped[bool] = mapped_column(default=False)
    # Fixed when it begins, since the steps change what they would be computed from.
    affected_rounds: Mapped[str] = mapped_column(String(100_000), default="")
    affected_sums: Mapped[str] = mapped_column(String(100_000), default="")
    affected_versions: Mapped[str] = mapped_column(String(100_000), default="")
    affected_fits: Mapped[str] = mapped_column(String(100_000), default="")
    reviewed: Mapped[str] = mapped_column(String(1_000_000), default="{}")
    refit_round: Mapped[str] = mapped_column(String(32), default="")
    step: Mapped[str] = mapped_column(String(16), default="begun")
    erased_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    new_version: Mapped[int] = mapped_column(default=0)
    outcome: Mapped[str] = mapped_column(String(2000), default="")

    @property
    def rounds(self) -> tuple[str, ...]:
        """Rounds to which something of the site came."""
        return tuple(self.affected_rounds.split())

    @property
    def sums(self) -> tuple[str, ...]:
        """Secure sums in which it took part."""
        return tuple(self.affected_sums.split())

    @property
    def fits(self) -> tuple[str, ...]:
        """Rounds whose fit is erased; those that were published are fitted again, the first one first."""
        return tuple(self.affected_fits.split())

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions that were fitted with its release."""
        return tuple(int(v) for v in self.affected_versions.split())
