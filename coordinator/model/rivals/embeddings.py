"""Embeddings of a union vocabulary by other methods, by the names that tables show.

Each takes sources, n_codes and dim, and returns (n, d) unit rows. It knows which codes are shared, as SMILE
does, and uses the same alignment. None knows pairs or anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.stats import ortho_group

from coordinator.model import alignment
from coordinator.model.factor import Array, Source
from coordinator.model.rivals import ajive, bonmi, slide
from coordinator.model.rivals.imputation import fill, imputed_blocks, leading_axes
from coordinator.model.rivals.spectral import rotation, truncated_svd
from protocol.errors import FitError


class Embedding(Protocol):
    """A rival: sources to (n, d) unit rows."""

    def __call__(self, sources: Sequence[Source], n_codes: int, dim: int) -> Array:
        """Embed n_codes codes in dim dimensions."""


def svd_embedding(sources: Sequence[Source], n_codes: int, dim: int) -> Array:
    """Unit rows of the truncated SVD of the sources side by side, missing rows filled by Procrustes.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.

    Returns:
        (n, d).

    Raises:
        FitError: as `fit_smile`; or the sources span fewer than d dimensions.
    """
    return _leading(np.hstack(imputed_blocks(sources, n_codes, dim)), dim)


def procrustes_embedding(
    sources: Sequence[Source], n_codes: int, dim: int, *, tolerance: float = 1e-10, most_sweeps: int = 500
) -> Array:
    """Generalised Procrustes analysis: the mean of the sources' d leading axes, rotated to agree.

    Minimises sum_s |X_s T_s - Z_s|^2 over orthogonal T_s and the consensus Z, by rotating one source after
    the other to the mean of those that hold its codes. Sources are scaled to the same mean square row first;
    there is no translation, since rows are directions. Every source is used as it is: nothing is imputed.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.
        tolerance: relative change of the residual at which the sweeps end.
        most_sweeps: the sweeps end here in any case.

    Raises:
        FitError: as `svd_embedding`.

    Source: Gower 1975, equation 20; with missing rows, ten Berge, Kiers and Commandeur 1993.
    """
    scaled = _scaled(sources)
    leading = leading_axes(scaled, n_codes, dim)
    _check_span(leading.common.shape[1], dim)
    maps = list(leading.onto)
    total, weight = np.zeros((n_codes, dim)), np.zeros(n_codes)
    for view, onto in zip(leading.views, maps, strict=True):
        total[view.codes] += view.scores @ onto
        weight[view.codes] += 1.0
    residual = np.inf
    for _ in range(most_sweeps if len(maps) > 1 else 0):
        for s in leading.order:
            view = leading.views[s]
            own = view.scores @ maps[s]
            others = weight[view.codes] > 1.0
            codes = view.codes[others]
            mean = (total[codes] - own[others]) / (weight[codes, None] - 1.0)
            # A row's share in the residual once the consensus is the mean, which itself moves with the row.
            share = 1.0 - 1.0 / weight[codes, None]
            maps[s] = rotation(view.scores[others], share * mean)
            total[view.codes] += view.scores @ maps[s] - own
        before, residual = residual, -float(np.sum(total**2 / weight[:, None]))
        if before - residual <= tolerance * abs(residual):
            break
    return alignment.unit_rows(total / weight[:, None])


def ajive_embedding(
    sources: Sequence[Source],
    n_codes: int,
    dim: int,
    *,
    initial_ranks: Sequence[int] | str | None = None,
    joint_rank: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Array:
    """AJIVE of the imputed sources: joint scores, completed by individual ones.

    The embedding is the d leading principal coordinates of the joint parts side by side. Where fewer than d
    directions are joint, the leading ones of what the sources hold beside them, orthogonal to them, follow.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.
        initial_ranks: signal rank of each source; None for d, "threshold" to choose by Gavish and Donoho.
        joint_rank: None to estimate it by the Wedin and the random-direction bound.
        resamples: number of draws for each bound.
        seed: of the draws.

    Raises:
        FitError: as `svd_embedding`.

    Source: Feng, Jiang, Hannig and Marron 2018.
    """
    leading = leading_axes(sources, n_codes, dim)
    order = list(leading.order)
    imputed = fill(sources, leading)
    blocks = [imputed[s] for s in order]
    if initial_ranks is None:
        ranks = [dim] * len(blocks)
    elif isinstance(initial_ranks, str):
        ranks = [ajive.chosen_rank(block) for block in blocks]
    else:
        ranks = [initial_ranks[s] for s in order]
    ranks = [min(rank, *block.shape) for rank, block in zip(ranks, blocks, strict=True)]
    found = ajive.decompose(blocks, ranks, joint_rank=joint_rank, resamples=resamples, seed=seed)
    together, joint = np.hstack(blocks), found.joint
    within = joint.T @ together
    scores = joint @ truncated_svd(within, dim).scores if joint.size else joint
    if scores.shape[1] < dim:
        rest = truncated_svd(together - joint @ within, dim - scores.shape[1])
        scores = np.hstack([scores, rest.scores])
    _check_span(scores.shape[1], dim)
    return alignment.unit_rows(scores)


def slide_embedding(
    sources: Sequence[Source],
    n_codes: int,
    dim: int,
    *,
    structure: slide.Structure | None = None,
    n_penalties: int = 50,
    folds: int = 2,
    seed: int = 0,
) -> Array:
    """SLIDE of the imputed sources: the d leading principal coordinates of U V'.

    Where the structure has fewer than d components, the leading ones of what it leaves follow.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.
        structure: (S, r) which source loads on which component; None to choose by bi-cross-validation.
        n_penalties: length of the path that candidates come from.
        folds: of rows, and of columns.
        seed: of the rotation that makes columns exchangeable.

    Raises:
        FitError: as `svd_embedding`.

    Source: Gaynanova and Li 2019.
    """
    leading = leading_axes(sources, n_codes, dim)
    order = list(leading.order)
    imputed = fill(sources, leading)
    rng = np.random.default_rng(seed)
    blocks = slide.standardised([_rotated(imputed[s], rng) for s in order])
    if structure is None:
        candidates = slide.candidate_structures(blocks, len(blocks) * dim, n_penalties, 1.0 - 1.0 / folds)
        everything = np.ones((len(blocks), dim), dtype=bool)
        structure = slide.choose_structure(blocks, candidates or [everything], folds)
    else:
        structure = structure[order]
    fitted = slide.fit(blocks, structure)
    small = truncated_svd(fitted.loadings.T, dim)
    scores = fitted.scores @ small.scores
    if scores.shape[1] < dim:
        rest = np.hstack(blocks) - fitted.scores @ fitted.loadings.T
        scores = np.hstack([scores, truncated_svd(rest, dim - scores.shape[1]).scores])
    _check_span(scores.shape[1], dim)
    return alignment.unit_rows(scores)


def bonmi_embedding(sources: Sequence[Source], n_codes: int, dim: int) -> Array:
    """BONMI of the sources' Gram matrices X_s X_s', each scaled to the same mean square row.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.

    Raises:
        FitError: as `svd_embedding`.

    Source: Zhou, Cai and Lu 2023.
    """
    scaled = _scaled(sources)
    leading = leading_axes(scaled, n_codes, dim)
    common = [view.scores @ onto for view, onto in zip(leading.views, leading.onto, strict=True)]
    rows = bonmi.complete([s.matrix for s in scaled], [s.codes for s in scaled], n_codes, dim, common)
    _check_span(int(np.sum(np.linalg.norm(rows, axis=0) > 0.0)), dim)
    return alignment.unit_rows(rows)


EMBEDDINGS: dict[str, Embedding] = {
    "SVD": svd_embedding,
    "AJIVE": ajive_embedding,
    "SLIDE": slide_embedding,
    "BONMI": bonmi_embedding,
    "Procrustes": procrustes_embedding,
}


def _leading(matrix: Array, dim: int) -> Array:
    svd = truncated_svd(matrix, dim)
    _check_span(len(svd.singular), dim)
    return alignment.unit_rows(svd.scores)


def _check_span(rank: int, dim: int) -> None:
    if rank < dim:
        raise FitError(
            f"{dim} dimensions are asked for, but the sources span {rank}", do=f"set dim <= {rank}"
        )


def _scaled(sources: Sequence[Source]) -> list[Source]:
    """Sources whose rows have mean square 1."""
    return [
        Source(s.name, s.codes, s.matrix / (np.sqrt(np.mean(np.sum(s.matrix**2, axis=1))) or 1.0))
        for s in sources
    ]


def _rotated(block: Array, rng: np.random.Generator) -> Array:
    """A block's principal coordinates, rotated at random: the same however its columns were rotated."""
    scores = truncated_svd(block, min(block.shape)).scores
    width = scores.shape[1]
    turn = ortho_group.rvs(width, random_state=rng) if width > 1 else np.ones((1, 1))
    return np.asarray(scores @ turn)
