"""Secure sum: exact in every course of events, and refused in every crooked one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chi2

from protocol.canonical import digest
from protocol.errors import DataError, EnvelopeError, GateError, ProtocolError, RoundError
from protocol.secure_sum import (
    KeyAdvert,
    ParticipantList,
    ReceivedSignature,
    Secrets,
    Shares,
    SumLedger,
    Transcript,
    Unmasking,
    advertise,
    aggregate,
    deal_shares,
    join,
    mask,
    received_list,
    reveal,
    singled_out,
    threshold,
)
from protocol.secure_sum.masks import Mask, apply_masks, pair_mask, public_bytes
from protocol.secure_sum.messages import open_all
from protocol.signed import peek, sign_message
from tests.secure_sum_wire import Node, Wire, names, nodes, site_keys, vectors

CELLS = 40
A, B, C, D, E = names(5)


def exact(values: dict[str, Any], members: tuple[str, ...]) -> Any:
    return sum(values[s] for s in members)


def changed(data: bytes, kind: Any, signer: str, **changes: Any) -> bytes:
    """The message with other fields, signed again by the site: what a crooked site would send."""
    return sign_message(peek(data, kind).model_copy(update=changes), site_keys(signer))


# --- The sum ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 20])
def test_the_sum_is_exact(n: int) -> None:
    values = vectors(n, CELLS)
    result = Wire(nodes(n), CELLS).sum(values)
    assert result.members == names(n)
    assert result.faulty == ()
    assert np.array_equal(result.values, exact(values, names(n)))


def test_extreme_cells_do_not_wrap() -> None:
    limit = (2**63 - 1) // 3
    values = {s: np.array([limit, -limit, 0, 1]) for s in names(3)}
    assert Wire(nodes(3), 4).sum(values).values.tolist() == [3 * limit, -3 * limit, 0, 3]
    wire = Wire(nodes(3), 4)
    wire.run(values, until="share")
    with pytest.raises(DataError, match="too large"):
        wire.mask(A, np.array([limit + 1, 0, 0, 0]))
    with pytest.raises(DataError, match="too large"):
        wire.mask(A, np.array([0, -limit - 1, 0, 0]))


def test_wrong_type_or_length() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run(vectors(3, CELLS), until="share")
    for wrong in (np.zeros(CELLS), np.zeros(CELLS + 1, np.int64), np.zeros((CELLS, 1), np.int64)):
        with pytest.raises(DataError, match="int64"):
            wire.mask(A, wrong)


def test_a_vector_is_masked_into_memory_that_the_caller_gives() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run(values := vectors(3, CELLS), until="share")
    out = np.zeros(CELLS, "<u8")
    node = wire.nodes[A]
    *_, vector = mask(wire.states[A], node.ledger, node.keys, wire.all("share"), values[A], out)
    assert vector is out
    wire.mask(A, values[A])
    assert np.array_equal(out, wire.vectors[A])


# --- Dropping out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("step", ["advertise", "share", "mask", "sign", "reveal"])
def test_drop_out_at_each_step(n: int, step: str) -> None:
    """As many go as may go; who was still there when vectors were sent is in the sum."""
    values, gone = vectors(n, CELLS), set(names(n)[: n - threshold(n)])
    if step == "advertise":  # the list is signed by all: those who go before that are not on it
        gone = {B}
    result = Wire(nodes(n), CELLS).sum(values, {step: gone})
    stay = names(n) if step in ("sign", "reveal") else tuple(s for s in names(n) if s not in gone)
    assert result.members == stay
    assert np.array_equal(result.values, exact(values, stay))


def test_drop_outs_at_several_steps() -> None:
    values = vectors(20, CELLS)
    drop = {"advertise": {"site-00"}, "share": {"site-03"}, "mask": {"site-19"}, "sign": {"site-07"}}
    result = Wire(nodes(20), CELLS).sum(values, drop | {"reveal": {"site-08"}})
    assert len(result.members) == 17
    assert {"site-07", "site-08"} <= set(result.members)
    assert np.array_equal(result.values, exact(values, result.members))


@pytest.mark.parametrize("step", ["advertise", "share", "mask", "sign", "reveal"])
@pytest.mark.parametrize("n", [3, 5])
def test_too_few_left_is_a_clean_refusal(n: int, step: str) -> None:
    gone = names(n)[: n - threshold(n) + 1]
    with pytest.raises(RoundError, match=r"needed|needs"):
        Wire(nodes(n), CELLS).sum(vectors(n, CELLS), {step: gone})


@pytest.mark.parametrize("step", ["sign", "reveal"])
def test_of_three_sites_one_may_go_once_all_vectors_are_there(step: str) -> None:
    values = vectors(3, CELLS)
    assert np.array_equal(Wire(nodes(3), CELLS).sum(values, {step: {B}}).values, exact(values, names(3)))


@pytest.mark.parametrize("step", ["advertise", "share", "mask"])
def test_of_three_sites_none_may_go_before(step: str) -> None:
    with pytest.raises(RoundError, match="2 of 3 sites remain"):
        Wire(nodes(3), CELLS).sum(vectors(3, CELLS), {step: {B}})


def test_the_sites_own_floor() -> None:
    wire = Wire(nodes(5), CELLS, minimum=5)
    with pytest.raises(RoundError, match="4 of 5 sites remain"):
        wire.sum(vectors(5, CELLS), {"mask": {B}})
    with pytest.raises(RoundError, match="asks for at least 4"):
        Wire(nodes(5), CELLS).join(A, min_sites=4)
    Wire(nodes(5), CELLS).join(A, min_sites=1)  # counts as three


def test_a_sum_is_resumed_when_a_site_comes_back() -> None:
    values = vectors(3, CELLS)
    wire = Wire(nodes(3), CELLS)
    wire.run(values, {"sign": {B, C}}, until="sign")
    with pytest.raises(RoundError, match="1 sites have signed"):
        wire.reveal(A)
    wire.sign(B)
    wire.reveal(A)
    with pytest.raises(RoundError, match="1 good shares"):
        wire.total()
    wire.reveal(B)
    assert np.array_equal(wire.total().values, exact(values, names(3)))


# --- The participant list --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_sites_are_refused(n: int) -> None:
    with pytest.raises(ValidationError, match="at least 3"):
        Wire(nodes(n), CELLS)


def test_a_minimum_below_three_is_refused() -> None:
    with pytest.raises(ValidationError, match="minimum"):
        Wire(nodes(3), CELLS, minimum=2)


def test_one_site_under_two_names_is_refused() -> None:
    wire = Wire(nodes(4), CELLS)
    first, second, *rest = wire.sites.sites
    twin = second.model_copy(update={"keys": first.keys})
    for sites in ((first, twin, *rest), (second, first, *rest), (first, first, *rest)):
        with pytest.raises(ValidationError, match="sites"):
            ParticipantList(subject=wire.subject, sites=sites)


def test_a_phantom_site_is_refused() -> None:
    wire = Wire(nodes(4), CELLS)
    real = {s: wire.nodes[s].keys.public() for s in (A, B, C)}
    with pytest.raises(ProtocolError, match=f"names {D} with keys that this site does not know"):
        wire.join(A, enrolled=real)
    with pytest.raises(ProtocolError, match=f"names {D} with keys"):
        wire.join(A, enrolled=real | {D: site_keys("the coordinator's own").public()})


def test_the_list_must_be_signed_by_all() -> None:
    wire = Wire(nodes(4), CELLS)
    for site in (A, B, C):
        wire.join(site)
    with pytest.raises(ProtocolError, match=f"not signed by {D}"):
        wire.advertise(A)
    wire.said["join"][D] = changed(wire.said["join"][C], type(_consent(wire, C)), C, site=D)
    with pytest.raises(EnvelopeError, match="signature"):
        wire.advertise(A)


def _consent(wire: Wire, site: str) -> Any:
    from protocol.secure_sum import Consent

    return peek(wire.said["join"][site], Consent)


def test_a_list_about_something_else_is_refused() -> None:
    wire = Wire(nodes(3), CELLS)
    with pytest.raises(ProtocolError, match="another sum"):
        wire.join(A, subject=wire.subject.model_copy(update={"statistic": "margins"}))
    with pytest.raises(ProtocolError, match="other keys or other data"):
        wire.join(A, data=digest(b"other patients"))
    with pytest.raises(ProtocolError, match="not on the participant list"):
        join(
            wire.sites,
            SumLedger(),
            site_keys(D),
            site=D,
            subject=wire.subject,
            enrolled={},
            data=digest(b"patients"),
            nonce=bytes(32),
        )


def test_a_list_that_differs_between_sites_stops_the_sum() -> None:
    """The coordinator tells A that D takes part, and the others that it does not."""
    everyone = nodes(4)
    with_d, without_d = Wire(everyone, CELLS), Wire(everyone, CELLS, members=(A, B, C))
    with_d.join(A)
    for site in (B, C):
        without_d.join(site)
    consents = (*with_d.all("join"), *without_d.all("join"))
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        advertise(with_d.states[A], site_keys(A), consents)


# --- A coordinator that lies -----------------------------------------------------------------------------


def test_swapped_keys() -> None:
    wire = Wire(nodes(4), CELLS)
    wire.run({}, until="advertise")
    honest = dict(wire.said["advertise"])
    own = public_bytes(bytes(range(32))).hex()
    advert = peek(honest[B], KeyAdvert).model_copy(update={"mask_key": own})
    wire.said["advertise"][B] = sign_message(advert, site_keys("the coordinator"))
    with pytest.raises(EnvelopeError, match="signature"):
        wire.share(A)
    wire.said["advertise"] = honest | {B: changed(honest[A], KeyAdvert, A, mask_key=own)}
    with pytest.raises(ProtocolError, match="two different KeyAdvert"):
        wire.share(A)
    wire.said["advertise"] = honest | {A: changed(honest[A], KeyAdvert, A, mask_key=own)}
    with pytest.raises(ProtocolError, match="Our own key advert"):
        wire.share(A)
    same = peek(honest[C], KeyAdvert).mask_key
    wire.said["advertise"] = honest | {B: changed(honest[B], KeyAdvert, B, mask_key=same)}
    with pytest.raises(ProtocolError, match="are equal"):
        wire.share(A)
    wire.said["advertise"] = honest | {B: changed(honest[B], KeyAdvert, B, mask_key="00" * 32)}
    wire.share(A)
    for site in (B, C, D):
        wire.said["advertise"] = honest
        wire.share(site)
    with pytest.raises(ProtocolError, match="saw other ephemeral keys"):
        wire.mask(A, np.zeros(CELLS, np.int64))


def test_a_key_of_small_order_is_refused() -> None:
    with pytest.raises(ProtocolError, match="X25519"):
        pair_mask("", A, bytes(range(32)), B, bytes(32))


def test_different_adverts_for_different_sites() -> None:
    wire = Wire(nodes(5), CELLS)
    wire.run({}, until="advertise")
    whole = dict(wire.said["advertise"])
    for site in names(5):
        if site == A:
            wire.said["advertise"] = {s: m for s, m in whole.items() if s != E}
        wire.share(site)
        wire.said["advertise"] = whole
    with pytest.raises(ProtocolError, match="saw other ephemeral keys than we"):
        wire.mask(B, np.zeros(CELLS, np.int64))


def test_a_second_set_of_adverts_for_one_site() -> None:
    wire = Wire(nodes(5), CELLS)
    wire.run({}, until="share")
    del wire.said["advertise"][E]
    with pytest.raises(RoundError, match="dealt to other keys before"):
        wire.share(A)


def test_different_shares_for_different_sites() -> None:
    """A masks against four sites and the others against five: no list suits both."""
    wire, values = Wire(nodes(5), CELLS), vectors(5, CELLS)
    wire.run(values, until="share")
    whole = dict(wire.said["share"])
    wire.said["share"] = {s: m for s, m in whole.items() if s != E}
    wire.mask(A, values[A])
    wire.said["share"] = whole
    for site in (B, C, D):
        wire.mask(site, values[site])
    with pytest.raises(ProtocolError, match="masked against other shares"):
        wire.close()
    del wire.said["mask"][A]
    wire.mask(E, values[E])
    with pytest.raises(ProtocolError, match="other shares than we saw"):
        wire.sign(A, wire.close())
    with pytest.raises(RoundError, match="masked against other sites before"):
        wire.mask(A, values[A])


def test_two_received_lists() -> None:
    """A site signs one; nobody reveals under signatures over two."""
    wire, values = Wire(nodes(5), CELLS), vectors(5, CELLS)
    wire.run(values, until="mask")
    whole = wire.close()
    fewer = whole.model_copy(update={"vectors": {s: v for s, v in whole.vectors.items() if s != E}})
    wire.sign(A, fewer)
    with pytest.raises(RoundError, match="Another received list"):
        wire.sign(A, whole)
    for site in (B, C, D):
        wire.sign(site, whole)
    for site in (A, B):
        with pytest.raises(ProtocolError, match="signed another received list than we"):
            wire.reveal(site)
    del wire.said["sign"][A]
    with pytest.raises(RoundError, match="3 sites have signed the received list, 4 are needed"):
        wire.reveal(B)
    with pytest.raises(ProtocolError, match="leaves out our vector"):
        wire.sign(E, fewer)


def test_no_split_of_honest_sites_gives_both_shares() -> None:
    """Shares under two lists are fewer than two thresholds, whatever each honest site is told."""
    for n in range(4, 200):
        assert 2 * threshold(n) > n + (n - 1) // 3
        assert threshold(n) < n or n == 3
    assert threshold(3) == 2


def test_both_shares_of_a_site_are_never_in_one_message() -> None:
    wire = Wire(nodes(5), CELLS)
    wire.sum(vectors(5, CELLS), {"mask": {E}})
    for data in wire.all("reveal"):
        unmasking = peek(data, Unmasking)
        assert set(unmasking.seeds) == {A, B, C, D}
        assert set(unmasking.keys) == {E}
        both = {"seeds": unmasking.seeds | unmasking.keys, "keys": unmasking.keys}
        with pytest.raises(ValidationError, match="both shares"):
            Unmasking(**(unmasking.model_dump() | both))


def test_a_list_with_another_vector_or_a_stranger() -> None:
    wire = Wire(nodes(5), CELLS)
    wire.run(vectors(5, CELLS), {"share": {E}}, until="mask")
    honest = wire.close()
    cases = {
        "names another": honest.vectors | {A: "0" * 64},
        "dealt no shares": honest.vectors | {E: "0" * 64},
        "remain": {s: honest.vectors[s] for s in (A, B, C)},
    }
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        wire.sign(A, honest.model_copy(update={"session": "0" * 64}))
    for text, listed in cases.items():
        with pytest.raises((ProtocolError, RoundError), match=text):
            wire.sign(A, honest.model_copy(update={"vectors": listed}))


@pytest.mark.parametrize("step", ["join", "advertise", "share", "mask", "sign", "reveal"])
def test_replayed_messages_of_an_earlier_round(step: str) -> None:
    everyone, values = nodes(4), vectors(4, CELLS)
    old = Wire(everyone, CELLS)
    old.sum(values)
    for node in everyone.values():
        node.data = digest(b"a month later")
    new = Wire(everyone, CELLS, round="r2")
    new.run(values)
    new.said[step][B] = old.said[step][B]
    actions: dict[str, Callable[[], Any]] = {
        "join": lambda: advertise(new.states[A], site_keys(A), new.all("join")),
        "advertise": lambda: deal_shares(new.states[A], site_keys(A), new.all("advertise")),
        "share": lambda: new.mask(A, values[A]),
        "mask": lambda: received_list(new.sites, new.transcript()),
        "sign": lambda: new.reveal(A),
        "reveal": new.total,
    }
    with pytest.raises(ProtocolError, match="belongs to another sum"):
        actions[step]()


def test_a_replayed_list_is_refused() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.join(A)
    with pytest.raises(RoundError, match="joined before"):
        wire.join(A)


def test_a_message_is_of_one_kind() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run({}, until="advertise")
    wire.said["advertise"][B] = wire.said["join"][B]
    with pytest.raises(ProtocolError, match="KeyAdvert"):
        wire.share(A)


def test_steps_out_of_order() -> None:
    wire = Wire(nodes(3), CELLS)
    for site in names(3):
        wire.join(site)
    with pytest.raises(RoundError, match="out of order"):
        wire.share(A)
    with pytest.raises(RoundError, match="out of order"):
        wire.mask(A, np.zeros(CELLS, np.int64))
    with pytest.raises(RoundError, match="out of order"):
        reveal(wire.states[A], site_keys(A), ())


# --- Damage ----------------------------------------------------------------------------------------------


def test_tampered_boxes() -> None:
    wire = Wire(nodes(4), CELLS)
    wire.run({}, until="share")
    honest = wire.said["share"][B]
    outer = json.loads(honest)
    outer["payload"] = outer["payload"].replace('"boxes"', '"Boxes"', 1)
    wire.said["share"][B] = json.dumps(outer).encode()
    with pytest.raises(ProtocolError):
        wire.mask(A, np.zeros(CELLS, np.int64))
    boxes = peek(honest, Shares).boxes
    last = "0" if boxes[A][-1] != "0" else "1"
    for other in ({A: boxes[A][:-1] + last}, {A: boxes[C]}, {}):
        crooked = {s: b for s, b in boxes.items() if s != A} | other
        wire.said["share"][B] = changed(honest, Shares, B, boxes=crooked)
        with pytest.raises(ProtocolError, match=f"shares of {B} do not open"):
            wire.mask(A, np.zeros(CELLS, np.int64))
    digests = peek(honest, Shares).share_digests
    wire.said["share"][B] = changed(honest, Shares, B, share_digests=digests | {A: ("0" * 64, digests[A][1])})
    with pytest.raises(ProtocolError, match="committed"):
        wire.mask(A, np.zeros(CELLS, np.int64))


def test_a_wrong_share_is_traced_and_the_rest_suffice() -> None:
    values, wire = vectors(5, CELLS), Wire(nodes(5), CELLS)
    wire.run(values, until="reveal")
    wrong = peek(wire.said["reveal"][B], Unmasking).seeds | {A: "00" + "ab" * 32}
    wire.said["reveal"][B] = changed(wire.said["reveal"][B], Unmasking, B, seeds=wrong)
    result = wire.total()
    assert result.faulty == (B,)
    assert np.array_equal(result.values, exact(values, names(5)))
    del wire.said["reveal"][C]
    with pytest.raises(RoundError, match=f"wrong shares came from: {B}"):
        wire.total()


def test_a_dealer_of_inconsistent_shares_is_named() -> None:
    """B commits to a seed other than the one it shares: every share is as promised, but not the secret."""
    values, wire = vectors(4, CELLS), Wire(nodes(4), CELLS)
    wire.run(values, until="advertise")
    honest = wire.states[B]
    assert honest.secrets is not None
    other = Secrets(mask_key=honest.secrets.mask_key, share_key=honest.secrets.share_key, seed="11" * 32)
    wire.states[B] = honest.model_copy(update={"secrets": other})
    wire.share(B)
    commitment = peek(wire.said["share"][B], Shares).model_copy(update={"seed_commitment": "2" * 64})
    wire.said["share"][B] = sign_message(commitment, site_keys(B))
    wire.states[B] = wire.states[B].model_copy(update={"dealt": wire.said["share"][B].decode()})
    for site in (A, C, D):
        wire.share(site)
    for step in ("mask", "sign", "reveal"):
        for site in names(4):
            wire.mask(site, values[site]) if step == "mask" else getattr(wire, step)(site)
    with pytest.raises(ProtocolError, match=f"shares that {B} dealt do not restore"):
        wire.total()


def test_vectors_that_are_not_the_announced_ones() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run(vectors(3, CELLS))
    received = wire.close()
    whole = {s: bytes(wire.vectors[s].data) for s in names(3)}
    cases: list[tuple[str, type[Exception], list[tuple[str, bytes]]]] = [
        ("wrong size", ProtocolError, [(A, whole[A][:-8])]),
        ("not the one", ProtocolError, [(A, bytes([whole[A][0] ^ 1]) + whole[A][1:])]),
        ("unexpected", ProtocolError, [(A, whole[A]), (A, whole[A])]),
        ("unexpected", ProtocolError, [(D, whole[A])]),
        (f"{C} is missing", RoundError, [(A, whole[A]), (B, whole[B])]),
    ]
    for text, kind, buffers in cases:
        with pytest.raises(kind, match=text):
            aggregate(wire.sites, received, wire.transcript(), buffers)


def test_the_coordinator_refuses_a_list_that_does_not_fit() -> None:
    wire = Wire(nodes(4), CELLS)
    wire.run(vectors(4, CELLS))
    received = wire.close()
    for changes in ({"session": "0" * 64}, {"sharers": "0" * 64}):
        with pytest.raises(ProtocolError, match="another sum"):
            aggregate(wire.sites, received.model_copy(update=changes), wire.transcript(), ())
    fewer = received.model_copy(update={"vectors": {s: received.vectors[s] for s in (A, B, C)}})
    with pytest.raises(ProtocolError, match="unmasked another"):
        aggregate(wire.sites, fewer, wire.transcript(), ())
    said = wire.transcript()
    with pytest.raises(ProtocolError, match="not taken all its steps"):
        aggregate(
            wire.sites, received, Transcript(said.adverts[1:], said.shares, said.vectors, said.unmaskings), ()
        )


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\x80\x04", b'{"payload":"{}","signature":"AA=="}', b"[" * 9000]
)
def test_garbage_is_one_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_all([data], KeyAdvert, Wire(nodes(3), CELLS).sites)


def test_oversized_fields_are_refused() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run({}, until="share")
    message = peek(wire.said["share"][A], Shares)
    for field, value in (("boxes", {B: "a" * 190}), ("seed_commitment", "A" * 64), ("site", "a" * 33)):
        with pytest.raises(ValidationError):
            Shares.model_validate_json(json.dumps(message.model_dump(mode="json") | {field: value}))


def test_secrets_are_not_printed() -> None:
    wire = Wire(nodes(3), CELLS)
    wire.run(vectors(3, CELLS))
    state, text = wire.states[A], repr(wire.states[A]) + str(wire.states[A])
    assert state.secrets is not None
    for secret in (state.secrets.mask_key, state.secrets.seed, state.held[B][0], state.held[A][1]):
        assert secret not in text
        assert secret not in repr(state.secrets)


# --- One vector under one key set, and the memory --------------------------------------------------------


def test_the_same_step_again_gives_the_same_message() -> None:
    wire, values = Wire(nodes(3), CELLS), vectors(3, CELLS)
    wire.run(values)
    before = {step: dict(said) for step, said in wire.said.items()}
    vector = wire.vectors[A].copy()
    for step in ("advertise", "share", "sign", "reveal"):
        getattr(wire, step)(A)
    wire.mask(A, values[A])
    assert wire.said == before
    assert np.array_equal(vector, wire.vectors[A])


def test_keys_mask_one_vector() -> None:
    wire, values = Wire(nodes(3), CELLS), vectors(3, CELLS)
    wire.run(values, until="mask")
    other = values[A].copy()
    other[7] += 1
    with pytest.raises(RoundError, match="masked another vector"):
        wire.mask(A, other)


def again(everyone: dict[str, Node], members: tuple[str, ...], **changes: Any) -> Wire:
    return Wire(everyone, CELLS, members=members, round="r2", **changes)


def test_one_or_two_sites_less_or_more_over_the_same_data() -> None:
    everyone = nodes(8)
    Wire(everyone, CELLS, members=names(5)).sum(vectors(8, CELLS))
    for members, exposed in (
        ((A, B, C, D), E),
        ((A, B, C), f"{D} and {E}"),
        (names(6), "site-05"),
        (names(7), "site-05 and site-06"),
        ((A, B, C, D, "site-05"), f"{E} and site-05"),
    ):
        with pytest.raises(GateError, match=f"expose {exposed}"):
            again(everyone, members).join(A)
    again(everyone, names(8)).join(A)


def test_a_late_drop_out_cannot_single_out_either() -> None:
    """Eight differ from five by three, but once a site has dropped out they differ by two."""
    everyone, values = nodes(8), vectors(8, CELLS)
    Wire(everyone, CELLS, members=names(5)).sum(values)
    wire = again(everyone, names(8))
    wire.run(values, {"mask": {"site-07"}}, until="mask")
    wire.close()
    with pytest.raises(GateError, match="site-05 and site-06"):
        wire.sign(A)


def test_same_sites_and_data_once_a_statistic() -> None:
    everyone, values = nodes(4), vectors(4, CELLS)
    Wire(everyone, CELLS).sum(values)
    with pytest.raises(GateError, match="has been summed over the same data and sites"):
        again(everyone, names(4)).join(A)
    again(everyone, names(4), statistic="margins").sum(values)


def test_two_attempts_cannot_both_be_unmasked() -> None:
    everyone, values = nodes(5), vectors(5, CELLS)
    first, second = Wire(everyone, CELLS), Wire(everyone, CELLS, attempt=2)
    first.run(values, until="mask")
    second.run(values, {"mask": {E}}, until="sign")
    first.close()
    for site in (A, B, C, D):
        with pytest.raises(GateError, match=f"expose {E}"):
            first.sign(site)


def test_a_withdrawal_re_sums_on_new_data_only() -> None:
    everyone, values = nodes(5), vectors(5, CELLS)
    Wire(everyone, CELLS).sum(values)
    del everyone[E]
    with pytest.raises(GateError, match=f"expose {E}"):
        again(everyone, (A, B, C, D)).join(A)
    for node in everyone.values():
        node.data = digest(b"a month later")
    assert again(everyone, (A, B, C, D)).sum(values).members == (A, B, C, D)


def test_combinations_of_sums_that_single_out() -> None:
    """Two sums that differ by one or two sites are the simplest case of many."""
    assert singled_out(["abc", "abcd"]) == ("d",)
    assert singled_out(["abc", "abde"]) == ()
    assert singled_out(["abcd", "efgh", "abcdefghi"]) == ("i",)
    assert singled_out(["abcd", "efgh", "abcdefghij"]) == ("i", "j")
    assert singled_out(["abcd", "efgh", "abcdefghijk"]) == ()
    ring = ["abcdef", "defghi", "ghijkl", "abcjklw"]  # any two differ by six sites or more
    assert singled_out(ring) == ("w",)
    assert singled_out(ring[1:]) == ()
    assert singled_out(["abcdef"] * 3) == ()


def test_no_more_than_sixteen_sums_over_one_data() -> None:
    ledger, everyone = SumLedger(), nodes(3)
    node = everyone[A]
    for i in range(17):
        wire = Wire(everyone, CELLS, statistic=f"s{i}")
        node.ledger = ledger
        if i == 16:
            with pytest.raises(GateError, match="16 have been made"):
                wire.join(A)
            return
        wire.join(A)
        ledger = node.ledger.closed(wire.sites.digest, names(3))


def test_the_memory_knows_its_sums() -> None:
    with pytest.raises(RoundError, match="not in the site's memory"):
        SumLedger().masked("0" * 64, "1" * 64)


# --- What the coordinator sees ---------------------------------------------------------------------------


def chi_square(vector: Any) -> float:
    """p-value of uniform bytes."""
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    expected = vector.nbytes / 256
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), 255))


def seeded(seed: int) -> Callable[[int], bytes]:
    return np.random.default_rng(seed).bytes


def seeded_masks(cells: int, values: dict[str, Any], seed: int) -> Wire:
    """A sum as far as the vectors, with random bytes from a seed."""
    wire, random = Wire(nodes(3), cells), seeded(seed)
    for site in names(3):
        wire.join(site)
    for site in names(3):
        state, said = advertise(wire.states[site], site_keys(site), wire.all("join"), random=random)
        wire.store(site, state)
        wire.say("advertise", site, said)
    for site in names(3):
        state, said = deal_shares(wire.states[site], site_keys(site), wire.all("advertise"), random=random)
        wire.store(site, state)
        wire.say("share", site, said)
    for site in names(3):
        wire.mask(site, values[site])
    return wire


def test_a_masked_vector_looks_uniform_and_is_new_every_time() -> None:
    cells = 20_000
    values = {s: np.zeros(cells, np.int64) for s in names(3)}
    assert chi_square(values[A]) == 0
    first, second = (seeded_masks(cells, values, seed) for seed in (1, 2))
    for wire in (first, second):
        for site in names(3):
            assert chi_square(wire.vectors[site]) > 1e-3
        assert chi_square(wire.vectors[A] + wire.vectors[B] + wire.vectors[C]) > 1e-3  # self-masks remain
    assert chi_square(first.vectors[A] - second.vectors[A]) > 1e-3
    assert not np.intersect1d(first.vectors[A], second.vectors[A]).size


def test_the_default_randomness_is_new_every_time() -> None:
    values, runs = vectors(3, CELLS), []
    for _ in range(2):
        runs.append(Wire(nodes(3), CELLS))
        runs[-1].run(values, until="mask")
    assert runs[0].sites == runs[1].sites
    assert not np.intersect1d(runs[0].vectors[A], runs[1].vectors[A]).size


def test_keystreams_go_on_over_blocks() -> None:
    """Blocks are not visible: no keystream starts anew, and a mask and its inverse cancel."""
    cells = (1 << 16) * 2 + 5
    values, out = np.arange(cells), np.empty(cells, "<u8")
    one = Mask(bytes(32), negative=False)
    apply_masks(values, [one], out)
    stream = out - values.view(np.uint64)
    assert len(np.unique(stream)) == cells
    apply_masks(out, [one.inverse()], out)
    assert np.array_equal(out.view(np.int64), values)


# --- The attack that self-masks are for ------------------------------------------------------------------


def pairwise_only(values: dict[str, Any], members: tuple[str, ...], run: str) -> dict[str, Any]:
    """A weakened protocol: fresh pairwise masks that cancel, and nothing else."""
    private = {s: digest(f"{run} {s}".encode()).encode()[:32] for s in members}
    masked = {}
    for site in members:
        masks = [
            pair_mask(run, site, private[site], o, public_bytes(private[o])) for o in members if o != site
        ]
        masked[site] = np.empty(len(values[site]), "<u8")
        apply_masks(values[site], masks, masked[site])
    return masked


def test_a_plain_rerun_gives_away_who_dropped_and_ours_does_not() -> None:
    """The coordinator holds every vector, claims that D dropped out, and has the others sum again."""
    values, stay = vectors(5, CELLS), (A, B, C, E)
    first, rerun = pairwise_only(values, names(5), "run 1"), pairwise_only(values, stay, "run 2")
    stolen = sum(first.values()) - sum(rerun.values())
    assert np.array_equal(stolen.view(np.int64), values[D])

    everyone = nodes(5)
    run1 = Wire(everyone, CELLS)
    run1.run(values, until="mask")
    run2 = Wire(everyone, CELLS, members=stay, attempt=2)
    total = run2.sum(values)
    assert np.array_equal(total.values, exact(values, stay))
    guess = (sum(run1.vectors.values()) - total.values.view(np.uint64)).view(np.int64)
    assert not (guess == values[D]).any()
    run1.close()
    with pytest.raises(GateError, match=f"expose {D}"):  # and run 1 will never be unmasked
        run1.sign(A)


def test_calling_a_site_dropped_whose_vector_came_gives_noise() -> None:
    """With D's mask key, its vector still carries its self-mask."""
    values, wire = vectors(5, CELLS), Wire(nodes(5), CELLS)
    wire.run(values, until="mask")
    whole = wire.close()
    wire.received = whole.model_copy(update={"vectors": {s: v for s, v in whole.vectors.items() if s != D}})
    for step in ("sign", "reveal"):
        for site in (A, B, C, E):
            getattr(wire, step)(site)
    result = wire.total()
    assert np.array_equal(result.values, exact(values, (A, B, C, E)))
    state = wire.states[D]  # the mask key is what the four have restored
    assert state.secrets is not None
    masks = [
        pair_mask(
            state.session,
            D,
            bytes.fromhex(state.secrets.mask_key),
            o,
            bytes.fromhex(peek(wire.said["advertise"][o], KeyAdvert).mask_key),
        ).inverse()
        for o in (A, B, C, E)
    ]
    out = np.empty(CELLS, "<u8")
    apply_masks(wire.vectors[D], masks, out)
    assert not (out.view(np.int64) == values[D]).any()
    for data in wire.all("reveal"):
        assert D not in peek(data, Unmasking).seeds


def test_signatures_are_over_canonical_messages() -> None:
    """A signature cannot be moved from one list to another."""
    wire = Wire(nodes(3), CELLS)
    wire.run(vectors(3, CELLS), until="sign")
    outer = json.loads(wire.said["sign"][B])
    forged = json.loads(outer["payload"]) | {"received": "0" * 64}
    outer["payload"] = json.dumps(forged, sort_keys=True, separators=(",", ":"))
    assert len(base64.b64decode(outer["signature"])) == 64
    with pytest.raises(EnvelopeError):
        open_all([json.dumps(outer).encode()], ReceivedSignature, wire.sites)


def test_joining_needs_the_long_term_key() -> None:
    wire = Wire(nodes(3), CELLS)
    node = wire.nodes[A]
    with pytest.raises(ProtocolError, match="other keys"):
        join(
            wire.sites,
            node.ledger,
            site_keys(B),
            site=A,
            subject=wire.subject,
            enrolled={s: n.keys.public() for s, n in wire.nodes.items()},
            data=node.data,
            nonce=node.nonce,
        )
