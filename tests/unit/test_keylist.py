"""Following a party's keys: laws of the key list, and every list that must be refused."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from types import MappingProxyType

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.canonical import canonical_json, digest
from protocol.errors import EnvelopeError, ProtocolError
from protocol.keylist import (
    KeyList,
    KeyVersion,
    KnownKeys,
    SignedKeyVersion,
    first_key_list,
    next_key_list,
    verify_key_list,
)
from protocol.keys import PrivateKeys, pae

START = datetime(2026, 1, 1, tzinfo=UTC)
NONE: Mapping[str, datetime] = MappingProxyType({})


@cache
def key(number: int) -> PrivateKeys:
    """The same key for the same number: a law may not depend on its bytes."""
    del number
    return PrivateKeys.generate("x25519")


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def known(version: int = 0, head: str = "") -> KnownKeys:
    return KnownKeys(party="north", first=key(0).public().digest, version=version, head=head)


def chain(length: int) -> KeyList:
    """Keys 0, 1, 2, ...; each replaced by the next."""
    found = first_key_list("north", key(0), now=day(0))
    for number in range(1, length):
        found = next_key_list(found, key(number - 1), new=key(number), now=day(number))
    return found


def signed(version: KeyVersion, these: PrivateKeys, previous: PrivateKeys | None) -> SignedKeyVersion:
    """What a party that breaks the rules would sign."""
    payload = canonical_json(version)
    data = pae(b"smile/key-list", payload)
    encode = base64.b64encode
    return SignedKeyVersion(
        payload=payload.decode(),
        by_these=encode(these.sign(data)).decode(),
        by_previous=encode(previous.sign(data)).decode() if previous else "",
    )


def extended(base: KeyList, these: PrivateKeys, before: PrivateKeys | None, **changes: object) -> KeyList:
    """The list with one more version, with fields of our choice and signatures of those keys."""
    values: dict[str, object] = {
        "party": "north",
        "version": len(base.versions) + 1,
        "previous": digest(base.versions[-1].payload.encode()),
        "keys": these.public(),
        "issued": day(100),
    }
    version = KeyVersion.model_validate(values | changes)
    return KeyList(versions=(*base.versions, signed(version, these, before)))


# --- Laws -----------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 5)), max_size=6)


def build(plan: list[tuple[bool, int | None]]) -> list[KeyList]:
    """Every version of a list made by (take a new key?, revoke which of the listed keys?)."""
    lists, mine, revoked = [first_key_list("north", key(0), now=day(0))], [0], set()
    for number, (rotate, back) in enumerate(plan, start=1):
        new = max(mine) + 1 if rotate else None
        target = mine[-1 - back % len(mine)] if back is not None else None
        if target in revoked or (target == mine[-1] and not rotate):
            target = None
        revoke = NONE if target is None else {key(target).public().digest: day(number - 1)}
        made = next_key_list(
            lists[-1], key(mine[-1]), new=key(new) if new else None, now=day(number), revoke=revoke
        )
        lists.append(made)
        if new:
            mine.append(new)
        if target is not None:
            revoked.add(target)
    return lists


@settings(max_examples=50, deadline=None)
@given(steps, st.data())
def test_a_reader_can_follow_from_any_version_to_any_later_one(
    plan: list[tuple[bool, int | None]], data: st.DataObject
) -> None:
    lists = build(plan)
    early = data.draw(st.integers(0, len(lists) - 1))
    late = data.draw(st.integers(early, len(lists) - 1))
    seen = verify_key_list(lists[early], known())
    directly, stepwise = verify_key_list(lists[late], known()), verify_key_list(lists[late], seen.known)
    assert directly == stepwise
    assert directly.known.version == late + 1
    assert set(seen.revoked) <= set(directly.revoked)
    assert directly.current.digest not in directly.revoked


@settings(max_examples=50, deadline=None)
@given(steps, st.data())
def test_a_reader_never_goes_back(plan: list[tuple[bool, int | None]], data: st.DataObject) -> None:
    lists = build([*plan, (True, None)])
    early = data.draw(st.integers(0, len(lists) - 2))
    late = data.draw(st.integers(early + 1, len(lists) - 1))
    with pytest.raises(EnvelopeError, match="seen before"):
        verify_key_list(lists[early], verify_key_list(lists[late], known()).known)


@settings(max_examples=50, deadline=None)
@given(steps, st.data())
def test_two_continuations_of_one_version_never_both_hold(
    plan: list[tuple[bool, int | None]], data: st.DataObject
) -> None:
    """Even the party itself, with all its keys, cannot tell two readers different things for long."""
    lists = build([*plan, (True, None)])
    at = data.draw(st.integers(0, len(lists) - 2))
    holder = verify_key_list(lists[at], known()).current
    mine = next(key(n) for n in range(len(lists) + 1) if key(n).public() == holder)
    fork = next_key_list(lists[at], mine, new=key(99), now=day(50))
    for number in range(data.draw(st.integers(0, 3))):
        fork = next_key_list(fork, key(99 + number), new=key(100 + number), now=day(51 + number))
    seen = verify_key_list(lists[-1], known()).known
    with pytest.raises(EnvelopeError, match=r"disagree|seen before"):
        verify_key_list(fork, seen)
    with pytest.raises(EnvelopeError, match=r"disagree|seen before"):
        verify_key_list(lists[-1], verify_key_list(fork, known()).known)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3), st.sampled_from(["payload", "by_these", "by_previous"]), st.data())
def test_every_altered_character_is_refused(number: int, field: str, data: st.DataObject) -> None:
    good = chain(4)
    text = getattr(good.versions[number], field)
    assume(text)
    position = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from('ABab01+/="{}'))
    altered = text[:position] + letter + text[position + 1 :]
    try:
        same = field != "payload" and base64.b64decode(altered, validate=True) == base64.b64decode(text)
    except ValueError:
        same = False
    assume(altered != text and not same)
    versions = list(good.versions)
    versions[number] = versions[number].model_copy(update={field: altered})
    with pytest.raises(ProtocolError):
        verify_key_list(KeyList(versions=tuple(versions)), known())


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_left_out_or_reordered_versions_are_refused(order: list[int], length: int) -> None:
    assume(order[:length] != list(range(length)))
    good = chain(4)
    with pytest.raises(ProtocolError):
        verify_key_list(KeyList(versions=tuple(good.versions[i] for i in order[:length])), known())


# --- What must be refused, one by one ----------------------------------------------------------------------


def test_the_first_key_is_the_enrolled_one() -> None:
    with pytest.raises(EnvelopeError, match="another key than the enrolled one"):
        verify_key_list(first_key_list("north", key(7), now=day(0)), known())


def test_the_list_of_another_party() -> None:
    with pytest.raises(ProtocolError, match="not version 1 of the key list of north"):
        verify_key_list(first_key_list("lake", key(0), now=day(0)), known())


def test_a_version_needs_both_signatures() -> None:
    base = chain(2)
    for these, previous in ((key(5), key(5)), (key(5), key(0)), (key(5), None)):
        with pytest.raises(EnvelopeError, match="signature"):
            verify_key_list(extended(base, these, previous), known())
    # Listing a key that one does not hold.
    with pytest.raises(EnvelopeError, match="signature"):
        verify_key_list(extended(base, key(1), key(1), keys=key(5).public()), known())
    with pytest.raises(EnvelopeError, match="signature"):
        next_key_list(base, key(0), new=key(5), now=day(9))


def test_the_first_version_has_one_signature() -> None:
    first = chain(1).versions[0]
    with pytest.raises(ProtocolError, match="too many"):
        verify_key_list(
            KeyList(versions=(first.model_copy(update={"by_previous": first.by_these}),)), known()
        )


def test_a_key_that_comes_back() -> None:
    with pytest.raises(ProtocolError, match="brings an earlier key back"):
        verify_key_list(extended(chain(3), key(1), key(2)), known())


@pytest.mark.parametrize("half", ["sealing", "signing"])
def test_half_a_key_that_comes_back(half: str) -> None:
    old, new = key(0), key(9)
    mixed = PrivateKeys(
        "x25519", *((old.sealing, new.signing) if half == "sealing" else (new.sealing, old.signing))
    )
    with pytest.raises(ProtocolError, match="brings an earlier key back"):
        verify_key_list(extended(chain(2), mixed, key(1)), known())


def test_changing_half_of_the_present_key() -> None:
    mixed = PrivateKeys("x25519", key(9).sealing, key(1).signing)
    with pytest.raises(ProtocolError, match="brings an earlier key back"):
        verify_key_list(extended(chain(2), mixed, key(1)), known())


def test_numbers_chain_and_time() -> None:
    base = chain(2)
    for changes, message in (
        ({"version": 4}, "not version 3"),
        ({"version": 2}, "not version 3"),
        ({"party": "lake"}, "not version 3"),
        ({"previous": ""}, "does not follow"),
        ({"previous": "0" * 64}, "does not follow"),
        ({"issued": day(0)}, "does not follow"),
    ):
        with pytest.raises(ProtocolError, match=message):
            verify_key_list(extended(base, key(5), key(1), **changes), known())


def test_a_payload_in_another_spelling() -> None:
    first = chain(1).versions[0]
    payload = first.payload.replace(":", ": ", 1)
    signature = base64.b64encode(key(0).sign(pae(b"smile/key-list", payload.encode()))).decode()
    spelled = first.model_copy(update={"payload": payload, "by_these": signature})
    with pytest.raises(ProtocolError, match="not version 1"):
        verify_key_list(KeyList(versions=(spelled,)), known())


def test_a_revoked_key_is_never_accepted() -> None:
    lost = key(1).public().digest
    found = next_key_list(chain(2), key(1), new=key(2), now=day(5), revoke={lost: day(3)})
    seen = verify_key_list(found, known())
    assert seen.current == key(2).public()
    assert seen.key(key(0).public().digest) == key(0).public()
    assert seen.revoked == {lost: day(3)}
    with pytest.raises(EnvelopeError, match=r"revoked as of 2026-01-04T00:00:00\+00:00"):
        seen.key(lost)
    with pytest.raises(EnvelopeError, match="no key of north"):
        seen.key(key(8).public().digest)


def test_a_wrong_revocation() -> None:
    base, first = chain(2), key(0).public().digest
    for revoke in ({key(8).public().digest: day(1)}, {first: day(30)}):
        with pytest.raises(ProtocolError, match="revokes a key wrongly"):
            next_key_list(base, key(1), now=day(9), revoke=revoke)
    once = next_key_list(base, key(1), now=day(9), revoke={first: day(1)})
    with pytest.raises(ProtocolError, match="revokes a key wrongly"):
        next_key_list(once, key(1), now=day(10), revoke={first: day(2)})


def test_a_closed_list_stays_closed() -> None:
    closed = next_key_list(chain(2), key(1), now=day(5), revoke={key(1).public().digest: day(5)})
    seen = verify_key_list(closed, known())
    with pytest.raises(EnvelopeError, match="revoked"):
        _ = seen.current
    for changes in ({"keys": key(5).public()}, {"keys": key(1).public()}):
        these = key(5) if changes["keys"] == key(5).public() else key(1)
        with pytest.raises(ProtocolError, match="closed"):
            verify_key_list(extended(closed, these, key(1)), seen.known)


def test_the_list_travels_as_json() -> None:
    good = chain(3)
    assert KeyList.model_validate_json(canonical_json(good)) == good
    seen = verify_key_list(good, known()).known
    assert KnownKeys.model_validate_json(canonical_json(seen)) == seen == known(3, seen.head)


def test_hybrid_keys_can_follow_plain_ones() -> None:
    strong = PrivateKeys.generate("mlkem768-x25519")
    found = next_key_list(chain(1), key(0), new=strong, now=day(1))
    assert verify_key_list(found, known()).current == strong.public()
