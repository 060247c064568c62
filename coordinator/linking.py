"""Local codes and their candidate standard codes: what speaks for each pair, and self-training on the pairs that look sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index, Source
from coordinator.ranking import Fusion, csls, profile, profile_likeness, support_ratio
from coordinator.weak_pairs import (
    Latent,
    graph_matching,
    join,
    latent,
    mutual_matches,
    same_meaning,
    soft_matching,
)

_LEAST = 0.3  # match probability from which a pair is a weak anchor
_EARLY_SLACK, _EARLY_LEAST = (
    -2.0,
    0.05,
)  # the same before any alignment: most are wrong, and their errors cancel


@dataclass(frozen=True, eq=False)
class Clues:
    """What is known of local codes and candidates before any alignment.

    Attributes:
        local: (n,) rows without a standard code.
        standard: (m,) rows with one that some site released: the candidates.
        group: (n,) which sources hold each local row, as a number: codes of one group exclude each other.
        known_gap: (k,) differences of log share between sources that hold the same row.
        support: (n,) and (m,) log share of patients.
        fixed: features that need no alignment, name -> (n, m).
    """

    local: Index
    standard: Index
    group: Index
    known_gap: Array
    support: tuple[Array, Array]
    fixed: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Linked:
    """The end of self-training.

    Attributes:
        latent: evidence of every row.
        features: name -> (n, m) for `Fusion`.
        score: (n, m) log odds up to a constant a row, the fusion's.
        joined: (n_rows,) as `weak_pairs.join`: rows that count as one while loadings and noise are learnt.
        pairs: (k, 2) the weak pairs: local row, standard row.
    """

    latent: Latent
    features: Mapping[str, Array]
    score: Array
    joined: Index
    pairs: NDArray[np.intp]


def gather(
    sources: Sequence[Source],
    n_rows: int,
    standard: Index,
    share: Sequence[Array],
    text: NDArray[np.floating] | None = None,
) -> Clues:
    """Clues of every local row and candidate.

    Args:
        sources: of the fit.
        n_rows: of the union vocabulary.
        standard: rows that have a standard code.
        share: for each source the share of its site's patients that have the code of each of its rows,
            above zero: a count that was rounded to nothing counts as half a step.
        text: (n_rows, p) vectors of descriptions, rows of zeros where there is none; None without any.
    """
    held = np.zeros((n_rows, len(sources)), dtype=bool)
    log_share, shape = np.zeros(n_rows), np.zeros((n_rows, profile(sources[0].matrix[:2]).shape[1]))
    gaps = []
    for s, source in enumerate(sources):
        both = held[source.codes].any(axis=1)
        gaps.append(
            np.log(share[s][both]) - log_share[source.codes[both]] / held[source.codes[both]].sum(axis=1)
        )
        held[source.codes, s] = True
        log_share[source.codes] += np.log(share[s])
        shape[source.codes] += profile(source.matrix)
    count = held.sum(axis=1)
    log_share, shape = log_share / np.maximum(count, 1), shape / np.maximum(count, 1)[:, None]
    is_standard = np.zeros(n_rows, dtype=bool)
    is_standard[standard] = True
    local, target = np.flatnonzero(~is_standard), np.flatnonzero(is_standard & (count > 0))
    fixed = {"profile": profile_likeness(shape[local], shape[target])}
    if text is not None:
        words = unit_rows(text.astype(np.float64))
        fixed["text"] = csls(words[local] @ words[target].T)
    group = np.unique(held[local], axis=0, return_inverse=True)[1].reshape(-1)
    return Clues(local, target, group, np.concatenate(gaps), (log_share[local], log_share[target]), fixed)


def self_train(
    sources: Sequence[Source],
    n_rows: int,
    clues: Clues,
    dim: int,
    fusion: Fusion,
    *,
    rounds: int = 6,
    speaks: Sequence[NDArray[np.bool_]] | None = None,
) -> Linked:
    """Match, take sure matches for weak anchors, align again; `rounds` times.

    Where no row is shared, the first matches come from what needs no alignment, improved by graph matching.

    Args:
        sources: of the fit.
        n_rows: of the union vocabulary.
        clues: from `gather`.
        dim: d.
        fusion: weights of the features.
        rounds: 1 for no self-training.
        speaks: as for `fit_two_stage`.

    Raises:
        FitError: no match is sure enough to join two sources.
    """
    held = np.concatenate([source.codes for source in sources])
    shared = len(held) - len(np.unique(held))
    pairs = np.empty((0, 2), dtype=np.intp)
    weights = np.zeros((len(clues.local), len(clues.standard)))
    features = dict(clues.fixed) | {"support": support_ratio(*clues.support, clues.known_gap, weights)}
    if shared < 2 * dim:
        pairs, weights = _matches(_start(sources, clues, features, fusion), clues, _EARLY_SLACK, _EARLY_LEAST)
    for turn in range(rounds):
        joined = join(n_rows, pairs)
        found = latent(sources, joined, dim, speaks)
        features["latent"] = same_meaning(found, clues.local, clues.standard)
        features["support"] = support_ratio(*clues.support, clues.known_gap, weights)
        score = fusion.score(features)
        if turn < rounds - 1:
            pairs, weights = _matches(score, clues)
    return Linked(found, features, score, joined, pairs)


def _start(sources: Sequence[Source], clues: Clues, features: Mapping[str, Array], fusion: Fusion) -> Array:
    """Scores before any alignment, improved by graph matching between the sources of each group and the candidates."""
    weight = dict(zip(fusion.names, fusion.weights, strict=True))
    score = np.asarray(sum(weight.get(name, 0.0) * value for name, value in features.items()))
    place = np.full(max(int(s.codes.max()) for s in sources) + 1, -1)
    place[clues.standard] = np.arange(len(clues.standard))
    hub = max(sources, key=lambda s: int((place[s.codes] >= 0).sum()))
    at_hub = place[hub.codes]
    for g in np.unique(clues.group):
        rows = np.flatnonzero(clues.group == g)
        own = next(s for s in sources if np.isin(clues.local[rows], s.codes).all())
        at = {int(c): i for i, c in enumerate(own.codes)}
        one = own.matrix[[at[int(c)] for c in clues.local[rows]]]
        cells = np.ix_(rows, at_hub[at_hub >= 0])
        score[cells] = graph_matching(one, hub.matrix[at_hub >= 0], score[cells])
    return score


def _matches(
    score: Array, clues: Clues, slack: float = 3.0, least: float = _LEAST
) -> tuple[NDArray[np.intp], Array]:
    """Sure matches, group by group, and their cells as weights."""
    weights, pairs = np.zeros_like(score), []
    for g in np.unique(clues.group):
        rows = np.flatnonzero(clues.group == g)
        cells = mutual_matches(soft_matching(score[rows], slack), least)
        weights[rows[cells[:, 0]], cells[:, 1]] = 1.0
        pairs.append(np.stack([clues.local[rows[cells[:, 0]]], clues.standard[cells[:, 1]]], axis=1))
    return np.concatenate(pairs), weights
