"""Laws of the secure sum's parts."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import DataError, ProtocolError
from protocol.secure_sum import from_fixed, largest_value, singled_out, to_fixed
from protocol.secure_sum.masks import Channel, Mask, apply_masks, pair_mask, public_bytes
from protocol.secure_sum.shamir import PRIME, SHARE_BYTES, combine, split

secrets = st.binary(min_size=32, max_size=32)
names = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
cells = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30)


def is_prime(n: int) -> bool:
    """Miller and Rabin, to 40 fixed bases."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_least_that_holds_every_secret() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME, 2))


# --- Shamir ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(secrets, st.integers(1, 20), st.data())
def test_any_threshold_of_shares_restores_the_secret(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    shares = split(secret, range(1, n + 1), t)
    chosen = data.draw(st.permutations(range(1, n + 1)))[:t]
    assert combine({x: shares[x] for x in chosen}) == secret
    assert {len(s) for s in shares.values()} == {SHARE_BYTES}


@settings(max_examples=50, deadline=None)
@given(secrets, secrets, st.integers(2, 8), st.integers(0, 2**32))
def test_fewer_shares_fit_every_secret(secret: bytes, other: bytes, t: int, seed: int) -> None:
    """t - 1 shares and any other secret are points of one polynomial: they exclude nothing."""
    shares = split(secret, range(1, t + 1), t, np.random.default_rng(seed).bytes)
    known = {x: int.from_bytes(shares[x]) for x in range(1, t)} | {0: int.from_bytes(other)}
    value = 0
    for x, y in known.items():
        term = y
        for z in known:
            if z != x:
                term = term * (t - z) * pow(x - z, -1, PRIME) % PRIME
        value = (value + term) % PRIME
    forged = {x: shares[x] for x in range(1, t)} | {t: value.to_bytes(SHARE_BYTES)}
    assert combine(forged) == other


@settings(max_examples=50, deadline=None)
@given(secrets, st.integers(2, 6), st.data())
def test_a_wrong_share_does_not_give_the_secret(secret: bytes, t: int, data: st.DataObject) -> None:
    shares = split(secret, range(1, t + 1), t)
    x = data.draw(st.integers(1, t))
    shares[x] = (int.from_bytes(shares[x]) ^ 1 << data.draw(st.integers(0, 255))).to_bytes(SHARE_BYTES)
    with suppress(ProtocolError):
        assert combine(shares) != secret


@pytest.mark.parametrize(
    ("secret", "points", "t"),
    [(bytes(31), [1, 2], 1), (bytes(32), [1, 1], 1), (bytes(32), [0, 1], 1), (bytes(32), [1, 2], 3)],
)
def test_wrong_calls_of_split(secret: bytes, points: list[int], t: int) -> None:
    with pytest.raises(ValueError, match=r"distinct|32 bytes"):
        split(secret, points, t)


# --- Fixed point -----------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 52),
    st.lists(st.lists(st.floats(-200, 200), min_size=4, max_size=4), min_size=3, max_size=9),
)
def test_a_sum_in_fixed_point_is_off_by_half_a_step_a_site(bits: int, rows: list[list[float]]) -> None:
    values = np.array(rows)
    total = sum(to_fixed(row, bits, sites=len(rows)) for row in values)
    error = np.abs(from_fixed(total, bits) - values.sum(0))
    assert (error <= len(rows) * 2.0 ** -(bits + 1) + 1e-12 * np.abs(values).sum(0)).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 52), st.integers(3, 500), st.floats(allow_nan=True, allow_infinity=True))
def test_what_is_accepted_cannot_overflow(bits: int, sites: int, value: float) -> None:
    try:
        fixed = int(to_fixed(np.array([value]), bits, sites=sites)[0])
    except DataError:
        # Refused only if it really does not fit, or within the rounding of a double.
        assert not abs(value) * 2.0**bits < largest_value(sites) * (1 - 1e-15)
    else:
        assert abs(fixed) * sites < 2**63


@pytest.mark.parametrize("bits", [-1, 53])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        to_fixed(np.zeros(1), bits, sites=3)
    with pytest.raises(ValueError, match="bits"):
        from_fixed(np.zeros(1, np.int64), bits)


# --- Masks -----------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(names, names, secrets, secrets, cells)
def test_the_masks_of_a_pair_cancel(
    one: str, other: str, first: bytes, second: bytes, values: list[int]
) -> None:
    if one == other or public_bytes(first) == public_bytes(second):
        return
    mine = pair_mask("session", one, first, other, public_bytes(second))
    theirs = pair_mask("session", other, second, one, public_bytes(first))
    assert mine == theirs.inverse()
    assert mine.key != pair_mask("another", one, first, other, public_bytes(second)).key
    array, out = np.array(values, np.int64), np.empty(len(values), "<u8")
    apply_masks(array, [mine, theirs], out)
    assert np.array_equal(out.view(np.int64), array)


@settings(max_examples=30, deadline=None)
@given(cells, st.lists(st.tuples(secrets, st.booleans()), max_size=4), st.randoms(use_true_random=False))
def test_masks_commute(values: list[int], keys: list[tuple[bytes, bool]], random: object) -> None:
    array, masks = np.array(values, np.int64), [Mask(*k) for k in keys]
    one, other = np.empty(len(array), "<u8"), np.empty(len(array), "<u8")
    assert apply_masks(array, masks, one) == apply_masks(array, masks[::-1], other)
    assert np.array_equal(one, other)
    apply_masks(one, [m.inverse() for m in masks], one)
    assert np.array_equal(one.view(np.int64), array)


@settings(max_examples=50, deadline=None)
@given(secrets, secrets, st.integers(0, 93), st.integers(0, 7))
def test_a_box_opens_unaltered_for_its_receiver_only(mine: bytes, theirs: bytes, at: int, bit: int) -> None:
    if public_bytes(mine) == public_bytes(theirs):
        return
    channel, text = Channel("s", "a", "one", "two"), bytes(66)
    box = channel.seal(text, mine, public_bytes(theirs))
    assert channel.open(box, theirs, public_bytes(mine)) == text
    altered = bytearray(box)
    altered[at] ^= 1 << bit
    third = hashlib.sha256(theirs).digest()
    attempts = [(channel, bytes(altered), theirs), (channel, box, third), (channel, b"", theirs)]
    others = (("x", "a", "one", "two"), ("s", "x", "one", "two"), ("s", "a", "two", "one"))
    attempts += [(Channel(*other), box, theirs) for other in others]
    for wrong, data, private in attempts:
        with pytest.raises(ProtocolError):
            wrong.open(data, private, public_bytes(mine))


# --- Differencing ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sets(st.integers(0, 7), min_size=3), min_size=1, max_size=5))
def test_singled_out_agrees_with_trying_every_site_and_pair(memberships: list[set[int]]) -> None:
    matrix = np.array([[site in m for site in range(8)] for m in memberships], float)
    rank = np.linalg.matrix_rank(matrix)
    exposed = {
        (str(i), str(j)) if i < j else (str(i),)
        for i in range(8)
        for j in range(i, 8)
        if np.linalg.matrix_rank(np.delete(matrix, [i, j], axis=1)) < rank
    }
    found = singled_out([{str(s) for s in m} for m in memberships])
    assert (found in exposed) if exposed else (found == ())
