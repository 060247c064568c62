"""Saying why: each clue's log odds, the latent clue by site and view, and the known pairs that a fit used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import logsumexp

from coordinator.knowledge.assertions import SIMILAR
from coordinator.knowledge.build import Build
from coordinator.knowledge.relations import RowRelations, row_pairs
from coordinator.linking import NEVER, Linked
from coordinator.mapping import N_ALTERNATIVES, KnownPair
from coordinator.model.factor import Array, Index
from coordinator.reasons import Pairs, Reasons
from coordinator.union import UnionVocabulary
from coordinator.weak_pairs import meaning_by_source

COVERAGE: Final = "coverage"
_LATENT: Final = "latent"


def by_vectors(n_rows: int, pairs: Pairs) -> Reasons:
    """Of a ranking by vectors and known pairs alone: nothing was weighed."""
    none = np.zeros((n_rows, 1 + N_ALTERNATIVES, 0))
    return Reasons((), (), np.zeros(none.shape[:2]), none, none, pairs)


def by_clues(linked: Linked, rows: Index, sources: Sequence[str], pairs: Pairs) -> Reasons:
    """Of a ranking by `rank_linked`.

    Args:
        linked: that it was made from.
        rows: (n_rows, C) its candidates, -1 where there are no more.
        sources: names of the fit's sources.
        pairs: that the fit used.
    """
    clues, score = linked.clues, linked.score
    shape, names = rows.shape, linked.fusion.names
    found = Reasons(
        names,
        (*sources, COVERAGE),
        np.zeros(shape),
        np.zeros((*shape, len(names))),
        np.zeros((*shape, len(sources) + 1)),
        pairs,
    )
    if not score.size:
        return found
    chosen = rows[clues.local]
    held = chosen >= 0
    at = np.where(held, np.searchsorted(clues.standard, chosen), 0)
    rests = np.where(held, np.take_along_axis(score, at, axis=1), -np.inf)
    found.share[clues.local] = np.exp(rests - logsumexp(score, axis=1, keepdims=True))
    allowed = score > NEVER / 2
    for f, (name, weight) in enumerate(zip(names, linked.fusion.weights, strict=True)):
        feature = linked.features[name]
        centred = np.take_along_axis(feature, at, axis=1) - _mean(feature, allowed)
        found.clue[clues.local, :, f] = weight * np.where(held, centred, 0.0)
    parts, mean = meaning_by_source(linked.latent, clues.local, clues.standard, at, allowed)
    weight = dict(zip(names, linked.fusion.weights.tolist(), strict=True))[_LATENT]
    found.source[clues.local] = weight * np.where(held[..., None], parts - mean[:, None], 0.0)
    return found


def pairs_used(
    build: Build, relations: RowRelations, union: UnionVocabulary, rows: Index, *, related: bool
) -> dict[tuple[int, int], tuple[KnownPair, ...]]:
    """The known pairs between each row and its candidates.

    Args:
        build: the knowledge.
        relations: of its rows; similar pairs that these left out, for they contradict each other, are none.
        union: of the fit.
        rows: (n_rows, C) candidates, -1 where there are no more.
        related: whether the fit used related pairs too.
    """
    pair, low, high = row_pairs(build, union)
    if not len(pair):
        return {}
    row, target = np.repeat(np.arange(len(rows)), rows.shape[1]), rows.reshape(-1)
    row, target = row[target >= 0], target[target >= 0]
    n = union.n_rows
    wanted = np.isin(low * n + high, np.minimum(row, target) * n + np.maximum(row, target))
    similar = pc.equal(build.pairs["kind"], SIMILAR).to_numpy().astype(bool)[pair]
    counted = np.asarray(relations.known[low, high]).reshape(-1) != 0
    kept = np.flatnonzero(wanted & np.where(similar, counted, related))
    said = build.pairs.take(pa.array(pair[kept])).to_pylist()
    between: dict[tuple[int, int], list[KnownPair]] = defaultdict(list)
    for one, other, line in zip(low[kept].tolist(), high[kept].tolist(), said, strict=True):
        known = KnownPair(
            left=line["code_1"],
            right=line["code_2"],
            relation=line["kind"] if line["label"] else f"not {line['kind']}",
            weight=line["weight"],
            source="; ".join(line["sources"]),
        )
        between[one, other].append(known)
        between[other, one].append(known)
    return {rows_: tuple(found) for rows_, found in between.items()}


def _mean(feature: Array, allowed: NDArray[np.bool_]) -> Array:
    """(n, 1) mean over the allowed columns; 0 without any."""
    count = np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.sum(feature, axis=1, keepdims=True, where=allowed) / count)
