"""Laws of what sites send for tests of relations: it adds, and it says nothing of what it must not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse

from protocol.inference import VARIANCE_BITS, EntrySums, Margins, Smoothing, entrywise, fit_margins
from protocol.pair_index import PairIndex, index_pairs
from protocol.sections import Counting
from protocol.secure_sum.fixed import from_fixed, to_fixed
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.inference import (
    Shown,
    block_sums,
    code_rows,
    entry_sums,
    expected_counts,
    half_counts,
    packed,
    shown,
)

N_CODES = 7
RULE = Counting(window_days=4)
Rows = NDArray[np.int64]
seeds = st.integers(0, 2**32 - 1)


def make_rows(seed: int, patients: int = 40) -> Rows:
    """(m, 3) patient, day, code of a site, by patient and day."""
    rng = np.random.default_rng(seed)
    size = rng.integers(patients * 4, patients * 12)
    rows = np.stack(
        [rng.integers(0, patients, size), rng.integers(0, 25, size), rng.integers(0, N_CODES, size)], axis=1
    )
    return rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]


def counted(rows: Rows, n_codes: int = N_CODES) -> PairCounts:
    return count_pairs(*rows.T, n_codes, window_days=RULE.window, threads=1, memory=1 << 18)


def events(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    return rows[:, 0].copy(), rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32)


def index_of(*sites: Rows) -> PairIndex:
    """Of the tested pairs of all sites."""
    total = np.sum([code_rows(counted(rows)) for rows in sites], axis=0)
    return index_pairs(fit_margins(total).level, 1.0)


def sums_of(rows: Rows, pairs: PairIndex, threads: int = 1) -> EntrySums:
    total = counted(rows)
    margins = fit_margins(code_rows(total))
    return entry_sums([events(rows)], RULE, pairs, margins, shown(total, pairs), threads=threads)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 4))
def test_sums_do_not_depend_on_how_the_work_is_cut(seed: int, threads: int) -> None:
    rows = make_rows(seed)
    pairs, total = index_of(rows), counted(rows)
    margins, show = fit_margins(code_rows(total)), shown(total, index_of(rows))
    whole = sums_of(rows, pairs)
    parts = [events(rows[rows[:, 0] % 3 == i]) for i in range(3)]
    again = entry_sums(parts, RULE, pairs, margins, show, threads=threads)
    np.testing.assert_array_equal(whole.counts, again.counts)
    np.testing.assert_array_equal(whole.squares, again.squares)
    for one, other in zip(whole[2:], again[2:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(seeds, min_size=3, max_size=3, unique=True))
def test_whole_numbers_of_three_sites_add_to_those_of_their_patients_together(three: list[int]) -> None:
    sites = [make_rows(seed) for seed in three]
    pairs = index_of(*sites)
    vector = np.sum([sums_of(rows, pairs).vector(sites=3) for rows in sites], axis=0)
    pooled = EntrySums.of(vector)
    together = np.concatenate([rows + np.array([1000 * i, 0, 0]) for i, rows in enumerate(sites)])
    wanted = sums_of(together, pairs)
    np.testing.assert_array_equal(pooled.counts, wanted.counts)
    np.testing.assert_array_equal(pooled.squares, wanted.squares)
    half = [
        half_counts([counted(r[r[:, 0] % 2 == h]) for h in (0, 1)], pairs, show_all(pairs)) for r in sites
    ]
    np.testing.assert_array_equal(np.sum([h.counts for h in half], axis=(0, 1)), wanted.counts)


def show_all(pairs: PairIndex) -> Shown:
    every = np.ones(pairs.size, np.bool_)
    return Shown(np.ones(N_CODES, np.bool_), every, every)


def smoothing_of(pairs: PairIndex, counts: Rows, expected: NDArray[np.float64], seed: int) -> Smoothing:
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(pairs.order.size, 2)))[0]
    return Smoothing(counts, expected, vectors, np.array([9.0, 5.0]), 3.0)


@settings(max_examples=10, deadline=None)
@given(st.lists(seeds, min_size=3, max_size=3, unique=True))
def test_block_sums_of_three_sites_add_to_a_millionth(three: list[int]) -> None:
    """What secure sums carry, against influences written out as dense matrices, all blocks of all sites at one place."""
    sites = [make_rows(seed, patients=120) for seed in three]
    pairs = index_of(*sites)
    totals = [counted(rows) for rows in sites]
    margins = [fit_margins(code_rows(t)) for t in totals]
    show = show_all(pairs)
    expected = np.sum([expected_counts(m, pairs, show.steady) for m in margins], axis=0)
    counts = np.sum([packed(t.events, pairs) for t in totals], axis=0)
    smoothing = smoothing_of(pairs, counts, expected, three[0])
    blocks = [[counted(rows[rows[:, 0] % 100 == g]) for g in range(100)] for rows in sites]
    sent = [
        to_fixed(block_sums(b, pairs, smoothing, m, show).variance, VARIANCE_BITS, sites=3)
        for b, m in zip(blocks, margins, strict=True)
    ]
    variance = from_fixed(np.sum(sent, axis=0), VARIANCE_BITS)
    wanted = np.zeros(pairs.size)
    for own, m in zip(blocks, margins, strict=True):
        psi = np.stack([influence(block, m, pairs, smoothing) for block in own])
        wanted += 100 * psi.var(axis=0, ddof=1)
    np.testing.assert_allclose(variance, wanted, rtol=1e-6, atol=1e-8)


def influence(
    block: PairCounts, margins: Margins, pairs: PairIndex, smoothing: Smoothing
) -> NDArray[np.float64]:
    row, column = pairs.ranks()
    rows = code_rows(block)
    answer = (margins.own * rows - margins.shared * (margins.response @ rows))[pairs.order]
    weight, own = np.sqrt(smoothing.expected), expected_counts(margins, pairs, np.ones(pairs.size, np.bool_))
    change = packed(block.events, pairs) / (smoothing.counts + 0.5)
    change = weight * (change - own / (smoothing.expected + 0.5) * (answer[row] + answer[column]))
    p = pairs.order.size
    phi = sparse.coo_array((change, (row, column)), shape=(p, p)).toarray()
    phi += phi.T
    u, f = smoothing.vectors, smoothing.shrunk()
    outside = np.eye(p) - u @ u.T
    across = u @ np.diag(f / smoothing.values) @ u.T @ phi @ outside
    psi = u @ (smoothing.slopes() * (u.T @ phi @ u)) @ u.T + across + across.T
    return np.asarray(psi[row, column])


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_self_pairs_have_no_part(seed: int) -> None:
    rows = make_rows(seed)
    total = counted(rows)
    without = total.events.copy()
    without.setdiag(0)
    bare = PairCounts(
        sparse.csr_array(without), total.pair_patients, total.code_patients, total.n_patients, total.n_events
    )
    np.testing.assert_array_equal(code_rows(total), code_rows(bare))
    pairs = index_of(rows)
    np.testing.assert_array_equal(packed(total.events, pairs), packed(bare.events, pairs))
    # A patient with one code on many days adds self-pairs, and changes nothing at all.
    more = np.concatenate([rows, [[999, day, 3] for day in range(10)]])
    for one, other in zip(sums_of(rows, pairs), sums_of(more, pairs), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_names_of_codes_do_not_matter(seed: int) -> None:
    rows = make_rows(seed)
    new = np.random.default_rng(seed + 1).permutation(N_CODES)
    renamed = rows.copy()
    renamed[:, 2] = new[rows[:, 2]]
    found = []
    for one, names in ((rows, np.arange(N_CODES)), (renamed, np.argsort(new))):
        pairs = index_of(one)
        tests = entrywise(sums_of(one, pairs), pairs, minimum=1.0)
        keys = [tuple(sorted(names[[j, k]].tolist())) for j, k in zip(tests.row, tests.column, strict=True)]
        found.append(dict(zip(keys, tests.z.tolist(), strict=True)))
    assert found[0].keys() == found[1].keys()
    for key, z in found[0].items():
        np.testing.assert_allclose(found[1][key], z, rtol=1e-8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=12), st.floats(0.01, 100.0))
def test_margins_of_levels_are_those_levels(levels: list[float], c: float) -> None:
    a = np.array(levels)
    rows = a * (a.sum() - a)
    np.testing.assert_allclose(fit_margins(rows).level, a, rtol=1e-6)
    np.testing.assert_allclose(fit_margins(c * rows).level, np.sqrt(c) * a, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 50.0), min_size=2, max_size=15), st.floats(0.1, 400.0), seeds)
def test_the_index_numbers_each_pair_that_is_expected_often_enough(
    levels: list[float], minimum: float, seed: int
) -> None:
    a = np.array(levels)
    wanted = {(j, k) for j in range(a.size) for k in range(j + 1, a.size) if a[j] * a[k] >= minimum}
    if not wanted:
        return
    pairs = index_pairs(a, minimum)
    row, column = pairs.codes()
    assert {(min(j, k), max(j, k)) for j, k in zip(row.tolist(), column.tolist(), strict=True)} == wanted
    assert pairs.size == len(wanted)
    values = np.random.default_rng(seed).normal(size=pairs.size)
    np.testing.assert_allclose(pairs.tile(values, 0, pairs.order.size, pairs.order.size).sum(), values.sum())
