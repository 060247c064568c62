"""Two halves of the sites, so that what one half of the patients says is checked on the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.graph.structure import unit_rows
from protocol.release import COOCCURRENCE, VerifiedRelease

Array = NDArray[np.float64]


def site_halves(
    releases: Sequence[VerifiedRelease], codes: Sequence[str], rows: NDArray[np.int64]
) -> tuple[Array, Array] | None:
    """Co-occurrence vectors of the codes by the patients of some sites, and by those of the others.

    A half's vectors are those of its sites side by side: their inner products are sums of the sites', so that the sites' axes,
    which have nothing to do with one another, need not be aligned. Sites are dealt out so that many codes are in both halves.

    Args:
        releases: of the fit.
        codes: (n,) of the fit.
        rows: (n,) of the fit's union vocabulary: codes that an anchor joins share one, and so a vector.

    Returns:
        (n, p1) and (n, p2), unit rows, zero where a half has no vector of the code; None of a single site. With
        `selection.select_neighbours` they choose each code's lambda.
    """
    place = dict(zip(codes, rows.tolist(), strict=True))
    size = int(rows.max()) + 1 if rows.size else 0
    if len(releases) < 2:
        return None
    one, two = halves_of([_vectors(r, place, size) for r in sorted(releases, key=lambda r: r.manifest.site)])
    return one[rows], two[rows]


def halves_of(sites: Sequence[Array]) -> tuple[Array, Array]:
    """Sites dealt into two halves, and the vectors of each half's sites side by side.

    Args:
        sites: (n, p_s) unit or zero rows of the same codes, of at least two sites.

    Returns:
        (n, p1) and (n, p2), unit or zero rows.
    """
    one, two = _dealt(sorted(sites, key=lambda site: -np.count_nonzero(site.any(axis=1))))
    return unit_rows(np.hstack(one)), unit_rows(np.hstack(two))


def _dealt(sites: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    """Each site where it brings most codes into both halves; equal ones to the half of fewer sites."""
    halves: tuple[list[Array], list[Array]] = ([], [])
    known = [np.zeros(len(sites[0]), dtype=bool) for _ in halves]
    for site in sites:
        here = site.any(axis=1)
        gain = [np.count_nonzero(here & known[1 - h] & ~known[h]) for h in (0, 1)]
        h = max((0, 1), key=lambda h: (gain[h], -len(halves[h]), -h))
        halves[h].append(site)
        known[h] |= here
    return halves


def _vectors(release: VerifiedRelease, place: dict[str, int], size: int) -> Array:
    """(size, p) unit mean of the site's vectors at each row of the union; zero where it has none."""
    view = next(v for v in release.views() if v.name == COOCCURRENCE)
    at = np.array([place.get(release.manifest.codes[i], -1) for i in view.rows.tolist()], dtype=np.intp)
    here = np.flatnonzero(at >= 0)
    unit = unit_rows(np.asarray(view.matrix, dtype=np.float64)[here])
    onto = sp.csr_array((np.ones(len(here)), (at[here], np.arange(len(here)))), shape=(size, len(here)))
    return unit_rows(np.asarray(onto @ unit))
