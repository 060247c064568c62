"""The coordinator's side of a secure sum: who is in it, and the sum itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np

from protocol.errors import ProtocolError, RoundError
from protocol.secure_sum.fixed import Int64Vector
from protocol.secure_sum.masks import BLOCK, RING, Mask, Ring, apply_masks, pair_mask, public_bytes, self_mask
from protocol.secure_sum.messages import (
    KeyAdvert,
    MaskedVector,
    ParticipantList,
    ReceivedList,
    Shares,
    Unmasking,
    open_all,
    seed_commitment,
    set_digest,
    share_digest,
)
from protocol.secure_sum.shamir import combine

Buffer: TypeAlias = bytes | bytearray | memoryview


class SecureSum(NamedTuple):
    """The sum, whose it is, and which sites sent shares that were not those dealt to them."""

    values: Int64Vector
    members: tuple[str, ...]
    faulty: tuple[str, ...]


class Transcript(NamedTuple):
    """Signed messages as they came, one a site and step; a site that dropped out sent no further ones."""

    adverts: tuple[bytes, ...]
    shares: tuple[bytes, ...]
    vectors: tuple[bytes, ...]
    unmaskings: tuple[bytes, ...] = ()


def received_list(sites: ParticipantList, transcript: Transcript) -> ReceivedList:
    """The list that all surviving sites are to sign: whoever sent a vector is in the sum.

    Raises:
        ProtocolError: a vector was masked against other shares; or see `open_all`.
        EnvelopeError: a signature does not hold.
        RoundError: too few sites remain.
    """
    dealers = open_all(transcript.shares, Shares, sites)
    sharers = set_digest(dealers)
    vectors = open_all(transcript.vectors, MaskedVector, sites)
    for site, vector in vectors.items():
        if site not in dealers or vector.sharers != sharers or vector.cells != sites.subject.cells:
            raise ProtocolError(f"The vector of {site} was masked against other shares, or has another size")
    sites.check_enough(vectors, "masked vector")
    return ReceivedList(
        session=sites.digest, sharers=sharers, vectors={s: v.sha256 for s, v in vectors.items()}
    )


def aggregate(
    sites: ParticipantList,
    received: ReceivedList,
    transcript: Transcript,
    vectors: Iterable[tuple[str, Buffer]],
) -> SecureSum:
    """Add the vectors and take their masks away.

    sum of x_u = sum of y_u - sum of PRG(b_u) - sum over u in the sum, v dropped, of +-PRG(s_uv), modulo 2^64.

    Args:
        sites: the list that all sites signed.
        received: the list that all surviving sites signed.
        transcript: their messages.
        vectors: the name and the bytes of each vector in `received`, in any order; one is needed at a time.

    Raises:
        ProtocolError: a vector is not the one announced, or a secret is not restored by its shares.
        EnvelopeError: a signature does not hold.
        RoundError: too few shares, or a vector is missing.
    Source: Bonawitz et al. 2017, section 4, round 4.
    """
    masks, faulty = _open_masks(sites, received, transcript)
    total = _add_vectors(sites, received, vectors)
    apply_masks(total, [m.inverse() for m in masks], total)
    return SecureSum(total.view(np.int64), tuple(sorted(received.vectors)), faulty)


def _add_vectors(
    sites: ParticipantList, received: ReceivedList, vectors: Iterable[tuple[str, Buffer]]
) -> Ring:
    total, missing = np.zeros(sites.subject.cells, RING), set(received.vectors)
    for site, buffer in vectors:
        raw = memoryview(buffer).cast("B")
        if site not in missing or raw.nbytes != total.nbytes:
            raise ProtocolError(f"The vector of {site} is unexpected or has a wrong size")
        if hashlib.sha256(raw).hexdigest() != received.vectors[site]:
            raise ProtocolError(f"The vector of {site} is not the one that it announced")
        vector = np.frombuffer(raw, RING)
        for start in range(0, len(total), BLOCK):
            total[start : start + BLOCK] += vector[start : start + BLOCK]
        missing.discard(site)
    if missing:
        raise RoundError(f"The vector of {', '.join(sorted(missing))} is missing")
    return total


def _open_masks(
    sites: ParticipantList, received: ReceivedList, transcript: Transcript
) -> tuple[list[Mask], tuple[str, ...]]:
    """All masks that the summed vectors still carry, and the sites whose shares were wrong."""
    adverts = open_all(transcript.adverts, KeyAdvert, sites)
    dealers = open_all(transcript.shares, Shares, sites)
    unmaskings = open_all(transcript.unmaskings, Unmasking, sites)
    session, members, faulty = sites.digest, set(received.vectors), set[str]()
    if received.session != session or received.sharers != set_digest(dealers):
        raise ProtocolError("The received list belongs to another sum, or to other shares")
    if not members <= dealers.keys() <= adverts.keys():
        raise ProtocolError("A site is in the sum that has not taken all its steps")
    if any(u.received != received.digest for u in unmaskings.values()):
        raise ProtocolError("A site has unmasked another received list")
    masks = []
    for dealer, message in dealers.items():
        kept = dealer in members
        shares = {
            site: bytes.fromhex(table[dealer])
            for site, unmasking in unmaskings.items()
            if dealer in (table := unmasking.seeds if kept else unmasking.keys)
        }
        secret = _restore(sites, session, message, shares, faulty, kept=kept)
        if kept:
            if seed_commitment(session, dealer, secret) != message.seed_commitment:
                raise _inconsistent(dealer)
            masks.append(self_mask(session, dealer, secret))
            continue
        if public_bytes(secret).hex() != adverts[dealer].mask_key:
            raise _inconsistent(dealer)
        # What the members added for the site that dropped out is the inverse of what it would have added.
        masks += [
            pair_mask(session, dealer, secret, m, bytes.fromhex(adverts[m].mask_key)).inverse()
            for m in sorted(members)
        ]
    return masks, tuple(sorted(faulty))


def _restore(
    sites: ParticipantList,
    session: str,
    dealt: Shares,
    shares: dict[str, bytes],
    faulty: set[str],
    *,
    kept: bool,
) -> bytes:
    good = {}
    for holder, share in shares.items():
        promised = dealt.share_digests.get(holder, ("", ""))[0 if kept else 1]
        if share_digest(session, dealt.site, holder, share) == promised:
            good[sites.point(holder)] = share
        else:
            faulty.add(holder)
    needed = sites.threshold
    if len(good) < needed:
        raise RoundError(
            f"{len(good)} good shares of {dealt.site} have come, {needed} are needed",
            why=f"wrong shares came from: {', '.join(sorted(faulty)) or 'nobody'}",
            do="Have the missing sites repeat the last step",
        )
    return combine(dict(sorted(good.items())[:needed]))


def _inconsistent(dealer: str) -> ProtocolError:
    return ProtocolError(
        f"The shares that {dealer} dealt do not restore its secret",
        why="it dealt wrong shares: the sum cannot be unmasked",
        do=f"Start a new attempt without {dealer}",
    )
