"""Bring sources that share only some codes into one coordinate system: the start of SMILE, and its rival.

Sources are joined one by one through the codes that they share with those already joined, by orthogonal
Procrustes on their leading axes. Rows that a source lacks are then filled from the common coordinates, and
the singular vectors of the filled views side by side are the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.sparse.csgraph import connected_components

from coordinator.model.factor import Array, Index, View
from protocol.errors import FitError

_REFINEMENTS = 3  # sweeps of generalised Procrustes after the last source has joined
_RANK_TOLERANCE = 1e-8
_EXPONENTS = (1.0, 2.0, 3.0, 4.0)
_FOLDS = 5
_FEW_FOLDS = 2  # where an alignment takes seconds
_LARGE = 1_000_000  # numbers in an embedding, above which it does
_GRAM_FROM = (
    512  # columns above which singular vectors come from the Gram matrix: 5 times faster, half the digits
)
_MOST_HELD_OUT = 500  # shared codes that the choice of the exponent looks at


@dataclass(frozen=True, eq=False)
class Alignment:
    """Common coordinates of all codes.

    Args:
        common: (n, w) mean of the aligned leading axes of the sources that hold the code.
        maps: one (r, w) partial isometry a view, from its leading axes to the common ones.
        warnings: which source hangs on too few shared codes.
    """

    common: Array
    maps: tuple[Array, ...]
    warnings: tuple[str, ...]


def check_connected(views: Sequence[View], n_codes: int, names: Sequence[str] | None = None) -> None:
    """Refuse data that no alignment can join.

    Args:
        views: the sources.
        n_codes: n, the size of the union vocabulary.
        names: the codes' names for messages; their rows without them.

    Raises:
        FitError: a code is in no source or outside the vocabulary, or sources share no path of codes.
    """
    held = np.zeros((len(views), n_codes), dtype=bool)
    for s, view in enumerate(views):
        if view.codes.min() < 0 or view.codes.max() >= n_codes:
            raise FitError(f"source {view.name} holds a code outside the vocabulary of {n_codes} codes")
        held[s, view.codes] = True
    missing = np.flatnonzero(~held.any(axis=0))
    if missing.size:
        shown = ", ".join(f"row {i}" if names is None else names[i] for i in missing[:5])
        shown += " ..." if missing.size > 5 else ""
        raise FitError(
            f"{missing.size} of {n_codes} codes are in no source: {shown}",
            why="a code without data has no place in the embedding",
            do="leave these codes out of the vocabulary",
        )
    overlap = held.astype(np.float64) @ held.T.astype(np.float64)
    count, part = connected_components(overlap, directed=False)
    if count > 1:
        groups = [", ".join(v.name for v, p in zip(views, part, strict=True) if p == c) for c in range(count)]
        raise FitError(
            "the sources cannot be aligned: no shared code joins " + " with ".join(f"[{g}]" for g in groups),
            why="each source's coordinates are rotated at will, and only shared codes tie them together",
            do="declare codes that mean the same at these sources (anchors), or add a source that holds both",
        )


def align(views: Sequence[View], n_codes: int, dim: int, refinements: int = _REFINEMENTS) -> Alignment:
    """Join the views by Procrustes on their leading axes.

    The view with most codes comes first, then always the one that shares most codes with those joined. Where
    fewer codes are shared than there are dimensions, the directions that they leave open map to zero: a
    guess there would make unrelated codes of two sources look alike.

    Args:
        views: sources in their principal axes, connected through shared codes.
        n_codes: n, the size of the union vocabulary.
        dim: number of leading axes of each view that take part.
        refinements: sweeps of generalised Procrustes after the last view has joined.
    """
    leading = [view.scores[:, :dim] for view in views]
    width = max(axes.shape[1] for axes in leading)
    total, weight = np.zeros((n_codes, width)), np.zeros(n_codes)
    maps: dict[int, Array] = {}
    warnings = []
    for s in _join_order(views, n_codes):
        codes = views[s].codes
        shared = weight[codes] > 0
        if not maps:
            maps[s] = np.eye(leading[s].shape[1], width)
        else:
            target = total[codes[shared]] / weight[codes[shared], None]
            maps[s] = _procrustes(leading[s][shared], target)
            if shared.sum() < dim:
                warnings.append(
                    f"source {views[s].name} is joined to the others by {shared.sum()} shared codes, fewer "
                    f"than the {dim} dimensions: its codes are placed only along the directions these span"
                )
        total[codes] += leading[s] @ maps[s]
        weight[codes] += 1
    for s in [*maps] * (refinements if len(views) > 2 else 0):
        codes = views[s].codes
        others = weight[codes] > 1
        own = leading[s] @ maps[s]
        target = (total[codes] - own)[others] / (weight[codes[others], None] - 1.0)
        maps[s] = _procrustes(leading[s][others], target)
        total[codes] += leading[s] @ maps[s] - own
    return Alignment(
        total / np.maximum(weight, 1.0)[:, None], tuple(maps[s] for s in range(len(views))), tuple(warnings)
    )


def filled_svd(views: Sequence[View], aligned: Alignment, dim: int) -> Array:
    """Leading left singular vectors, times their values, of the views side by side with missing rows filled.

    Returns:
        (n, dim), rows not normalised.

    Raises:
        FitError: the views together have fewer than dim dimensions.
    """
    blocks = []
    for view, onto in zip(views, aligned.maps, strict=True):
        block = np.zeros((len(aligned.common), view.scores.shape[1]))
        block[:, : len(onto)] = aligned.common @ onto.T
        block[view.codes] = view.scores
        blocks.append(block)
    left, singular = _singular_vectors(np.hstack(blocks), dim)
    rank = int(np.sum(singular > singular[0] * _RANK_TOLERANCE))
    if rank < dim:
        raise FitError(
            f"{dim} dimensions are asked for, but the sources span {rank}", do=f"set dim <= {rank}"
        )
    scores = left[:, :dim] * singular[:dim]
    return np.asarray(scores * np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(dim)]))


def choose_exponent(views: Sequence[View], n_codes: int, dim: int) -> float:
    """The column scaling (`View.rescaled`) under which shared codes find themselves best across sources.

    Cross-validation: a fifth of the shared codes is treated as unshared, the sources are aligned through the
    rest, and the mean log rank of a held-out code among all codes of another source is compared. Too few
    shared codes to hold any out: 1, the sources as they are.
    """
    count = np.bincount(np.concatenate([view.codes for view in views]), minlength=n_codes)
    shared = np.flatnonzero(count > 1)
    if len(shared) < 4 * _FOLDS:
        return 1.0
    # Ordered by content, so that the choice does not depend on how codes and sources are numbered.
    size = np.zeros(n_codes)
    for view in views:
        size[view.codes] += view.scores[:, 0] ** 2
    shared = shared[np.argsort(size[shared])]
    parts = _FOLDS if n_codes * dim <= _LARGE else _FEW_FOLDS
    folds = [shared[:: max(1, len(shared) // _MOST_HELD_OUT)][f::_FOLDS] for f in range(parts)]
    losses = [
        sum(_held_out_loss([v.rescaled(exponent) for v in views], fold, n_codes, dim) for fold in folds)
        for exponent in _EXPONENTS
    ]
    return _EXPONENTS[int(np.argmin(losses))]


def unit_rows(matrix: Array) -> Array:
    """Rows divided by their norms; a zero row stays zero."""
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(length > 0.0, length, 1.0))


def _join_order(views: Sequence[View], n_codes: int) -> list[int]:
    todo = sorted(range(len(views)), key=lambda s: -len(views[s].codes))
    joined = np.zeros(n_codes, dtype=bool)
    order = []
    while todo:
        best = max(todo, key=lambda s: int(joined[views[s].codes].sum()))
        joined[views[best].codes] = True
        order.append(best)
        todo.remove(best)
    return order


def _singular_vectors(matrix: Array, count: int) -> tuple[Array, Array]:
    """Left singular vectors and values, descending; of a wide matrix the leading ones alone."""
    if matrix.shape[1] <= _GRAM_FROM or matrix.shape[0] <= matrix.shape[1]:
        left, singular, _ = linalg.svd(matrix, full_matrices=False)
        return np.asarray(left), np.asarray(singular)
    width = matrix.shape[1]
    squares, turn = linalg.eigh(matrix.T @ matrix, subset_by_index=[width - min(count, width), width - 1])
    singular = np.sqrt(np.maximum(squares[::-1], 0.0))
    return np.asarray(matrix @ turn[:, ::-1] / np.maximum(singular, 1e-300)), singular


def _procrustes(source: Array, target: Array) -> Array:
    """The partial isometry T that minimises |source T - target|, zero where the data leave T open."""
    left, singular, right = linalg.svd(source.T @ target, full_matrices=False)
    keep = singular > singular[0] * _RANK_TOLERANCE
    return np.asarray(left[:, keep] @ right[keep])


def _held_out_loss(views: Sequence[View], held_out: Index, n_codes: int, dim: int) -> float:
    """Sum of log ranks of held-out codes between every two views that hold them."""
    hidden = np.zeros(n_codes, dtype=bool)
    hidden[held_out] = True
    apart, size = [], n_codes
    for view in views:
        codes = view.codes.copy()
        hide = hidden[codes]
        codes[hide] = size + np.arange(hide.sum())
        size += int(hide.sum())
        apart.append(View(view.name, codes, view.scores, view.columns))
    maps = align(apart, size, dim, refinements=1 if n_codes * dim > _LARGE else _REFINEMENTS).maps
    placed = [unit_rows(v.scores[:, : len(m)] @ m) for v, m in zip(views, maps, strict=True)]
    loss = 0.0
    for s, one in enumerate(views):
        for t, other in enumerate(views):
            both = np.intersect1d(held_out, np.intersect1d(one.codes, other.codes))
            if s == t or not both.size:
                continue
            row = np.empty(n_codes, dtype=np.intp)
            row[one.codes] = np.arange(len(one.codes))
            query = placed[s][row[both]]
            row[other.codes] = np.arange(len(other.codes))
            cosine = query @ placed[t].T
            right = cosine[np.arange(len(both)), row[both]]
            loss += float(np.log((cosine >= right[:, None]).sum(axis=1)).sum())
    return loss
