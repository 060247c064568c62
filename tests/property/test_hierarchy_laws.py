"""Kinship in a hierarchy, against the rule spelled out in sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.knowledge.hierarchy import depth_below_root, kin, parent_matrix, without_cycles


@st.composite
def _dags(draw):
    """(n, links child -> parent); parents have greater numbers, so there is no cycle."""
    n = draw(st.integers(2, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chance = draw(st.floats(0.05, 0.5))
    links = [(i, j) for i in range(n) for j in range(i + 1, n) if rng.random() < chance]
    if draw(st.booleans()):
        # A tree of four generations, in which second cousins are common.
        links = [(i, min(n - 1, i + 1 + int(rng.integers(1 + n // 3)))) for i in range(n - 1)]
    return n, links


def _matrix(n, links):
    child, parent = np.array(links, dtype=np.int64).reshape(-1, 2).T
    return parent_matrix(child, parent, n)


def _brute(n, links, shared_depth=0):
    """The rule in words: sets of ancestors by generation."""
    up = {i: {p for c, p in links if c == i} for i in range(n)}

    def generation(i, g):
        return {i} if g == 0 else {p for q in generation(i, g - 1) for p in up[q]}

    def ancestors(i):
        return set().union(*(generation(i, g) for g in range(1, n)))

    def depth(i):
        return 0 if not up[i] else 1 + min(depth(p) for p in up[i])

    deep = {i for i in range(n) if depth(i) >= shared_depth}
    near = [(generation(i, 0) | generation(i, 1) | generation(i, 2)) & deep for i in range(n)]
    similar, negative = set(), set()
    for i in range(n):
        for j in range(i + 1, n):
            if near[i] & near[j]:
                similar.add((i, j))
            elif (
                generation(i, 3) & generation(j, 3) & deep and i not in ancestors(j) and j not in ancestors(i)
            ):
                negative.add((i, j))
    return similar, negative, [depth(i) for i in range(n)]


def _sets(found):
    return {tuple(p) for p in found.similar.tolist()}, {tuple(p) for p in found.negative.tolist()}


@settings(max_examples=100, deadline=None)
@given(_dags(), st.integers(0, 2))
def test_kin_are_those_of_the_rule(case, shared_depth):
    n, links = case
    similar, negative, depth = _brute(n, links, shared_depth)
    found = kin(_matrix(n, links), shared_depth=shared_depth)
    assert _sets(found) == (similar, negative)
    assert found.drawn == 0
    assert depth_below_root(_matrix(n, links)).tolist() == depth


@settings(max_examples=40, deadline=None)
@given(_dags(), st.integers(0, 2**32 - 1))
def test_unwanted_nodes_are_in_no_pair_and_change_no_other(case, seed):
    n, links = case
    wanted = np.random.default_rng(seed).random(n) < 0.6
    every, some = _sets(kin(_matrix(n, links))), _sets(kin(_matrix(n, links), wanted=wanted))
    for all_pairs, kept in zip(every, some, strict=True):
        assert kept == {(i, j) for i, j in all_pairs if wanted[i] and wanted[j]}


@settings(max_examples=40, deadline=None)
@given(_dags(), st.integers(0, 2**32 - 1))
def test_renumbering_the_nodes_commutes(case, seed):
    n, links = case
    new = np.random.default_rng(seed).permutation(n)
    moved = kin(_matrix(n, [(new[c], new[p]) for c, p in links]))
    for pairs, other in zip(_sets(kin(_matrix(n, links))), _sets(moved), strict=True):
        assert {tuple(sorted((int(new[i]), int(new[j])))) for i, j in pairs} == other


@settings(max_examples=50, deadline=None)
@given(_dags(), st.integers(1, 6), st.integers(0, 5))
def test_a_sample_is_a_subset_and_the_same_again(case, most, seed):
    n, links = case
    parents = _matrix(n, links)
    whole = _sets(kin(parents))
    found = kin(parents, most_per_family=most, seed=seed)
    again = kin(parents, most_per_family=most, seed=seed)
    np.testing.assert_array_equal(found.similar, again.similar)
    np.testing.assert_array_equal(found.negative, again.negative)
    similar, negative = _sets(found)
    assert similar <= whole[0]
    assert negative <= whole[1]
    if not found.drawn:
        assert (similar, negative) == whole


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 10), st.integers(0, 2**32 - 1), st.floats(0.05, 0.5))
def test_what_is_left_has_no_cycle_and_only_links_of_cycles_go(n, seed, chance):
    rng = np.random.default_rng(seed)
    links = [(i, j) for i in range(n) for j in range(n) if rng.random() < chance]
    kept, cut = without_cycles(_matrix(n, links))
    power = np.linalg.matrix_power(kept.toarray().astype(float), n)
    assert not power.any()
    reach = np.linalg.matrix_power(np.eye(n) + _matrix(n, links).toarray(), n) > 0
    assert all(reach[parent, child] for child, parent in cut)
    assert kept.nnz + len(cut) == len({link for link in links if link[0] != link[1]})


def test_a_large_family_costs_its_sample_only():
    n = 20_001
    found = kin(_matrix(n, [(i, n - 1) for i in range(n - 1)]), most_per_family=500)
    assert len(found.similar) == 500
    assert found.drawn == 1
    assert found.similar.max() > n // 2


@pytest.mark.parametrize("size", [2, 3, 50, 4001])
def test_every_pair_of_a_family_can_be_drawn(size):
    from coordinator.knowledge.hierarchy import _pair_of

    count = size * (size - 1) // 2
    first, last = _pair_of(np.arange(count), size)
    assert np.all((first >= 0) & (first < last) & (last < size))
    assert len(np.unique(first * size + last)) == count
