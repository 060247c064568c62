"""Inference against the definitions, computed a patient at a time with tables of all codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from protocol.errors import DataError, FitError
from protocol.inference import (
    EntrySums,
    HalfCounts,
    Margins,
    PairTests,
    Smoothing,
    entrywise,
    fit_margins,
    margins_of,
    smooth,
    smoothed,
)
from protocol.pair_index import PairIndex, index_pairs
from protocol.sections import Counting
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.inference import Shown, block_sums, code_rows, entry_sums, half_counts, packed, shown

RULE = Counting(window_days=3)
HISTORY = Counting(rule="whole-history")
N_CODES, N_PATIENTS, BLOCKS = 8, 240, 100
Events = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]


def make_events(seed: int, patients: int = N_PATIENTS, most: int = 25) -> Events:
    """Events of patients with two kinds of days, so that some codes come together."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(patients):
        for day in rng.integers(0, 40, rng.integers(1, most)):
            kind = (i + day // 10) % 2
            rows.append((i, day, rng.integers(0, 4) + 4 * kind if rng.random() < 0.6 else rng.integers(0, 8)))
    table = np.array(sorted(rows), np.int64)
    return table[:, 0], table[:, 1].astype(np.int32), table[:, 2].astype(np.int32)


def counted(events: Events, patients: NDArray[np.bool_] | None = None, rule: Counting = RULE) -> PairCounts:
    keep = np.ones(events[0].size, np.bool_) if patients is None else patients[events[0]]
    return count_pairs(
        *(column[keep] for column in events),
        N_CODES,
        window_days=rule.window,
        max_events_per_patient=rule.max_events_per_patient,
        threads=1,
        memory=1 << 20,
    )


def dense(counts: PairCounts) -> NDArray[np.float64]:
    """C of a set of patients, without the diagonal."""
    upper = counts.events.toarray().astype(np.float64)
    full = upper + upper.T
    np.fill_diagonal(full, 0.0)
    return full


@dataclass
class Case:
    events: Events
    total: PairCounts
    margins: Margins
    pairs: PairIndex
    show: Shown

    @classmethod
    def of(cls, events: Events, rule: Counting = RULE, minimum: float = 10.0) -> Case:
        total = counted(events, rule=rule)
        margins = fit_margins(code_rows(total))
        pairs = index_pairs(margins.level, minimum)
        return cls(events, total, margins, pairs, shown(total, pairs))

    def sums(self, show: Shown | None = None, rule: Counting = RULE, threads: int | None = None) -> EntrySums:
        return entry_sums([self.events], rule, self.pairs, self.margins, show or self.show, threads=threads)

    @property
    def own(self) -> NDArray[np.float64]:
        """(patients, n, n) counts of each patient."""
        return np.stack([dense(counted(self.events, np.arange(N_PATIENTS) == i)) for i in range(N_PATIENTS)])


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.of(make_events(1))


def log_expected(margins: Margins) -> NDArray[np.float64]:
    return np.log(np.outer(margins.level, margins.level))


def test_levels_give_the_row_sums_back() -> None:
    rows = np.array([400, 30, 0, 55, 350, 1])
    margins = fit_margins(rows)
    expected = np.outer(margins.level, margins.level)
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(expected.sum(axis=1), rows, rtol=1e-12)
    same = margins_of(margins.level)
    np.testing.assert_allclose(same.own, margins.own)
    assert margins.own[2] == 0.0


def test_a_code_in_most_pairs_takes_the_upper_root() -> None:
    level = np.array([10.0, 2.0, 1.0, 1.5])  # the first is more than half of the sum
    rows = level * (level.sum() - level)
    np.testing.assert_allclose(fit_margins(rows).level, level, rtol=1e-12)


@pytest.mark.parametrize("rows", [[5, 5], [10, 4, 6], [0, 0, 0], []])
def test_margins_without_a_fit_are_refused(rows: list[int]) -> None:
    with pytest.raises(DataError, match="cannot be fitted"):
        fit_margins(rows)


def test_levels_answer_to_the_rows_as_the_coefficients_say(case: Case) -> None:
    rows = code_rows(case.total).astype(np.float64)
    change = np.random.default_rng(0).normal(size=rows.size) * rows * 1e-6
    margins = fit_margins(rows)
    moved = np.log(fit_margins(rows + change).level) - np.log(margins.level)
    predicted = margins.own * change - margins.shared * (margins.response @ change)
    np.testing.assert_allclose(moved, predicted, rtol=1e-3, atol=1e-11)


def test_tested_pairs_are_those_expected_often_enough() -> None:
    level = np.array([3.0, 0.5, 6.0, 3.0, 0.0, 20.0])
    pairs = index_pairs(level, 9.0)
    found = {tuple(sorted(p)) for p in zip(*(x.tolist() for x in pairs.codes()), strict=True)}
    assert found == {(j, k) for j in range(6) for k in range(j + 1, 6) if level[j] * level[k] >= 9.0}
    assert pairs.size == len(found)
    np.testing.assert_allclose(
        pairs.outer(level[pairs.order]), np.multiply(*(level[x] for x in pairs.codes()))
    )


def test_products_with_tested_pairs_are_those_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    pairs = index_pairs(rng.gamma(1.0, 2.0, 40), 3.0)
    values = rng.normal(size=pairs.size)
    p = pairs.order.size
    full = np.zeros((p, p))
    full[pairs.ranks()] = values
    block = rng.normal(size=(p, 3))
    for entries in (1, 50, 1 << 21):
        monkeypatch.setattr("protocol.pair_index._TILE", entries)
        np.testing.assert_allclose(pairs.times(values, block), (full + full.T) @ block, atol=1e-12)


def test_too_few_and_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="No pair of codes"):
        index_pairs([1.0, 1.0, 1.0], 9.0)
    monkeypatch.setattr("protocol.pair_index.MAX_PAIRS", 2)
    with pytest.raises(DataError, match="at most 2 are tested"):
        index_pairs([5.0, 5.0, 5.0], 9.0)


