"""A site's side of a secure sum: one function a step, each from a state to the next.

The caller stores the returned state (it holds secrets: mode 0600) and ledger before it
sends what a step returns. Every step may be repeated: equal input gives the same
message again, other input is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError, ProtocolError, RoundError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.secure_sum.fixed import check_range
from protocol.secure_sum.ledger import SumLedger
from protocol.secure_sum.masks import BLOCK, KEY_BYTES, RING, Ring, apply_masks
from protocol.secure_sum.messages import (
    MIN_SITES,
    Consent,
    KeyAdvert,
    MaskedVector,
    ParticipantList,
    ReceivedList,
    ReceivedSignature,
    Shares,
    SumSubject,
    Unmasking,
    check_consents,
    commit,
    open_all,
    set_digest,
)
from protocol.secure_sum.shamir import RandomBytes
from protocol.secure_sum.state import Secrets, SiteSum, deal, need, own_advert, own_masks, receive_shares
from protocol.signed import sign_message


def join(
    sites: ParticipantList,
    ledger: SumLedger,
    keys: PrivateKeys,
    *,
    site: str,
    subject: SumSubject,
    enrolled: Mapping[str, PublicKeys],
    data: str,
    nonce: bytes,
    min_sites: int = MIN_SITES,
) -> tuple[SiteSum, SumLedger, bytes]:
    """Check the participant list and sign it.

    Args:
        sites: the coordinator's list.
        ledger: the site's memory.
        keys: the site's long-term keys.
        site: our name.
        subject: what we agreed to sum.
        enrolled: the study's sites and their keys, as this site knows them.
        data: digest of the patients' data behind the vector; statistics of the same patients share it.
        nonce: what opens our commitment to `data`.
        min_sites: our own floor; values below three count as three.

    Returns:
        state, ledger, and the signed `Consent`.

    Raises:
        ProtocolError: the list names another subject, an unknown site or key, or other data of ours.
        RoundError: the list allows fewer sites than we do, or we have joined it before.
        GateError: see `SumLedger.joined`.
    """
    if sites.subject != subject:
        raise ProtocolError(
            "The participant list is for another sum than the one agreed",
            why="study, round, statistic or shape differ",
            do="Compare the study file with the coordinator's",
        )
    own = sites.participant(site)
    for participant in sites.sites:
        if enrolled.get(participant.site) != participant.keys:
            raise ProtocolError(
                f"The participant list names {participant.site} with keys that this site does not know",
                why="a coordinator could add a site of its own and so learn more than the sum",
                do="Compare the fingerprint with that site before you go on",
            )
    if own.keys != keys.public() or own.commitment != commit(data, nonce):
        raise ProtocolError(f"The participant list names other keys or other data of {site} than ours")
    if sites.minimum < max(min_sites, MIN_SITES):
        raise RoundError(
            f"The sum would go on with {sites.minimum} sites",
            why=f"this site asks for at least {max(min_sites, MIN_SITES)}",
            do="Have the coordinator raise the minimum, or change this site's floor",
        )
    sites.check_enough(sites.names, "participants")
    state = SiteSum(sites=sites, site=site)
    return (
        state,
        ledger.joined(sites, data),
        sign_message(Consent(session=state.session, site=site), keys),
    )


def advertise(
    state: SiteSum, keys: PrivateKeys, consents: Iterable[bytes], *, random: RandomBytes = os.urandom
) -> tuple[SiteSum, bytes]:
    """Make the ephemeral keys, once every site has signed the list.

    Returns:
        state and the signed `KeyAdvert`.

    Raises:
        ProtocolError: a listed site has not signed this list; or see `open_all`.
        EnvelopeError: a signature does not hold.
    """
    check_consents(state.sites, consents)
    secrets = state.secrets or Secrets(
        mask_key=random(KEY_BYTES).hex(), share_key=random(KEY_BYTES).hex(), seed=random(KEY_BYTES).hex()
    )
    state = state.model_copy(update={"secrets": secrets})
    return state, sign_message(own_advert(state), keys)


def deal_shares(
    state: SiteSum, keys: PrivateKeys, adverts: Iterable[bytes], *, random: RandomBytes = os.urandom
) -> tuple[SiteSum, bytes]:
    """Share seed and mask key with the sites that advertised keys.

    Returns:
        state and the signed `Shares`.

    Raises:
        ProtocolError: our own advert is missing or altered, or two sites have one key.
        EnvelopeError: a signature does not hold.
        RoundError: too few sites, or other adverts than at the first call.
    """
    opened = open_all(adverts, KeyAdvert, state.sites)
    if opened.get(state.site) != own_advert(state):
        raise ProtocolError("Our own key advert is missing or altered")
    state.sites.check_enough(opened, "advertise")
    public = [key for advert in opened.values() for key in (advert.mask_key, advert.share_key)]
    if len(set(public)) != len(public):
        raise ProtocolError("Two ephemeral keys of this sum are equal", do="Start a new attempt")
    if state.dealt is not None:
        if state.adverts != opened:
            raise RoundError("The shares of this sum were dealt to other keys before")
        return state, state.dealt.encode()
    message, own = deal(state, opened, random)
    signed = sign_message(message, keys)
    return state.model_copy(update={"adverts": opened, "dealt": signed.decode(), "own_shares": own}), signed


def mask(
    state: SiteSum,
    ledger: SumLedger,
    keys: PrivateKeys,
    shares: Iterable[bytes],
    values: npt.NDArray[np.int64],
    out: Ring | None = None,
) -> tuple[SiteSum, SumLedger, bytes, Ring]:
    """Mask our vector against all sites that dealt shares.

    y_u = x_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv), modulo 2^64.

    Args:
        state: after `deal_shares`.
        ledger: the site's memory.
        keys: the site's long-term keys.
        shares: the signed `Shares` of all sites that dealt them, ours included.
        values: (cells,) int64: counts, or `to_fixed`.
        out: (cells,) little-endian uint64 to write to, such as a file mapped into memory.

    Returns:
        state, ledger, the signed `MaskedVector`, and the vector, whose bytes travel beside it.

    Raises:
        DataError: wrong type or length, or a cell so large that the sum could overflow.
        ProtocolError: shares that do not open, or were dealt to other keys than ours.
        EnvelopeError: a signature does not hold.
        RoundError: too few sites, another vector, or other shares than at the first call.
    Source: Bonawitz et al. 2017, section 4, round 2.
    """
    cells = state.sites.subject.cells
    if values.dtype != np.int64 or values.shape != (cells,):
        raise DataError(
            f"The vector to be summed has type {values.dtype} and shape {values.shape}",
            why=f"the sum is over ({cells},) int64",
            do="Flatten the statistic, and bring other numbers into fixed point",
        )
    check_range(values, len(state.sites.sites))
    opened = open_all(shares, Shares, state.sites)
    sharers = set_digest(opened)
    if state.sharers not in ("", sharers):
        raise RoundError("The vector of this sum was masked against other sites before")
    held = receive_shares(state, opened)
    ledger = ledger.masked(state.session, _values_digest(values))
    out = np.empty(cells, RING) if out is None else out
    message = MaskedVector(
        session=state.session,
        site=state.site,
        sharers=sharers,
        cells=cells,
        sha256=apply_masks(values, own_masks(state, opened), out),
    )
    state = state.model_copy(update={"sharers": sharers, "held": held, "masked": message})
    return state, ledger, sign_message(message, keys), out


def sign_received(
    state: SiteSum, ledger: SumLedger, keys: PrivateKeys, received: ReceivedList
) -> tuple[SiteSum, SumLedger, bytes]:
    """Sign the list of the sites in the sum: one list, for good.

    Returns:
        state, ledger, and the signed `ReceivedSignature`.

    Raises:
        ProtocolError: the list leaves us out, holds another vector of ours, or sites that dealt no shares.
        RoundError: too few sites, or we have signed another list: the coordinator said two things.
        GateError: see `SumLedger.joined`.
    """
    masked = need(state.masked)
    if received.session != state.session or received.sharers != state.sharers:
        raise ProtocolError("The received list belongs to another sum, or to other shares than we saw")
    if received.vectors.get(state.site) != masked.sha256:
        raise ProtocolError(
            "The received list leaves out our vector, or names another", do="Send the masked vector again"
        )
    if not received.vectors.keys() <= state.held.keys():
        raise ProtocolError("The received list names sites that dealt no shares")
    state.sites.check_enough(received.vectors, "masked vector")
    if state.received not in (None, received):
        raise RoundError(
            "Another received list of this sum has been signed",
            why="under two lists the coordinator could unmask one site's vector",
            do="Ask the coordinator for an explanation; nothing of ours was revealed under the second list",
        )
    ledger = ledger.closed(state.session, received.vectors)
    message = ReceivedSignature(session=state.session, site=state.site, received=received.digest)
    return state.model_copy(update={"received": received}), ledger, sign_message(message, keys)


def reveal(state: SiteSum, keys: PrivateKeys, signatures: Iterable[bytes]) -> bytes:
    """Reveal what unmasks the sum: for each site one of its two shares, by the list that we signed.

    Args:
        state: after `sign_received`.
        keys: the site's long-term keys.
        signatures: the `ReceivedSignature` of all surviving sites.

    Returns:
        the signed `Unmasking`.

    Raises:
        ProtocolError: a signature is over another list, or by a site that is not in the sum.
        EnvelopeError: a signature does not hold.
        RoundError: fewer signatures than the threshold.
    """
    received = need(state.received)
    opened = open_all(signatures, ReceivedSignature, state.sites)
    for site, signature in opened.items():
        if signature.received != received.digest or site not in received.vectors:
            raise ProtocolError(
                f"{site} has signed another received list than we",
                why="the coordinator has told the sites different things",
                do="Reveal nothing; ask the coordinator for an explanation",
            )
    state.sites.check_signatures(opened)
    seeds = {s: state.held[s][0] for s in received.vectors}
    dropped = {s: both[1] for s, both in state.held.items() if s not in received.vectors}
    message = Unmasking(
        session=state.session, site=state.site, received=received.digest, seeds=seeds, keys=dropped
    )
    return sign_message(message, keys)


def _values_digest(values: npt.NDArray[np.int64]) -> str:
    state = hashlib.sha256()
    for start in range(0, len(values), BLOCK):
        state.update(np.ascontiguousarray(values[start : start + BLOCK], dtype="<i8").data)
    return state.hexdigest()
