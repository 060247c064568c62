"""Random walks on an is-a graph: what their windows hold on average, exactly, and the embedding of that.

node2vec with p = q = 1 (DeepWalk) starts as many uniform random walks from each node and counts which nodes come near
one another on them. With P = D^-1 A, a start in every node, and m_t = 1'P^t, where the walks are after t steps,

    C = sum_(r=1..w) a_r (diag(s_r) P^r + its transpose),   s_r = m_0 + ... + m_(l-1-r),   a_r = (w - r + 1) / w

is the expected number of times that two nodes lie within a window, a walk of l nodes from each: word2vec draws each
window's size from 1..w, which weighs distance r by a_r. No walk needs to be drawn, and nothing depends on a seed. As
P^r_ij d_i = P^r_ji d_j, each row of C follows from the same row of the P^r.

Skip-gram with negative sampling factorises the PMI of C (Levy and Goldberg 2014); here leading eigenpairs do, of what lies
above a floor. PPMI, whose floor is 0, knows no difference between cousins and codes of other chapters. Without a floor that
difference takes most of the columns from siblings. The default lies between.

Source: Perozzi et al. 2014; Grover and Leskovec 2016; Qiu et al. 2018 (the limit of long walks). Finite walks from
uniform starts and the windows' weights: derived.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from protocol.keep.ontology import IsA
from protocol.statistics import embed

Array = NDArray[np.float64]
LENGTH = 30
WINDOW = 10
FLOOR = float(np.log(0.03))
_BLOCK_BYTES = 1 << 26


def walk_ppmi(
    edges: sp.csr_array, *, length: int = LENGTH, window: int = WINDOW, floor: float = FLOOR
) -> sp.csr_array:
    """PMI of the expected co-occurrence of nodes on random walks, above a floor: max(PMI - floor, 0).

    Args:
        edges: (n, n) symmetric 0/1 matrix without an empty row.
        length: nodes of a walk.
        window: largest distance on a walk.
        floor: in nats; 0 makes it PPMI.

    Returns:
        (n, n) symmetric; only entries above 0 are stored.

    Raises:
        ValueError: a node without an edge, or a window that is not between 1 and length - 1.

    Time grows with window * n * (number of edges), memory with what is stored.
    Laws: the mean of the counts of drawn walks tends to C; renumbering the nodes renumbers the result.
    """
    if not 1 <= window < length:
        raise ValueError(
            f"window is {window}; it must be between 1 and {length - 1} for walks of {length} nodes"
        )
    n = edges.shape[0]
    degree = np.asarray(edges.sum(axis=1), np.float64).ravel()
    if n and not degree.all():
        raise ValueError(f"node {int(np.flatnonzero(degree == 0)[0])} has no edge: no walk passes it")
    step = sp.csr_array(sp.diags_array(1.0 / degree) @ edges)
    weight = 1.0 - np.arange(window) / window
    starts, margin = _margins(step, length, weight)
    log_total, log_margin = np.log(margin.sum()), np.log(margin)
    backward = sp.csr_array(step.T)
    size = max(1, _BLOCK_BYTES // (8 * max(n, 1)))
    blocks = []
    for low in range(0, n, size):
        rows = slice(low, min(low + size, n))
        counts = _expected_rows(backward, degree, starts, weight, rows)
        with np.errstate(divide="ignore"):
            pmi = np.log(counts, out=counts)
        pmi += log_total - floor - log_margin[rows, None] - log_margin
        np.maximum(pmi, 0.0, out=pmi)
        # What rounding leaves of two nodes that are independent is no association.
        pmi[pmi < 1e-9] = 0.0
        blocks.append(sp.csr_array(pmi))
    stacked = sp.csr_array(sp.vstack(blocks, format="csr")) if blocks else sp.csr_array((0, 0))
    return sp.csr_array((stacked + stacked.T) * 0.5)


def walk_embedding(
    graph: IsA, dim: int, *, length: int = LENGTH, window: int = WINDOW, seed: int = 0
) -> NDArray[np.float32]:
    """Unit row of each code from the leading eigenpairs of `walk_ppmi`.

    Args:
        graph: the codes.
        dim: columns that are wanted.
        length: nodes of a walk.
        window: largest distance on a walk.
        seed: of the eigensolver's start.

    Returns:
        float32 (n, <= dim), in the order of `graph.codes`.
    """
    return embed(walk_ppmi(graph.edges, length=length, window=window), dim, seed=seed)


def _margins(step: sp.csr_array, length: int, weight: Array) -> tuple[Array, Array]:
    """s_r for each distance r, (window, n), and the row sums of C, (n,)."""
    at = np.ones((length, step.shape[0]))
    for t in range(1, length):
        at[t] = at[t - 1] @ step
    passed = np.cumsum(at, axis=0)
    last = length - 1 - np.arange(1, weight.size + 1)
    starts = passed[last]
    arrivals = passed[-1] - passed[np.arange(weight.size)]
    return starts, weight @ (starts + arrivals)


def _expected_rows(backward: sp.csr_array, degree: Array, starts: Array, weight: Array, rows: slice) -> Array:
    """Rows of C, (len(rows), n)."""
    n = degree.size
    power = np.zeros((n, rows.stop - rows.start))
    power[np.arange(rows.start, rows.stop), np.arange(rows.stop - rows.start)] = 1.0
    found = np.zeros_like(power)
    for a, s in zip(weight, starts, strict=True):
        power = backward @ power  # column i is row i of P^r
        found += power * (a * s[rows])
        found += power * (a * s / degree)[:, None] * degree[rows]
    return np.ascontiguousarray(found.T)
