"""What a site may move in the fit.

Write H_i for the sites that released standard code i themselves. A row of the union vocabulary that holds
standard code i gets its vector from

    u_i = (t I + sum_{s in H_i} A_s)^-1 sum_{s in H_i} B_s'x_i^s / sigma_s^2,  A_s = B_s'B_s / sigma_s^2

so that a site which only anchors a code to it ties its own coordinates to the others' and moves nothing else.
Given the loadings the influence of a site outside H_i on u_i is zero, whatever it sent; a site in H_i has the
share A_s of the sum. Rows without such a site, local codes among them, are what their holders say.

A site that alone holds a standard code is bounded by its own past: where its release differs from its last one
by more than a small refresh, the last one's rows stand in until a reviewer accepts the change (`hold`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from coordinator.model import Source
from coordinator.poisoning.agreement import Array, correlation, profiles
from coordinator.union import UnionVocabulary, above_zero, site_of
from protocol.release import CODE_PATIENTS, SourceView, VerifiedRelease, describe, view_arrays


def speaking(union: UnionVocabulary, data: Sequence[Source]) -> list[npt.NDArray[np.bool_]]:
    """For each source, which of its rows say where their codes lie (`fit_two_stage`'s `speaks`).

    A source of a site that released the standard code itself speaks for its row; where no source does, all speak.
    """
    place = {site: s for s, site in enumerate(union.sites)}
    index = {code: i for i, code in enumerate(union.codes)}
    direct = np.zeros((union.n_rows, len(union.sites)), dtype=bool)
    for row, code in union.standard.items():
        if code in index:
            direct[row] = union.holds[index[code]]
    own = [direct[source.codes, place[site_of(source)]] for source in data]
    taken = np.zeros(union.n_rows, dtype=bool)
    for source, mask in zip(data, own, strict=True):
        taken[source.codes[mask]] = True
    return [mask | ~taken[source.codes] for source, mask in zip(data, own, strict=True)]


_FEW_COUNTS = 30  # codes below which a correlation of counts says little
_EQUAL_COUNTS = 0.1  # standard deviation of log counts below which there is nothing to compare


class Drift(NamedTuple):
    """How far a release is from the site's last one.

    Attributes:
        r: correlation of the cosines among all codes of both; 1 for the same release, 0 where they have none in common.
        codes: the codes of both.
        rows: for each of them the correlation of its own cosines.
        new: codes that the last release did not have.
        counts: correlation of the log patient counts of the codes that both releases hold; 1 where they are too few.
    """

    r: float
    codes: tuple[str, ...]
    rows: Array
    counts: float = 1.0
    new: tuple[str, ...] = ()


def drift(now: VerifiedRelease, before: VerifiedRelease) -> Drift:
    """Compare two releases of one site, view by view; the view that moved most counts."""
    before_views = {view.name: view for view in before.views()}
    found: list[Drift] = []
    for view in now.views():
        other = before_views.get(view.name)
        if other is None:
            continue
        codes, i, j = _common(now, view, before, other)
        if len(codes) < 3:
            continue
        one, two = unit(view.matrix[i]), unit(other.matrix[j])
        found.append(Drift(correlation(one, two)[0], codes, profiles(one, two)))
    least = min(found, key=lambda d: d.r) if found else Drift(0.0, (), np.zeros(0))
    new = tuple(sorted(set(now.manifest.codes) - set(before.manifest.codes)))
    return least._replace(counts=_count_correlation(now, before), new=new)


def _count_correlation(now: VerifiedRelease, before: VerifiedRelease) -> float:
    here, there = (dict(zip(r.manifest.codes, r.arrays[CODE_PATIENTS], strict=True)) for r in (now, before))
    common = sorted(here.keys() & there.keys())
    step = now.manifest.policy.margin_rounding
    one, other = (np.log(above_zero([side[c] for c in common], step)) for side in (here, there))
    if len(common) < _FEW_COUNTS or min(one.std(), other.std()) < _EQUAL_COUNTS:
        return 1.0
    return float(np.corrcoef(one, other)[0, 1])


def hold(now: VerifiedRelease, before: VerifiedRelease, codes: Collection[str]) -> VerifiedRelease:
    """The release with the rows of some codes as the site last sent them, turned into the new coordinates.

    The turn is the orthogonal Procrustes map of all codes of both releases (Schoenemann 1966). The manifest
    stays: it says what the site sent, not what was used.
    """
    before_views = {view.name: view for view in before.views()}
    arrays = dict(now.arrays)
    for view in now.views():
        other = before_views.get(view.name)
        if other is None:
            continue
        common, i, j = _common(now, view, before, other)
        if not common:
            continue
        one, two = unit(view.matrix[i]), unit(other.matrix[j])
        left, _, right = np.linalg.svd(two.T @ one, full_matrices=False)
        stands = np.array([code in codes for code in common], dtype=bool)
        matrix = unit(view.matrix)
        matrix[i[stands]] = unit(two[stands] @ (left @ right))
        arrays |= view_arrays(SourceView(view.name, view.rows, matrix.astype(np.float32)))
    return replace(now, arrays=MappingProxyType(arrays))


def without(release: VerifiedRelease, anchors: Collection[str], rows: Collection[str]) -> VerifiedRelease:
    """The release less the anchors of some codes, and less the rows of some codes."""
    codes = release.manifest.codes
    kept = tuple(a for a in release.manifest.anchors if codes[a.row] not in anchors)
    arrays = dict(release.arrays)
    for view in release.views() if rows else ():
        use = np.array([codes[i] not in rows for i in view.rows], dtype=bool)
        arrays |= view_arrays(SourceView(view.name, view.rows[use], view.matrix[use]))
    changes: Mapping[str, object] = {"anchors": kept, "arrays": describe(arrays)}
    return replace(
        release, manifest=release.manifest.model_copy(update=changes), arrays=MappingProxyType(arrays)
    )


def less_codes(release: VerifiedRelease, gone: Collection[str]) -> VerifiedRelease:
    """The release as it would be had the site not sent some codes; its statistics stay what it said."""
    manifest = release.manifest
    kept = [i for i, code in enumerate(manifest.codes) if code not in gone]
    place = {i: k for k, i in enumerate(kept)}
    arrays = dict(release.arrays)
    arrays[CODE_PATIENTS] = arrays[CODE_PATIENTS][kept]
    for view in release.views():
        use = np.array([int(i) in place for i in view.rows], dtype=bool)
        rows = np.array([place[int(i)] for i in view.rows[use]], dtype=view.rows.dtype)
        arrays |= view_arrays(SourceView(view.name, rows, view.matrix[use]))
    changes: Mapping[str, object] = {
        "codes": tuple(manifest.codes[i] for i in kept),
        "anchors": tuple(
            a.model_copy(update={"row": place[a.row]}) for a in manifest.anchors if a.row in place
        ),
        "descriptions": tuple(manifest.descriptions[i] for i in kept) if manifest.descriptions else (),
        "arrays": describe(arrays),
    }
    return replace(release, manifest=manifest.model_copy(update=changes), arrays=MappingProxyType(arrays))


def unit(matrix: npt.NDArray[np.floating]) -> Array:
    """Rows of unit length in double precision; a zero row stays zero."""
    x = matrix.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0.0, length, 1.0))


def _common(
    now: VerifiedRelease, view: SourceView, before: VerifiedRelease, other: SourceView
) -> tuple[tuple[str, ...], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Codes with a row in both views, and their places in each."""
    here = {now.manifest.codes[row]: i for i, row in enumerate(view.rows)}
    there = {before.manifest.codes[row]: j for j, row in enumerate(other.rows)}
    codes = tuple(sorted(here.keys() & there.keys()))
    return (
        codes,
        np.array([here[c] for c in codes], dtype=np.intp),
        np.array([there[c] for c in codes], dtype=np.intp),
    )
