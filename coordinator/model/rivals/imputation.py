"""What every rival starts from: the sources' leading axes in common coordinates, and the rows a source lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.model import alignment
from coordinator.model.factor import Array, Source, View
from coordinator.model.rivals.spectral import truncated_svd
from protocol.errors import FitError


@dataclass(frozen=True, eq=False)
class Leading:
    """The leading principal axes of the sources, joined by Procrustes.

    Args:
        views: one a source, in the order of the sources, with at most d columns.
        axes: one (p_s, r_s) a source: scores = matrix axes.
        onto: one (r_s, w) partial isometry a source, from its axes to the common coordinates.
        common: (n, w) mean of the aligned axes of the sources that hold the code.
        order: of the sources by content (most codes first, then most in the leading axes), for what depends on
            one: so it does not depend on how sources are numbered.
    """

    views: tuple[View, ...]
    axes: tuple[Array, ...]
    onto: tuple[Array, ...]
    common: Array
    order: tuple[int, ...]


def leading_axes(sources: Sequence[Source], n_codes: int, dim: int) -> Leading:
    """The d leading axes of each source, and the Procrustes maps that join them.

    Raises:
        FitError: no source, a source of zeros, a code in no source, or sources that share no path of codes.
    """
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    views, axes = [], []
    for source in sources:
        svd = truncated_svd(source.matrix, dim)
        if not svd.singular.size:
            raise FitError(f"source {source.name} cannot be used", why="all of its rows are zero")
        views.append(View(source.name, source.codes, svd.scores, source.matrix.shape[1]))
        axes.append(svd.right)
    alignment.check_connected(views, n_codes)
    order = sorted(range(len(views)), key=lambda s: (-len(views[s].codes), -views[s].energy))
    joined = alignment.align([views[s] for s in order], n_codes, dim)
    onto = dict(zip(order, joined.maps, strict=True))
    maps = tuple(onto[s] for s in range(len(views)))
    return Leading(tuple(views), tuple(axes), maps, joined.common, tuple(order))


def imputed_blocks(sources: Sequence[Source], n_codes: int, dim: int) -> list[Array]:
    """Each source with a row for every code: rows that it lacks are filled from the common coordinates.

    Common coordinates go back through the source's Procrustes map and its leading axes, as the SMILE paper
    does for methods that want complete data.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: number of leading axes that take part.

    Returns:
        One (n, p_s) a source, in its own columns.

    Raises:
        FitError: as `leading_axes`.
    """
    return fill(sources, leading_axes(sources, n_codes, dim))


def fill(sources: Sequence[Source], leading: Leading) -> list[Array]:
    """`imputed_blocks`, given the sources' leading axes."""
    n_codes = len(leading.common)
    blocks = []
    for source, axes, onto in zip(sources, leading.axes, leading.onto, strict=True):
        block = np.empty((n_codes, source.matrix.shape[1]))
        absent = np.ones(n_codes, dtype=bool)
        absent[source.codes] = False
        block[source.codes] = source.matrix
        block[absent] = (leading.common[absent] @ onto.T) @ axes.T
        blocks.append(block)
    return blocks
