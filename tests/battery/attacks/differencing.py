"""Differencing: subtract two releases of one site, and see what a few patients moved.

Source: Denning, Denning and Schwartz 1979 (trackers); for releases after changes: US Census Bureau, and the rule of
Statistics Netherlands that consecutive tables must not differ by fewer units than a cell needs (Hundepool et al. 2012,
chapter 5).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from protocol.release import CODE_PATIENTS, decode_release


@dataclass(frozen=True)
class Moved:
    """What differs between two releases of a site.

    Attributes:
        codes: codes that appear or vanish.
        counts: released patient counts of codes that differ, of codes in both.
        vectors: entries of the embedding that differ, of codes in both; all, if its dimension does.
        statistics: summary numbers that differ.
    """

    codes: int
    counts: int
    vectors: int
    statistics: int

    @property
    def total(self) -> int:
        """0 only if the releases say the same."""
        return sum(getattr(self, f.name) for f in fields(self))


def subtract(first: bytes, second: bytes) -> Moved:
    """Compare the released bytes of two releases, as the coordinator could."""
    a, b = decode_release(first), decode_release(second)
    at = {code: i for i, code in enumerate(b.manifest.codes)}
    both = [(i, at[code]) for i, code in enumerate(a.manifest.codes) if code in at]
    i, j = (np.array(side, dtype=np.int64) for side in zip(*both, strict=True))
    one, two = a.views()[0].matrix, b.views()[0].matrix
    same_shape = one.shape[1] == two.shape[1]
    vectors = int((one[i] != two[j]).sum()) if same_shape else one[i].size
    old, new = a.manifest.statistics.model_dump(), b.manifest.statistics.model_dump()
    return Moved(
        codes=len(set(a.manifest.codes) ^ set(b.manifest.codes)),
        counts=int((a.arrays[CODE_PATIENTS][i] != b.arrays[CODE_PATIENTS][j]).sum()),
        vectors=vectors,
        statistics=sum(old[name] != new[name] for name in old),
    )
