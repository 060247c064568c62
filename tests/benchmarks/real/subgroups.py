"""Subgroups of claims cohorts by each kind of vectors: do they come back, and do they tell of codes they were not made of?"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD

from site_agent.cohort.own import joined
from site_agent.cohort.subgroups import Labels, Method, subgroups
from tests.benchmarks.real.cohort import FAMILIES, Array, Site

VECTORS = ("one-hot SVD", "own codes alone", "harmonised", "joined")
_MOST, _LEAST_HELD = 1500, 20


def divided(
    site: Site, flag: str, k: int, method: Method, seed: int, *, repeats: int = 10
) -> dict[str, tuple[float, float]]:
    """For each kind of vectors (stability, told) of k subgroups of the patients who have a code of the flag's families.

    Stability is the mean adjusted Rand index of bootstrap samples. Told is what subgroups by the vectors of half of the codes say
    of the other half: bits of mutual information, summed over codes, less that of permuted subgroups.
    """
    rng = np.random.default_rng(seed)
    family = np.array([str(c).startswith(FAMILIES[flag]) for c in site.icd9])
    has = sp.csr_array((site.days > 0).astype(np.float64))
    rows = np.flatnonzero(np.asarray(has[:, family].sum(axis=1)).ravel() > 0)
    rows = np.sort(rng.choice(rows, min(_MOST, len(rows)), replace=False))
    half = rng.random(len(site.codes)) < 0.5
    every, part = _vectors(site, np.ones(len(half), dtype=bool)), _vectors(site, half)
    rows = rows[np.all([v[rows].any(axis=1) for v in part.values()], axis=0)]
    others = has[rows][:, ~half].toarray()
    others = others[:, others.sum(axis=0) >= _LEAST_HELD]
    found = {}
    for name in VECTORS:
        stability = subgroups(every[name][rows], k, method=method, repeats=repeats).rand
        labels = subgroups(part[name][rows], k, method=method, repeats=1).labels
        chance = np.mean([_bits(rng.permutation(labels), others) for _ in range(3)])
        found[name] = (stability, _bits(labels, others) - float(chance))
    return found


def _vectors(site: Site, kept: NDArray[np.bool_]) -> dict[str, Array]:
    both = joined(site.harmonised, site.inside).astype(np.float64)
    reduced = TruncatedSVD(64, random_state=0).fit_transform(site.one_hot(kept))
    return {
        "one-hot SVD": reduced / np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-12),
        "own codes alone": site.vectors(site.inside, kept),
        "harmonised": site.vectors(site.harmonised, kept),
        "joined": site.vectors(both, kept),
    }


def _bits(labels: Labels, has: Array) -> float:
    """Mutual information of the label and each code, summed over codes."""
    groups = np.eye(int(labels.max()) + 1)[labels]
    size, share, both = groups.mean(axis=0)[:, None], has.mean(axis=0)[None], groups.T @ has / len(has)
    total = 0.0
    for joint, chance in ((both, size * share), (size - both, size * (1 - share))):
        total += float((joint * np.log2(np.maximum(joint, 1e-12) / np.maximum(chance, 1e-12))).sum())
    return total
