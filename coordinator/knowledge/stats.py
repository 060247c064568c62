"""How far knowledge reaches a round's codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.assertions import SIMILAR
from coordinator.knowledge.build import Build
from coordinator.knowledge.systems import canonical

ALL: Final = "all"


@dataclass(frozen=True)
class Coverage:
    """Knowledge of one code system's codes; pairs count whose two codes are both among the given ones.

    Attributes:
        system: prefix, or `all`.
        codes: of the system.
        similar: codes with a similar pair.
        negative: codes with a pair that is known not to be similar.
        related: codes with a related pair.
        any: codes with a pair of any kind.
        mean_degree: similar pairs a code.
        median_degree: of codes with a similar pair.
        most: the most similar pairs of a code.
    """

    system: str
    codes: int
    similar: int
    negative: int
    related: int
    any: int
    mean_degree: float
    median_degree: float
    most: int


def coverage(build: Build, codes: Collection[str]) -> tuple[Coverage, ...]:
    """Coverage of each code system, and of all of them.

    Args:
        build: the knowledge.
        codes: CURIEs of a round, ICD with or without dots.
    """
    # Two spellings of one ICD code are one code.
    distinct = sorted({canonical(code) for code in codes})
    index = pa.array(distinct, pa.string())
    one, other = (pc.index_in(build.pairs[name].combine_chunks(), index) for name in ("code_1", "code_2"))
    both = pc.and_(pc.is_valid(one), pc.is_valid(other))
    rows = build.pairs.filter(both)
    ends = np.stack([a.filter(both).to_numpy(zero_copy_only=False).astype(np.intp) for a in (one, other)])
    is_similar = pc.equal(rows["kind"], SIMILAR).to_numpy().astype(bool)
    label = rows["label"].to_numpy().astype(bool)
    chosen = {"similar": is_similar & label, "negative": is_similar & ~label, "related": ~is_similar & label}
    degree = {
        name: np.bincount(ends[:, kept].ravel(), minlength=len(distinct)) for name, kept in chosen.items()
    }
    places: dict[str, list[int]] = defaultdict(list)
    for place, code in enumerate(distinct):
        places[code.partition(":")[0]].append(place)
    groups = {**dict(sorted(places.items())), ALL: list(range(len(distinct)))}
    return tuple(_coverage(name, np.array(at, dtype=np.intp), degree) for name, at in groups.items())


def _coverage(name: str, at: np.ndarray, degree: dict[str, np.ndarray]) -> Coverage:
    here = {kind: counts[at] for kind, counts in degree.items()}
    similar = here["similar"]
    return Coverage(
        system=name,
        codes=len(at),
        similar=int(np.sum(similar > 0)),
        negative=int(np.sum(here["negative"] > 0)),
        related=int(np.sum(here["related"] > 0)),
        any=int(np.sum(sum(here.values()) > 0)),
        mean_degree=float(similar.mean()) if len(at) else 0.0,
        median_degree=float(np.median(similar[similar > 0])) if np.any(similar > 0) else 0.0,
        most=int(similar.max(initial=0)),
    )