def drifts(case: Case) -> NDArray[np.float64]:
    """(patients, n, n) first-order change of the expected counts by each patient."""
    answer = margins_answer(case.margins, case.own.sum(axis=2))
    return np.exp(log_expected(case.margins)) * (answer[:, :, None] + answer[:, None, :])


def margins_answer(margins: Margins, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """(patients, n) first-order change of log a."""
    return margins.own * rows - margins.shared * (rows @ margins.response)[:, None]


@pytest.mark.parametrize("threads", [1, 3])
def test_entry_sums_are_the_sums_over_patients(case: Case, threads: int) -> None:
    found = case.sums(threads=threads)
    at = case.pairs.codes()
    c, e = (np.stack([one[at] for one in each]) for each in (case.own, drifts(case)))
    np.testing.assert_array_equal(found.counts, c.sum(axis=0))
    np.testing.assert_array_equal(found.squares, (c * c).sum(axis=0))
    np.testing.assert_allclose(found.expected, np.exp(log_expected(case.margins))[at])
    np.testing.assert_allclose(found.expected, e.sum(axis=0))  # all patients together move it by itself
    np.testing.assert_allclose(found.cross, (c * e).sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.drift, (e * e).sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    "rule", [HISTORY, Counting(window_days=0), Counting(window_days=5, max_events_per_patient=6)]
)
def test_entry_sums_follow_the_rule_of_counting(rule: Counting) -> None:
    case = Case.of(make_events(2), rule)
    found = case.sums(rule=rule)
    np.testing.assert_array_equal(found.counts, packed(case.total.events, case.pairs))
    np.testing.assert_array_equal(code_rows(case.total), dense(case.total).sum(axis=1))


def test_entrywise_error_is_the_influence_of_the_patients(case: Case) -> None:
    tests = entrywise(case.sums(), case.pairs)
    own = case.own
    expected, total = np.exp(log_expected(case.margins)), own.sum(axis=0)
    with np.errstate(invalid="ignore"):
        phi = own / total - drifts(case) / expected
    at = tests.row, tests.column
    np.testing.assert_allclose(tests.error, np.sqrt((phi**2).sum(axis=0))[at], rtol=1e-9)
    np.testing.assert_allclose(tests.log_ratio, np.log(total[at] / expected[at]))
    z = 3 * (1 - np.exp(-tests.log_ratio / 3)) / tests.error
    np.testing.assert_allclose(tests.z, z)
    np.testing.assert_allclose(tests.p, stats.norm.sf(z))


def test_vectors_of_sums_come_back(case: Case) -> None:
    sums, halves = case.sums(), halves_of(case)
    for before in (sums, halves):
        after = type(before).of(before.vector(sites=3))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one, other, atol=2**-17)
    again = EntrySums.of(sums.vector(sites=3))
    np.testing.assert_array_equal(again.squares, sums.squares)


