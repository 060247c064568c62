"""Halves of the sites: what one half of the patients says of related codes is checked on the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graph.halves import site_halves
from coordinator.model.selection import select_neighbours
from coordinator.union import build_union
from protocol.release import VerifiedRelease
from tests.synthetic import release, unit_rows, verified

CODES = [f"ICD10CM:C{i:02d}" for i in range(30)]


def site(name: str, held: range | list[int], seed: int = 0, **given: str) -> VerifiedRelease:
    """A site with vectors of some codes, the same as of any other site but turned and with noise."""
    rng = np.random.default_rng(seed)
    meaning = unit_rows(np.random.default_rng(99), len(CODES), 6)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    own = [f"{name.upper()}:{i}" for i in range(len(given))]
    anchors = dict(zip(own, given.values(), strict=True))
    vectors = meaning[[*held, *(CODES.index(c) for c in given.values())]] @ turn
    return verified(release(name, [*(CODES[i] for i in held), *own], vectors, anchors=anchors))


def halves(*sites: VerifiedRelease) -> tuple[list[str], np.ndarray, np.ndarray]:
    union = build_union(sites, standard="ICD10CM", require_links=False)
    found = site_halves(sites, union.codes, union.row)
    assert found is not None
    return list(union.codes), *found


def test_inner_products_are_those_of_the_sites_whose_axes_differ() -> None:
    codes, one, two = halves(site("lake", range(30), 1), site("north", range(30), 2))
    meaning = unit_rows(np.random.default_rng(99), len(CODES), 6)
    for half in (one, two):
        assert np.allclose(half @ half.T, meaning @ meaning.T, atol=1e-5)
    assert codes == CODES


def test_a_half_of_two_sites_has_the_mean_of_their_inner_products() -> None:
    three = [site("lake", range(30), 1), site("north", range(20), 2), site("south", range(20), 3)]
    _, one, two = halves(*three)
    meaning = unit_rows(np.random.default_rng(99), len(CODES), 6)
    narrow, wide = sorted((one, two), key=lambda half: half.shape[1])
    assert (narrow.shape[1], wide.shape[1]) == (6, 12)
    assert np.allclose((wide @ wide.T)[:20, :20], (meaning @ meaning.T)[:20, :20], atol=1e-5)


def test_an_anchored_code_is_the_code_it_is_joined_to() -> None:
    codes, one, two = halves(
        site("lake", range(30), 1), site("north", range(30), 2, a="ICD10CM:C07", b="ICD10CM:C08")
    )
    for own, standard in (("NORTH:0", "ICD10CM:C07"), ("NORTH:1", "ICD10CM:C08")):
        i, j = codes.index(own), codes.index(standard)
        for half in (one, two):
            assert np.allclose(half[i], half[j]) and half[i] @ half[i] == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(held=st.lists(st.sets(st.integers(0, 29), min_size=3), min_size=2, max_size=6))
def test_every_site_has_one_part_and_a_code_of_two_sites_is_often_in_both_halves(
    held: list[set[int]],
) -> None:
    sites = [site(f"s{i}", sorted(rows), i) for i, rows in enumerate(held)]
    codes, one, two = halves(*sites)
    assert one.shape[1] + two.shape[1] == 6 * len(sites) and min(one.shape[1], two.shape[1]) >= 6
    for half in (one, two):
        length = np.linalg.norm(half, axis=1)
        assert np.all((np.abs(length - 1.0) < 1e-6) | (length == 0.0))
    several = np.array([sum(CODES.index(c) in rows for rows in held) for c in codes])
    both = one.any(axis=1) & two.any(axis=1)
    assert not both[several < 2].any()
    # At least half of what could be in both: each site goes where it brings most of it.
    assert 2 * both.sum() >= (several >= 2).sum()


def test_one_site_has_no_other_half() -> None:
    alone = site("lake", range(30))
    union = build_union([alone], standard="ICD10CM", require_links=False)
    assert site_halves([alone], union.codes, union.row) is None


def test_the_order_of_the_sites_changes_nothing() -> None:
    three = [site("lake", range(30), 1), site("north", range(25), 2), site("south", range(20), 3)]
    first, again = halves(*three), halves(*three[::-1])
    assert all(np.array_equal(a, b) for a, b in zip(first[1:], again[1:], strict=True))


def test_the_half_decides_only_where_it_knows_what_is_near() -> None:
    rng = np.random.default_rng(3)
    noise = [unit_rows(rng, 150, 20) for _ in range(3)]
    alone = select_neighbours(noise[0], threads=1).weights.toarray()
    half = (noise[1].copy(), noise[2].copy())
    half[0][:30] = 0.0
    split = select_neighbours(noise[0], halves=half, threads=1).weights.toarray()
    # Of the first thirty, one half knows nothing: the criterion decides, as without halves.
    assert np.array_equal(split[:30], alone[:30])
    assert np.count_nonzero(split[30:]) < 0.3 * np.count_nonzero(alone[30:])
    half[1][30:140] = 0.0
    few = select_neighbours(noise[0], halves=half, threads=1).weights.toarray()
    # Ten codes are in both halves, and little of what is near them.
    assert np.array_equal(few, alone)
