"""What the parties of a secure sum tell each other; each travels in `protocol.signed`.

`session`, in every message, is the digest of the participant list: it binds study,
round, attempt, statistic, all sites, their signing keys and their data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from protocol.canonical import digest
from protocol.envelope import pae
from protocol.errors import ProtocolError, RoundError
from protocol.keys import PublicKeys
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import open_signed, peek

MIN_SITES = 3
MAX_SITES = 500
MAX_CELLS = 1 << 31

Key = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Share = Annotated[str, StringConstraints(pattern="^[0-9a-f]{66}$")]
Box = Annotated[str, StringConstraints(pattern="^[0-9a-f]{188}$")]  # nonce 12, two shares 66, tag 16


def threshold(sites: int) -> int:
    """Shares that restore a secret, and signatures that close a sum, of so many participants.

    More than two thirds; two of three, where the floor of three sites allows one membership only.
    """
    return 2 if sites == MIN_SITES else 2 * sites // 3 + 1


class SumMessage(Message):
    """Strict, frozen, closed to unknown fields; a failed check does not quote the message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class SumSubject(SumMessage):
    """What is summed."""

    study_digest: HexDigest
    round: Identifier
    statistic: Identifier = Field(description="The statistic's name.")
    shape_digest: HexDigest = Field(description="Digest of what the cells mean: codes, shape, order, bits.")
    cells: int = Field(ge=1, le=MAX_CELLS)


class Participant(SumMessage):
    """A site, its keys from enrolment, and its commitment to the data behind its vector."""

    site: Identifier
    keys: PublicKeys
    commitment: HexDigest


class ParticipantList(SumMessage):
    """Who sums what. Nothing happens before every site has signed this."""

    subject: SumSubject
    attempt: int = Field(1, ge=1, le=1000, description="A new attempt has new keys.")
    minimum: int = Field(MIN_SITES, ge=MIN_SITES, le=MAX_SITES, description="Fewest sites in the sum.")
    sites: tuple[Participant, ...] = Field(min_length=MIN_SITES, max_length=MAX_SITES)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if any(a >= b for a, b in zip(self.names, self.names[1:], strict=False)):
            raise ValueError("sites must stand once each, in order of their names")
        if len({p.keys.signing for p in self.sites}) != len(self.sites):
            raise ValueError("two sites have the same signing key")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, in order."""
        return tuple(p.site for p in self.sites)

    @property
    def threshold(self) -> int:
        """See `threshold`."""
        return threshold(len(self.sites))

    def participant(self, site: str) -> Participant:
        """The entry of a site.

        Raises:
            ProtocolError: it is not on the list.
        """
        for participant in self.sites:
            if participant.site == site:
                return participant
        raise ProtocolError(f"{site} is not on the participant list of this sum")

    def point(self, site: str) -> int:
        """Where a site's shares are taken: its place on the list, from 1."""
        return self.names.index(site) + 1

    def check_enough(self, sites: Iterable[str], step: str) -> None:
        """Return only if so many sites remain that the sum may go on.

        Raises:
            RoundError: fewer than the threshold, or than the floor.
        """
        count, needed = len(set(sites)), max(self.threshold, self.minimum)
        if count < needed:
            raise RoundError(
                f"{count} of {len(self.sites)} sites remain after the step {step!r} of the secure sum",
                why=f"it needs {needed}: fewer could expose one of them",
                do="Wait for the missing sites, or start a new attempt",
            )

    def check_signatures(self, sites: Iterable[str]) -> None:
        """Return only if enough sites have signed the received list.

        Raises:
            RoundError: fewer than the threshold.
        """
        count = len(set(sites))
        if count < self.threshold:
            raise RoundError(
                f"{count} sites have signed the received list, {self.threshold} are needed",
                do="Wait for the missing sites: the sum can be resumed",
            )


class Consent(SumMessage):
    """A site has checked the participant list and takes part."""

    session: HexDigest
    site: Identifier


class KeyAdvert(SumMessage):
    """A site's ephemeral X25519 keys for this sum alone."""

    session: HexDigest
    site: Identifier
    mask_key: Key
    share_key: Key