def test_what_a_site_shows_depends_on_what_it_expects(case: Case) -> None:
    upper = case.total.pair_patients.toarray().astype(float)
    both = upper + upper.T
    np.fill_diagonal(both, 0.0)
    level = fit_margins(both.sum(axis=1)).level
    expected = np.multiply(*(level[x] for x in case.pairs.codes()))
    least = expected - 3 * np.sqrt(expected)
    floor = int(np.median(least))
    show = shown(case.total, case.pairs, min_pair_patients=floor)
    np.testing.assert_array_equal(show.steady, least >= floor)
    enough = packed(case.total.pair_patients, case.pairs) >= floor
    np.testing.assert_array_equal(show.pairs, show.steady & enough)
    assert 0 < show.pairs.sum() < show.pairs.size


def test_withheld_pairs_go_out_as_zero_and_are_found_by_nobody(case: Case) -> None:
    show = Shown(case.show.codes, np.arange(case.pairs.size) % 3 > 0, np.arange(case.pairs.size) % 3 > 1)
    sums = case.sums(show)
    hidden = ~show.pairs
    assert not sums.counts[hidden].any()
    assert not sums.squares[hidden].any()
    assert not sums.cross[hidden].any()
    assert not sums.expected[~show.steady].any()
    assert sums.expected[show.steady].all()
    tests = entrywise(sums, case.pairs)
    assert (tests.p[hidden] == 1.0).all()
    assert (tests.q()[hidden] == 1.0).all()
    _, tests = run_smoothed(case, show)
    assert (tests.p[hidden] == 1.0).all()
    assert np.isfinite(tests.z[~hidden]).all()


def test_withheld_codes_have_no_pairs_and_give_none(case: Case) -> None:
    keep = np.arange(N_CODES) != 5
    rows = code_rows(case.total, keep)
    assert rows[5] == 0
    np.testing.assert_array_equal(rows[keep], dense(case.total)[keep][:, keep].sum(axis=1))
    least = int(case.total.code_patients.max())
    show = shown(case.total, case.pairs, min_code_patients=least)
    np.testing.assert_array_equal(show.codes, case.total.code_patients >= least)
    row, column = case.pairs.codes()
    without = Shown(keep, (row != 5) & (column != 5), (row != 5) & (column != 5))
    margins = fit_margins(rows)
    found = entry_sums([case.events], RULE, case.pairs, margins, without)
    events = tuple(column[case.events[2] != 5] for column in case.events)
    same = entry_sums([events], RULE, case.pairs, margins, case.show)  # type: ignore[list-item]
    for one, other in zip(found, same, strict=True):
        np.testing.assert_allclose(one, np.where(without.pairs, other, 0))


def test_a_minimum_effect_is_asked_for_by_both_tests(case: Case) -> None:
    plain, asked = (entrywise(case.sums(), case.pairs, delta=d) for d in (0.0, 0.3))
    assert (asked.z < plain.z).all()
    at_null = int(np.argmin(np.abs(plain.log_ratio - np.log(1.3))))
    assert abs(asked.z[at_null]) < abs(plain.z[at_null])
    smoothing, tests = run_smoothed(case)
    high = smoothed(smoothing, case.pairs, tests.error**2 * tests.expected, BLOCKS - 1, delta=0.3)
    assert (high.z < tests.z).all()


