"""What differs between two releases of a site, in words that people can judge. Pure: no file is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protocol.arrays import FloatMatrix
from protocol.messages import ReleaseManifest
from protocol.release import CODE_PATIENTS, Release

NEAR = 0.95
"""Rows whose aligned cosine is below have moved."""


@dataclass(frozen=True)
class Moved:
    """How the vectors of the codes that both releases hold have moved, in one view.

    Attributes:
        view: its name.
        dims: dimensions before and after.
        codes: codes of the view in both releases.
        median: of the aligned cosines; 1 means that nothing moved.
        far: (code, cosine) below `NEAR`, least first.
    """

    view: str
    dims: tuple[int, int]
    codes: int
    median: float
    far: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Difference:
    """A prepared release against the one that was sealed last; each pair is (before, after).

    Attributes:
        sequence: numbers of the two releases; 0 before the first.
        same: whether they are one and the same release.
        bytes: before sealing.
        codes_added: CURIEs that leave for the first time.
        codes_removed: CURIEs that are not in the release any more.
        patients: code -> rounded patient counts, where they differ.
        anchors_added: `local = standard`.
        anchors_removed: the same.
        statistics: summary number -> both, where they differ.
        rules: policy, software and study -> both, where they differ.
        moved: for each view of both.
    """

    sequence: tuple[int, int]
    same: bool
    bytes: tuple[int, int]
    codes_added: tuple[str, ...]
    codes_removed: tuple[str, ...]
    patients: Mapping[str, tuple[int, int]]
    anchors_added: tuple[str, ...]
    anchors_removed: tuple[str, ...]
    statistics: Mapping[str, tuple[float, float]]
    rules: Mapping[str, tuple[Any, Any]]
    moved: tuple[Moved, ...]

    @property
    def first(self) -> bool:
        """Whether nothing was sealed before."""
        return self.sequence[0] == 0

    def short(self) -> str:
        """One sentence."""
        if self.first:
            return "This is the first release of this site: there is nothing to compare it with."
        if self.same:
            return f"This is release {self.sequence[0]}, which was sealed last, byte for byte."
        moved = sum(len(m.far) for m in self.moved)
        return (
            f"Against release {self.sequence[0]}, sealed last: {len(self.codes_added):,} codes more, "
            f"{len(self.codes_removed):,} fewer, {len(self.patients):,} patient counts changed, "
            f"{len(self.anchors_added):,} anchors more, {len(self.anchors_removed):,} fewer, "
            f"{moved:,} vectors moved, {len(self.rules):,} rules changed."
        )

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {"first": self.first} | asdict(self)


def difference(before: Release | None, after: Release, *, sizes: tuple[int, int]) -> Difference:
    """Compare a release with the one before.

    Args:
        before: None if there is none.
        after: the prepared one.
        sizes: bytes of both; 0 for none.
    """
    new = after.manifest
    if before is None:
        names = tuple(new.codes)
        return Difference((0, new.sequence), False, sizes, names, (), {}, _anchors(new), (), {}, {}, ())
    old = before.manifest
    had, has = set(old.codes), set(new.codes)
    counts_old, counts_new = _patients(before), _patients(after)
    both = [code for code in new.codes if code in had]
    anchors_old, anchors_new = _anchors(old), _anchors(new)
    return Difference(
        sequence=(old.sequence, new.sequence),
        same=old.digest == new.digest,
        bytes=sizes,
        codes_added=tuple(c for c in new.codes if c not in had),
        codes_removed=tuple(c for c in old.codes if c not in has),
        patients={c: (counts_old[c], counts_new[c]) for c in both if counts_old[c] != counts_new[c]},
        anchors_added=tuple(a for a in anchors_new if a not in set(anchors_old)),
        anchors_removed=tuple(a for a in anchors_old if a not in set(anchors_new)),
        statistics=_changed(old.statistics.model_dump(), new.statistics.model_dump()),
        rules=_changed(_rules(old), _rules(new)),
        moved=_moved(before, after),
    )


def aligned_cosines(before: FloatMatrix, after: FloatMatrix) -> FloatMatrix:
    """Cosine of each row with itself, after the rotation that brings `before` closest to `after`.

    R = U V' with before' after = U S V' minimises |before R - after| over orthogonal R; the narrower matrix is
    filled up with zeros. Two embeddings of the same counts may differ by such a rotation and mean the same.

    Args:
        before: (m, p).
        after: (m, q), the same codes in the same order.

    Returns:
        (m,); 1 where both rows are zero, 0 where one is.

    Law: 1 for each row if `after` is `before` times an orthogonal matrix.
    Source: Schönemann 1966, the orthogonal Procrustes problem.
    """
    width = max(before.shape[1], after.shape[1])
    a, b = (np.pad(x.astype(np.float64), ((0, 0), (0, width - x.shape[1]))) for x in (before, after))
    left, _, right = np.linalg.svd(a.T @ b)
    a = a @ (left @ right)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    cosines = np.divide((a * b).sum(axis=1), product, out=np.zeros(len(a)), where=product > 0)
    cosines[(norms[0] == 0) & (norms[1] == 0)] = 1.0
    return np.asarray(np.clip(cosines, -1.0, 1.0))


def _moved(before: Release, after: Release) -> tuple[Moved, ...]:
    found = []
    old = {v.name: v for v in before.views()}
    for view in after.views():
        if view.name not in old:
            continue
        past = old[view.name]
        at = {before.manifest.codes[row]: i for i, row in enumerate(past.rows)}
        names = [after.manifest.codes[row] for row in view.rows]
        here = [i for i, name in enumerate(names) if name in at]
        there = [at[names[i]] for i in here]
        cosines = aligned_cosines(past.matrix[there], view.matrix[here])
        order = np.argsort(cosines, kind="stable")
        far = tuple((names[here[i]], round(float(cosines[i]), 4)) for i in order if cosines[i] < NEAR)
        median = float(np.median(cosines)) if len(cosines) else 1.0
        dims = (past.matrix.shape[1], view.matrix.shape[1])
        found.append(Moved(view.name, dims, len(here), round(median, 4), far))
    return tuple(found)


def _patients(release: Release) -> dict[str, int]:
    return dict(zip(release.manifest.codes, release.arrays[CODE_PATIENTS].tolist(), strict=True))


def _anchors(manifest: ReleaseManifest) -> tuple[str, ...]:
    return tuple(f"{manifest.codes[a.row]} = {a.standard}" for a in manifest.anchors)


def _rules(manifest: ReleaseManifest) -> dict[str, Any]:
    """Everything that decides what is released, and by which program."""
    return {
        **manifest.policy.model_dump(),
        "agent_version": manifest.agent_version,
        "agent_digest": manifest.agent_digest,
        "study_digest": manifest.study_digest,
    }


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*after, *(n for n in before if n not in after)]
    return {n: (before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)}
