"""What both sides of a test of association must compute alike: margins, additive statistics, the smoother.

Patient i of a site has symmetric counts C^i; C is their sum, r_j = sum over k != j of C_jk. Without association the expected
count of a pair of different codes at the site is E_jk = a_j a_k. The diagonal has no part in this: whether a code follows itself
says nothing about other codes, and where self-pairs are not counted its zeros would bias every margin.

Counts and expected counts both add over sites. One expectation from added margins would call codes related that some sites
merely use more than others.

Derivations, assumptions and what was measured: docs/explanation/knowledge-graph.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize

from protocol.errors import DataError
from protocol.pair_index import Floats, Int64s
from protocol.secure_sum.fixed import check_range, from_fixed, to_fixed

SHRINK = 0.5
"""Added to counts before a logarithm, so that it exists for a count of zero (Haldane 1956; Anscombe 1956)."""
BITS = 16
"""Fractional bits of sums over patients that are not whole."""
EXPECTED_BITS = 24
"""Fractional bits of expected counts: with them the smoothed test's z are those of unrounded sums to 1e-6."""
VARIANCE_BITS = 32
"""Fractional bits of variances in whitened units, where that of one Poisson count is 1."""


class Margins(NamedTuple):
    """Levels of the codes without the diagonal, and how they answer to a change of the row sums.

    d log a_j = own_j dr_j - shared_j dA, and dA = response' dr.

    Attributes:
        level: (n,) a, with a_j (A - a_j) = r_j and A the sum of a.
        own: (n,) 1 / (a_j (A - 2 a_j)); 0 where a_j is 0.
        shared: (n,) 1 / (A - 2 a_j).
        response: (n,) shared_j / (1 + sum a_k shared_k).
    """

    level: Floats
    own: Floats
    shared: Floats
    response: Floats


def fit_margins(rows: npt.ArrayLike) -> Margins:
    """Levels a with sum over k != j of a_j a_k = r_j: quasi-independence without the diagonal.

    Given A, each level is the lower root of a (A - a) = r; A then solves one equation. A code in more than half of all pairs
    takes the upper root.

    Args:
        rows: (n,) row sums r without the diagonal, not negative.

    Raises:
        DataError: fewer than three codes have pairs, or one code has a part in all of them.

    Law: multiplying r by c multiplies a by the square root of c.
    Source: Goodman 1968 (quasi-independence); Caussinus 1965.
    """
    r = np.asarray(rows, np.float64)
    top = int(np.argmax(r)) if r.size else 0
    if (r > 0).sum() < 3 or 2 * r[top] >= r.sum():
        raise DataError(
            "Expected counts cannot be fitted to these margins",
            why="fewer than three codes have pairs, or all pairs have one code in common",
            do="Test more codes, or leave out the code that comes with everything",
        )

    def lower(total: float) -> Floats:
        return np.asarray(2.0 * r / (total + np.sqrt(np.maximum(total * total - 4.0 * r, 0.0))))

    def excess(total: float) -> float:
        a = lower(total)
        return float(a.sum() - (2.0 * a[top] if dominated else total))

    least = 2.0 * float(np.sqrt(r[top]))
    dominated = float(lower(least).sum()) < least
    most = 2.0 * least
    while (excess(most) > 0.0) != dominated:
        most *= 2.0
    total = float(optimize.brentq(excess, least, most, xtol=1e-300, rtol=4 * np.finfo(np.float64).eps))
    level = lower(total)
    if dominated:
        level[top] = total - level[top]
    return margins_of(level)


def margins_of(level: npt.ArrayLike) -> Margins:
    """Margins with these levels: all else follows from them."""
    a = np.asarray(level, np.float64)
    shared = 1.0 / (a.sum() - 2.0 * a)
    own = np.divide(shared, a, out=np.zeros_like(a), where=a > 0)
    return Margins(a, own, shared, shared / (1.0 + float(a @ shared)))


# --- One round: each pair by itself -----------------------------------------------------------------------