def test_pairs_of_which_too_few_are_expected_are_not_found(case: Case) -> None:
    least = float(np.median(case.sums().expected))
    tests = entrywise(case.sums(), case.pairs, minimum=least)
    np.testing.assert_array_equal(tests.p == 1.0, tests.expected < least)
    smoothing = smooth(halves_of(case), case.pairs, minimum=least)
    np.testing.assert_array_equal(smoothing.expected > 0, tests.expected >= least)


def blocks_of(case: Case) -> list[PairCounts]:
    return [counted(case.events, np.arange(N_PATIENTS) % BLOCKS == g) for g in range(BLOCKS)]


def halves_of(case: Case, show: Shown | None = None) -> HalfCounts:
    odd = np.arange(N_PATIENTS) % 2 == 1
    return half_counts([counted(case.events, ~odd), counted(case.events, odd)], case.pairs, show or case.show)


def run_smoothed(case: Case, show: Shown | None = None) -> tuple[Smoothing, PairTests]:
    show = show or case.show
    smoothing = smooth(halves_of(case, show), case.pairs)
    sums = block_sums(blocks_of(case), case.pairs, smoothing, case.margins, show)
    assert sums.freedom == BLOCKS - 1
    return smoothing, smoothed(smoothing, case.pairs, sums.variance, sums.freedom)


def test_smoothing_keeps_what_stands_out_of_the_halves(case: Case) -> None:
    smoothing = smooth(halves_of(case), case.pairs)
    np.testing.assert_array_equal(smoothing.counts, packed(case.total.events, case.pairs))
    weight, ratios = matrices(case, smoothing)
    values = np.linalg.eigvalsh(weight * ratios)[::-1]
    np.testing.assert_allclose(smoothing.values, values[values > smoothing.threshold])
    np.testing.assert_allclose(smoothing.shrunk() ** 2 + smoothing.threshold**2, smoothing.values**2)
    odd = np.arange(N_PATIENTS) % 2 == 1
    noise = []
    for half in (dense(counted(case.events, ~odd)), dense(counted(case.events, odd))):
        expected = np.exp(log_expected(fit_margins(half.sum(axis=1))))
        noise.append(weight * np.log((half + 0.5) / (expected + 0.5)))
    apart = (noise[0] - noise[1]) / 2
    apart[~linked(case)] = 0.0
    assert smoothing.threshold == pytest.approx(np.abs(np.linalg.eigvalsh(apart)).max())


def linked(case: Case) -> NDArray[np.bool_]:
    found = np.zeros((N_CODES, N_CODES), np.bool_)
    found[case.pairs.codes()] = True
    return found | found.T


def place(case: Case, values: NDArray[np.int64]) -> NDArray[np.float64]:
    full = np.zeros((N_CODES, N_CODES))
    full[case.pairs.codes()] = values
    return full + full.T


def matrices(case: Case, smoothing: Smoothing) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    expected = np.exp(log_expected(case.margins))
    ratios = np.log((place(case, smoothing.counts) + 0.5) / (expected + 0.5))
    ratios[~linked(case)] = 0.0
    return np.sqrt(expected), ratios


def test_block_sums_are_the_derivative_of_the_smoother(case: Case) -> None:
    """Within the kept subspace exactly; across, eigenvalues of what is not kept are taken as 0."""
    smoothing = smooth(halves_of(case), case.pairs)
    sums = block_sums(blocks_of(case), case.pairs, smoothing, case.margins, case.show)
    weight, _ = matrices(case, smoothing)
    expected, counts = weight**2, place(case, smoothing.counts)
    u = np.zeros((N_CODES, smoothing.values.size))
    u[case.pairs.order] = smoothing.vectors
    outside = np.eye(N_CODES) - u @ u.T
    psi = []
    for block in blocks_of(case):
        own = dense(block)
        a = margins_answer(case.margins, own.sum(axis=1)[None])[0]
        phi = weight * (own / (counts + 0.5) - expected / (expected + 0.5) * (a[:, None] + a[None, :]))
        phi[~linked(case)] = 0.0
        # The kept part of the matrix, moved by a little of phi, and smoothed anew.
        kept = (u * smoothing.values) @ u.T
        step = 1e-6
        psi.append((shrunk(kept + step * phi, smoothing) - shrunk(kept - step * phi, smoothing)) / (2 * step))
        assert np.abs(outside @ psi[-1] @ outside).max() < 1e-6 * max(1.0, np.abs(psi[-1]).max())
    spread = np.stack([p[case.pairs.codes()] for p in psi])
    wanted = BLOCKS * spread.var(axis=0, ddof=1)
    np.testing.assert_allclose(sums.variance, wanted, rtol=1e-5)


