"""Block sums of the smoothed test: how the smoothed statistic would answer to each random block of patients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from protocol.inference import SHRINK, Margins, Smoothing
from protocol.pair_index import Floats, Int64s, PairIndex
from site_agent.cooccurrence import PairCounts
from site_agent.inference.cells import Shown, code_rows, expected_counts, packed

MIN_BLOCKS = 100
"""Fewer blocks estimate a variance too roughly, and each would say more about its patients."""


class BlockSums(NamedTuple):
    """What a site sends in the second round.

    Attributes:
        variance: (m,) G / (G - 1) times the sum over blocks of (psi^g - mean)^2; those of sites add.
        freedom: G - 1; those of sites add.
    """

    variance: Floats
    freedom: int


def block_sums(
    blocks: Iterable[PairCounts],
    pairs: PairIndex,
    smoothing: Smoothing,
    margins: Margins,
    show: Shown,
) -> BlockSums:
    """Variance of the smoothed statistic from a site's random blocks of patients.

    phi^g is the first-order change of Z by the patients of block g, psi^g that of U f(L) U' by phi^g:

        psi = U (W o (U' phi U)) U' + U diag(f/l) (U' phi) (I - U U') + its transpose

    Blocks are centred at the site: how sites differ is not chance, as the patients are drawn within sites.

    Args:
        blocks: counts of each block (`CountRuns.block`), over the vocabulary; read once, one at a time.
        pairs: tested pairs.
        smoothing: from the coordinator.
        margins: the site's, of all its patients.
        show: which codes and pairs the site showed in the first round.

    Memory: four vectors over the tested pairs, and a tile of 16 MiB; time in proportion to blocks, pairs and columns of U.

    Raises:
        ValueError: fewer than 100 blocks.

    Law: sums of sites are those of all their blocks, centred by site.
    """
    by_rank = Margins(*(part[pairs.order] for part in margins))
    weight = np.sqrt(smoothing.expected)
    gain = np.where(show.pairs, weight / (smoothing.counts + SHRINK), 0.0)  # of Z for a count
    # Of Z for the logarithm of what this site expects.
    loss = weight * expected_counts(margins, pairs, show.steady) / (smoothing.expected + SHRINK)
    total, squares, own = np.zeros(pairs.size), np.zeros(pairs.size), np.zeros(pairs.size, np.int64)
    n = 0
    for block in blocks:
        rows = code_rows(block, show.codes)
        shift = by_rank.own * rows[pairs.order] - by_rank.shared * float(margins.response @ rows)
        packed(block.events, pairs, own)
        _add_block(pairs, smoothing, gain, loss, own, shift, total, squares)
        n += 1
    if n < MIN_BLOCKS:
        raise ValueError(f"{n} blocks of patients; the variance needs {MIN_BLOCKS}")
    squares -= total**2 / n
    squares *= n / (n - 1)
    return BlockSums(np.maximum(squares, 0.0), n - 1)


def _add_block(
    pairs: PairIndex,
    smoothing: Smoothing,
    gain: Floats,
    loss: Floats,
    own: Int64s,
    shift: Floats,
    total: Floats,
    squares: Floats,
) -> None:
    """Add psi and its square for one block."""
    u = smoothing.vectors
    image = np.zeros_like(u)  # phi U
    for first, stop, last in pairs.tiles():
        phi = np.zeros((stop - first, last - first - 1))
        for i, part, columns in pairs.rows(first, stop):
            row = gain[part] * own[part]
            row -= loss[part] * (shift[columns] + shift[i])
            phi[i - first, columns.start - first - 1 : columns.stop - first - 1] = row
        image[first:stop] += phi @ u[first + 1 : last]
        image[first + 1 : last] += phi.T @ u[first:stop]
    within = u.T @ image
    across = (image - u @ within) * (smoothing.shrunk() / smoothing.values)
    # psi = U Y' + Y U', one product of matrices twice as wide.
    other = u @ (smoothing.slopes() * (within + within.T) / 4.0) + across
    left, right = np.hstack([u, other]), np.hstack([other, u])
    for first, stop, last in pairs.tiles():
        psi = left[first:stop] @ right[first + 1 : last].T
        for i, part, columns in pairs.rows(first, stop):
            row = psi[i - first, columns.start - first - 1 : columns.stop - first - 1]
            total[part] += row
            squares[part] += row * row