class Shares(SumMessage):
    """Shares of a site's self-mask seed and private mask key, one sealed box a site."""

    session: HexDigest
    site: Identifier
    adverts: HexDigest = Field(description="Digest of the key adverts that the site saw.")
    seed_commitment: HexDigest
    boxes: dict[Identifier, Box] = Field(max_length=MAX_SITES)
    share_digests: dict[Identifier, tuple[HexDigest, HexDigest]] = Field(
        max_length=MAX_SITES, description="Holder -> digest of its share of the seed, and of the mask key."
    )


class MaskedVector(SumMessage):
    """Announces 8 * cells bytes, little-endian uint64, that travel beside it."""

    session: HexDigest
    site: Identifier
    sharers: HexDigest = Field(description="Digest of the shares messages that the site saw.")
    cells: int = Field(ge=1, le=MAX_CELLS)
    sha256: HexDigest = Field(description="Of the vector's bytes.")


class ReceivedList(SumMessage):
    """The sites in the sum, by the digests of their vectors."""

    session: HexDigest
    sharers: HexDigest
    vectors: dict[Identifier, HexDigest] = Field(max_length=MAX_SITES)


class ReceivedSignature(SumMessage):
    """A site will unmask this list and no other."""

    session: HexDigest
    site: Identifier
    received: HexDigest = Field(description="Digest of the received list.")


class Unmasking(SumMessage):
    """Shares of the seeds of sites in the sum, and of the mask keys of sites that dropped out."""

    session: HexDigest
    site: Identifier
    received: HexDigest
    seeds: dict[Identifier, Share] = Field(max_length=MAX_SITES)
    keys: dict[Identifier, Share] = Field(max_length=MAX_SITES)

    @model_validator(mode="after")
    def _never_both(self) -> Self:
        if self.seeds.keys() & self.keys.keys():
            raise ValueError("both shares of one site")
        return self


FromSite = TypeVar("FromSite", Consent, KeyAdvert, Shares, MaskedVector, ReceivedSignature, Unmasking)


def open_all(messages: Iterable[bytes], kind: type[FromSite], sites: ParticipantList) -> dict[str, FromSite]:
    """Signed messages of one kind by site, in order of names; each is verified.

    Raises:
        ProtocolError: not of this kind, sum or list, or a site says two things.
        EnvelopeError: a signature does not hold.
    """
    session, opened = sites.digest, dict[str, FromSite]()
    for data in messages:
        site = peek(data, kind).site
        message = open_signed(data, kind, sites.participant(site).keys)
        if message.session != session:
            raise ProtocolError(
                f"A {kind.__name__} of {site} belongs to another sum",
                do="If nobody sent it by mistake, ask the coordinator why it was replayed",
            )
        if opened.setdefault(site, message) != message:
            raise ProtocolError(f"{site} has signed two different {kind.__name__} messages in one sum")
    return dict(sorted(opened.items()))


def check_consents(sites: ParticipantList, consents: Iterable[bytes]) -> None:
    """Return only if every listed site has signed the list.

    Raises:
        ProtocolError: one has not; or see `open_all`.
        EnvelopeError: a signature does not hold.
    """
    missing = sorted(set(sites.names) - set(open_all(consents, Consent, sites)))
    if missing:
        raise ProtocolError(
            f"The participant list is not signed by {', '.join(missing)}",
            why="a sum starts once all its sites have agreed on who they are",
            do="Wait for them, or have the coordinator make a list without them",
        )


def set_digest(messages: dict[str, KeyAdvert] | dict[str, Shares]) -> str:
    """One digest for all messages of a step."""
    return digest({site: message.digest for site, message in messages.items()})


def commit(data: str, nonce: bytes) -> str:
    """A site's commitment to its data: binding, and silent as long as the 32-byte nonce is secret.

    Args:
        data: digest of the patients' data behind the vector.
        nonce: fresh random bytes.
    """
    return digest(pae(b"smile/sum/data", data.encode(), nonce))


def seed_commitment(session: str, site: str, seed: bytes) -> str:
    """Commitment to a self-mask seed: the coordinator checks the restored seed against it."""
    return digest(pae(b"smile/sum/seed", session.encode(), site.encode(), seed))


def share_digest(session: str, dealer: str, holder: str, share: bytes) -> str:
    """Commitment to one share: the coordinator can tell which share was altered."""
    return digest(pae(b"smile/sum/share", session.encode(), dealer.encode(), holder.encode(), share))