def shrunk(matrix: NDArray[np.float64], smoothing: Smoothing) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    f = np.sqrt(np.maximum(values**2 - smoothing.threshold**2, 0.0)) * (values > 0)
    return np.asarray((vectors * f) @ vectors.T)


def test_too_few_blocks_are_refused(case: Case) -> None:
    smoothing = smooth(halves_of(case), case.pairs)
    with pytest.raises(ValueError, match="needs 100"):
        block_sums(blocks_of(case)[:99], case.pairs, smoothing, case.margins, case.show)


def expected_of(counts: NDArray[np.int64], pairs: PairIndex, n: int) -> NDArray[np.float64]:
    """(3, m) of the halves and of all."""
    found = []
    for one in (*counts, counts.sum(axis=0)):
        rows = np.zeros(n)
        for side in pairs.codes():
            np.add.at(rows, side, one)
        found.append(pairs.outer(fit_margins(rows).level[pairs.order]))
    return np.stack(found)


def test_noise_alone_gives_no_smoother() -> None:
    pairs = index_pairs(np.full(30, 10.0), 10.0)
    refused = 0
    for seed in range(20):
        counts = np.random.default_rng(seed).poisson(50.0, (2, pairs.size))
        try:
            found = smooth(HalfCounts(counts, expected_of(counts, pairs, 30)), pairs)
        except FitError:
            refused += 1
        else:
            assert found.values.size < 4
    assert (
        refused > 5
    )  # the largest eigenvalue of noise is above that of other noise every second time at most


def test_large_matrices_are_smoothed_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    n = 300
    group = np.arange(n) % 3
    level = rng.gamma(4.0, 3.0, n)
    pairs = index_pairs(level, 10.0)
    row, column = pairs.codes()
    rate = level[row] * level[column] * np.where(group[row] == group[column], 1.3, 0.85)
    counts = rng.poisson(rate / 2, (2, pairs.size))
    halves = HalfCounts(counts, expected_of(counts, pairs, n))
    small = smooth(halves, pairs, max_rank=2)
    monkeypatch.setattr("protocol.inference.testing._DENSE", 10)
    large = smooth(halves, pairs, max_rank=2)
    assert large.threshold == pytest.approx(small.threshold)
    np.testing.assert_allclose(large.values, small.values, rtol=1e-5)
    np.testing.assert_allclose(large.vectors, small.vectors, atol=1e-3)


def test_q_values_are_those_of_benjamini_hochberg_and_yekutieli(case: Case) -> None:
    _, tests = run_smoothed(case)
    m = tests.p.size
    order = np.argsort(tests.p)
    rising = np.minimum.accumulate((tests.p[order] * m / np.arange(1, m + 1))[::-1])[::-1]
    np.testing.assert_allclose(tests.q()[order], np.minimum(rising, 1.0))
    harmonic = (1 / np.arange(1, m + 1)).sum()
    np.testing.assert_allclose(tests.q("by")[order], np.minimum(rising * harmonic, 1.0))


def test_planted_relations_are_found(case: Case) -> None:
    _, tests = run_smoothed(case)
    same = (tests.row < 4) == (tests.column < 4)
    assert (tests.q()[same] < 0.01).all()
    assert (tests.q()[~same] > 0.5).all()