class EntrySums(NamedTuple):
    """Sums over patients for each tested pair; those of sites add, and no common margins are needed.

    With c = C^i_jk and e = the first-order change of the site's E_jk by the patient's counts, sums over the patients:

    Attributes:
        counts: (m,) int64, of c.
        squares: (m,) int64, of c c.
        expected: (m,) the site's E_jk.
        cross: (m,) of c e.
        drift: (m,) of e e.
    """

    counts: Int64s
    squares: Int64s
    expected: Floats
    cross: Floats
    drift: Floats

    def vector(self, *, sites: int) -> Int64s:
        """(5 m,) as a secure sum over so many sites adds it.

        Raises:
            DataError: a number is too large for it.
        """
        real = [
            to_fixed(x, bits, sites=sites)
            for x, bits in ((self.expected, EXPECTED_BITS), (self.cross, BITS), (self.drift, BITS))
        ]
        for whole in (self.counts, self.squares):
            check_range(whole, sites)
        return np.concatenate([self.counts, self.squares, *real])

    @classmethod
    def of(cls, vector: Int64s) -> EntrySums:
        """The sums behind a sum of vectors."""
        rows = vector.reshape(5, -1)
        return cls(rows[0], rows[1], from_fixed(rows[2], EXPECTED_BITS), *from_fixed(rows[3:], BITS))


# --- Two rounds: the smoothed statistic ------------------------------------------------------------------


class HalfCounts(NamedTuple):
    """Counts of two random halves of the patients: what sites send in the first round of the smoothed test.

    Attributes:
        counts: (2, m) int64, of the tested pairs.
        expected: (3, m) by the margins of either half, and by those of all.
    """

    counts: Int64s
    expected: Floats

    def vector(self, *, sites: int) -> Int64s:
        """(5 m,) as a secure sum over so many sites adds it.

        Raises:
            DataError: a number is too large for it.
        """
        check_range(self.counts.ravel(), sites)
        return np.concatenate(
            [self.counts.ravel(), to_fixed(self.expected, EXPECTED_BITS, sites=sites).ravel()]
        )

    @classmethod
    def of(cls, vector: Int64s) -> HalfCounts:
        """The counts behind a sum of vectors."""
        rows = vector.reshape(5, -1)
        return cls(rows[:2], from_fixed(rows[2:], EXPECTED_BITS))


@dataclass(frozen=True, eq=False)
class Smoothing:
    """A low-rank smoother of the whitened log ratios: what the coordinator sends in the second round.

    Z_jk = sqrt(E_jk) log((C_jk + 1/2) / (E_jk + 1/2)) at tested pairs, 0 elsewhere, Z = U L U' + ...; smoothed: U f(L) U'.

    Attributes:
        counts: (m,) int64 pooled counts of the tested pairs.
        expected: (m,) pooled; pairs that no site shows have 0, and no part in the smoother.
        vectors: (p, k) U, by rank.
        values: (k,) L, falling.
        threshold: t, the largest eigenvalue in magnitude of what is noise.
    """

    counts: Int64s
    expected: Floats
    vectors: Floats
    values: Floats
    threshold: float

    def shrunk(self) -> Floats:
        """(k,) f(l) = sqrt(l^2 - t^2): what is left of an eigenvalue once white noise with the edge t is taken off.

        Source: Donoho, Gavish and Johnstone 2018, for symmetric noise and Frobenius loss.
        """
        return np.asarray(np.sqrt(self.values**2 - self.threshold**2))

    def coordinates(self) -> Floats:
        """(p, k) U f(L)^(1/2), by rank: its inner products are the smoothed matrix, so rows alike are codes related alike."""
        return np.asarray(self.vectors * np.sqrt(self.shrunk()))

    def slopes(self) -> Floats:
        """(k, k) the divided differences (f_a - f_b) / (l_a - l_b), on the diagonal f'(l_a) = l_a / f_a."""
        f, values = self.shrunk(), self.values
        # (l_a + l_b) / (f_a + f_b) is the same and needs no case for equal eigenvalues.
        return np.asarray((values[:, None] + values[None, :]) / (f[:, None] + f[None, :]))


def whitened(counts: npt.ArrayLike, expected: Floats, weight: Floats) -> Floats:
    """(m,) weight log((C + 1/2) / (E + 1/2)); a weight of sqrt(E) makes the noise of all pairs alike."""
    return np.asarray(weight * np.log((np.asarray(counts, np.float64) + SHRINK) / (expected + SHRINK)))
