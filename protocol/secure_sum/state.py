"""A site's state in one sum, and what follows from it: its shares, and its masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from pydantic import Field

from protocol.errors import ProtocolError, RoundError
from protocol.sections import Identifier
from protocol.secure_sum.masks import Channel, Mask, pair_mask, public_bytes, self_mask
from protocol.secure_sum.messages import (
    MAX_SITES,
    Key,
    KeyAdvert,
    MaskedVector,
    ParticipantList,
    ReceivedList,
    Share,
    Shares,
    SumMessage,
    open_all,
    seed_commitment,
    set_digest,
    share_digest,
)
from protocol.secure_sum.shamir import SHARE_BYTES, RandomBytes, split

T = TypeVar("T")


class Secrets(SumMessage):
    """Private X25519 keys and the self-mask seed, in hex; used for one vector, never printed."""

    mask_key: Key = Field(repr=False)
    share_key: Key = Field(repr=False)
    seed: Key = Field(repr=False)


class SiteSum(SumMessage):
    """A site's state in one sum. What a step has fixed is never fixed anew."""

    sites: ParticipantList
    site: Identifier
    secrets: Secrets | None = Field(None, repr=False)
    adverts: dict[Identifier, KeyAdvert] | None = None
    dealt: str | None = Field(None, repr=False, description="The signed shares message, to be sent again.")
    own_shares: tuple[Share, Share] | None = Field(None, repr=False)
    sharers: str = Field("", description="Digest of the shares messages behind the masks.")
    held: dict[Identifier, tuple[Share, Share]] = Field(default={}, repr=False, max_length=MAX_SITES)
    masked: MaskedVector | None = None
    received: ReceivedList | None = None

    @property
    def session(self) -> str:
        """Digest of the participant list."""
        return self.sites.digest


def need(value: T | None) -> T:
    """What an earlier step has fixed.

    Raises:
        RoundError: it was not taken.
    """
    if value is None:
        raise RoundError("A step of the secure sum was called out of order", do="Repeat the missing step")
    return value


def own_advert(state: SiteSum) -> KeyAdvert:
    """Our public keys."""
    secrets = need(state.secrets)
    mask_key, share_key = (
        public_bytes(bytes.fromhex(k)).hex() for k in (secrets.mask_key, secrets.share_key)
    )
    return KeyAdvert(session=state.session, site=state.site, mask_key=mask_key, share_key=share_key)


def deal(
    state: SiteSum, adverts: dict[str, KeyAdvert], random: RandomBytes
) -> tuple[Shares, tuple[str, str]]:
    """Our shares message, and the two shares that we keep ourselves."""
    secrets, sites, session = need(state.secrets), state.sites, state.session
    points = [sites.point(s) for s in adverts]
    seed = bytes.fromhex(secrets.seed)
    seeds = split(seed, points, sites.threshold, random)
    mask_keys = split(bytes.fromhex(secrets.mask_key), points, sites.threshold, random)
    view, private = set_digest(adverts), bytes.fromhex(secrets.share_key)
    boxes, digests = {}, {}
    for holder, advert in adverts.items():
        pair = seeds[sites.point(holder)], mask_keys[sites.point(holder)]
        digests[holder] = _share_digests(session, state.site, holder, pair)
        if holder != state.site:
            channel = Channel(session, view, state.site, holder)
            text = b"".join(pair)
            boxes[holder] = channel.seal(text, private, bytes.fromhex(advert.share_key), random).hex()
    own = sites.point(state.site)
    message = Shares(
        session=session,
        site=state.site,
        adverts=view,
        seed_commitment=seed_commitment(session, state.site, seed),
        boxes=boxes,
        share_digests=digests,
    )
    return message, (seeds[own].hex(), mask_keys[own].hex())


def _share_digests(session: str, dealer: str, holder: str, pair: Sequence[bytes]) -> tuple[str, str]:
    seed, key = (share_digest(session, dealer, holder, share) for share in pair)
    return seed, key


def receive_shares(state: SiteSum, opened: dict[str, Shares]) -> dict[str, tuple[str, str]]:
    """What each dealer gave us, ours included; every box and commitment is checked.

    Raises:
        ProtocolError: a box does not open, or its dealer saw other keys or committed to other shares.
        RoundError: too few dealers.
    """
    adverts, private = need(state.adverts), bytes.fromhex(need(state.secrets).share_key)
    dealt = open_all([need(state.dealt).encode()], Shares, state.sites)[state.site]
    if opened.get(state.site) != dealt:
        raise ProtocolError("Our own shares message is missing or altered")
    state.sites.check_enough(opened, "share")
    session = state.session
    view, held = set_digest(adverts), {state.site: need(state.own_shares)}
    for dealer, message in opened.items():
        if message.adverts != view or dealer not in adverts:
            raise ProtocolError(
                f"{dealer} saw other ephemeral keys than we",
                why="the coordinator has told the sites different things, or a site joined late",
                do="Have the coordinator start a new attempt",
            )
        if dealer == state.site:
            continue
        channel = Channel(session, view, dealer, state.site)
        box = bytes.fromhex(message.boxes.get(state.site, ""))
        text = channel.open(box, private, bytes.fromhex(adverts[dealer].share_key))
        pair = text[:SHARE_BYTES], text[SHARE_BYTES:]
        if message.share_digests.get(state.site) != _share_digests(session, dealer, state.site, pair):
            raise ProtocolError(
                f"The shares of {dealer} are not those that it committed to",
                do="Have the coordinator start a new attempt without that site",
            )
        held[dealer] = pair[0].hex(), pair[1].hex()
    return held


def own_masks(state: SiteSum, sharers: Iterable[str]) -> list[Mask]:
    """Our self-mask and one mask for each other site that dealt shares."""
    secrets, adverts = need(state.secrets), need(state.adverts)
    session, private = state.session, bytes.fromhex(secrets.mask_key)
    pairs = [
        pair_mask(session, state.site, private, other, bytes.fromhex(adverts[other].mask_key))
        for other in sharers
        if other != state.site
    ]
    return [self_mask(session, state.site, bytes.fromhex(secrets.seed)), *pairs]
