"""Local codes and their candidate standard codes: what speaks for each pair, and self-training on the pairs that look sure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.decided import NO_CELLS, Cells, places
from coordinator.model.factor import Array, Index, Source
from coordinator.ranking import (
    N_PROFILE,
    Fusion,
    profile,
    profile_likeness,
    support_ratio,
    text_likeness,
)
from coordinator.union import view_of
from coordinator.weak_pairs import (
    Latent,
    graph_matching,
    join,
    latent,
    mutual_matches,
    same_meaning,
    soft_matching,
)
from protocol.release import COOCCURRENCE

_PROFILED = ("", COOCCURRENCE)  # cosines of an ontology, or of some other view, are spread otherwise
NEVER = -1e4  # score of a pair that cannot be
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
        group: (n,) which sites hold each local row, as a number: codes of one group exclude each other.
        links: for each group, by how many rows the least linked of its sites is tied to the others.
        known_gap: for each group (k,) differences of log share between its sites' codes and the same codes elsewhere.
        support: (n,) and (m,) log share of patients.
        fixed: features that need no alignment, name -> (n, m).
        apart: (n, m) pairs of codes of different categories, which cannot mean the same, and pairs that people settled to
            differ; None where there are none.
        same: (k, 2) places of pairs that people settled to mean the same.
    """

    local: Index
    standard: Index
    group: Index
    links: Index
    known_gap: tuple[Array, ...]
    support: tuple[Array, Array]
    fixed: Mapping[str, Array]
    apart: NDArray[np.bool_] | None = None
    same: Index = field(default_factory=lambda: np.empty((0, 2), np.intp))

    def support_ratio(self, matched: Array) -> Array:
        """(n, m) `ranking.support_ratio` of each group by itself: a site's counts decide nothing of another site's codes."""
        found, (one, other) = np.zeros(matched.shape), self.support
        for g, gaps in enumerate(self.known_gap):
            rows = np.flatnonzero(self.group == g)
            found[rows] = support_ratio(one[rows], other, gaps, matched[rows])
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Of all features that there will be, for `default_fusion`."""
        return ("latent", "support", *self.fixed)

    def score(self, fusion: Fusion, features: Mapping[str, Array]) -> Array:
        """(n, m) the fusion's score; far below any other for pairs that cannot be; pairs settled to be the same gain nothing."""
        found = fusion.score(features)
        if self.apart is not None:
            found[self.apart] = NEVER
        return found


@dataclass(frozen=True, eq=False)
class Linked:
    """The end of self-training.

    Attributes:
        latent: evidence of every row.
        features: name -> (n, m) for `Fusion`.
        score: (n, m) log odds up to a constant a row, the fusion's.
        fusion: that weighed them.
        clues: what it began with.
        joined: (n_rows,) as `weak_pairs.join`: rows that count as one while loadings and noise are learnt.
        pairs: (k, 2) the weak pairs: local row, standard row.
    """

    latent: Latent
    features: Mapping[str, Array]
    score: Array
    fusion: Fusion
    clues: Clues
    joined: Index
    pairs: NDArray[np.intp]


def gather(
    sources: Sequence[Source],
    n_rows: int,
    standard: Index,
    share: Sequence[Array],
    text: NDArray[np.floating] | None = None,
    *,
    sites: Sequence[int] | None = None,
    categories: Index | None = None,
    known: sp.csr_array | None = None,
    speaks: Sequence[NDArray[np.bool_]] | None = None,
    decided: Cells = NO_CELLS,
) -> Clues:
    """Clues of every local row and candidate.

    Law: what a source that does not speak for a candidate says of it changes no feature but its own codes' support.

    Args:
        sources: of the fit.
        n_rows: of the union vocabulary.
        standard: rows that have a standard code.
        share: for each source the share of its site's patients that have the code of each of its rows,
            above zero: a count that was rounded to nothing counts as half a step.
        text: (n_rows, p) vectors of descriptions, rows of zeros where there is none; None without any.
        sites: for each source the number of its site; each has its own without it.
        categories: (n_rows,) what kind of thing each row's codes are; one for all without it.
        known: (n_rows, n_rows) symmetric: how surely two rows' codes are known to mean the same, in (0, 1], or known
            not to, in [-1, 0); None without any.
        speaks: for each source, which of its rows say what their codes are, as for `fit_two_stage`; all without it.
        decided: what people settled.
    """
    sites = range(len(sources)) if sites is None else sites
    heard = [np.ones(len(source.codes), dtype=bool) for source in sources] if speaks is None else speaks
    held = np.zeros((n_rows, max(sites) + 1), dtype=bool)
    said, log_share = np.zeros(held.shape, dtype=bool), np.zeros(held.shape)
    views, shape = np.zeros(n_rows), np.zeros((n_rows, N_PROFILE))
    for s, (source, site) in enumerate(zip(sources, sites, strict=True)):
        held[source.codes, site] = True
        log_share[source.codes, site] = np.log(share[s])
        rows = source.codes[heard[s]]
        said[rows, site] = True
        if not _is_profiled(source):
            continue
        shape[rows] += profile(source.matrix)[heard[s]]
        views[rows] += 1
    count = held.sum(axis=1)
    is_standard = np.zeros(n_rows, dtype=bool)
    is_standard[standard] = True
    local, target = np.flatnonzero(~is_standard & (count > 0)), np.flatnonzero(is_standard & (count > 0))
    shape /= np.maximum(views, 1)[:, None]
    fixed = {"profile": profile_likeness(shape[local], shape[target])}
    if text is not None:
        fixed["text"] = text_likeness(text[local], text[target])
    if known is not None:
        fixed["known"] = known[local][:, target].toarray()
    patterns, group = np.unique(held[local], axis=0, return_inverse=True)
    ties = held[count > 1].sum(axis=0)
    mean_share = (log_share * said).sum(axis=1) / np.maximum(said.sum(axis=1), 1)
    gaps = _gaps(held, said, log_share)
    apart = None if categories is None else categories[local][:, None] != categories[target][None]
    if len(decided.differ) or len(decided.none):
        apart = decided.barred(local, target) | (False if apart is None else apart)
    same = places(decided.same, local, target)
    return Clues(
        local=local,
        standard=target,
        group=group.reshape(-1),
        links=np.array([ties[pattern].min() for pattern in patterns], dtype=np.intp),
        known_gap=tuple(np.concatenate([gaps[s] for s in np.flatnonzero(pattern)]) for pattern in patterns),
        support=(mean_share[local], mean_share[target]),
        fixed=fixed,
        apart=apart,
        same=same if apart is None else same[~apart[same[:, 0], same[:, 1]]],
    )


def _is_profiled(source: Source) -> bool:
    return view_of(source) in _PROFILED


def _gaps(held: NDArray[np.bool_], said: NDArray[np.bool_], log_share: Array) -> list[Array]:
    """For each site, how far the shares of its codes are from their mean at the other sites that speak for them."""
    found = []
    for s in range(held.shape[1]):
        others = said.copy()
        others[:, s] = False
        number = others.sum(axis=1)
        both = held[:, s] & (number > 0)
        found.append(log_share[both, s] - (log_share[both] * others[both]).sum(axis=1) / number[both])
    return found


def self_train(
    sources: Sequence[Source],
    n_rows: int,
    clues: Clues,
    dim: int,
    fusion: Fusion,
    *,
    rounds: int = 6,
    speaks: Sequence[NDArray[np.bool_]] | None = None,
    progress: Callable[[str, float], None] | None = None,
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
        progress: told the step and the share done.

    Raises:
        FitError: no match is sure enough to join two sources.
    """
    tell = progress or (lambda _step, _share: None)
    pairs, weights = _matches(np.zeros((len(clues.local), len(clues.standard))), clues, np.empty(0, np.intp))
    features = dict(clues.fixed)
    bare = np.flatnonzero(clues.links < dim)
    if len(bare) and rounds > 1:
        features["support"] = clues.support_ratio(weights)
        start = _start(sources, clues, features, fusion, bare)
        pairs, weights = _matches(start, clues, bare, _EARLY_SLACK, _EARLY_LEAST)
    for turn in range(rounds):
        tell(f"aligning the sites, round {turn + 1} of {rounds}", 0.6 * turn / rounds)
        joined = join(n_rows, pairs)
        found = latent(sources, joined, dim, speaks)
        features["latent"] = same_meaning(found, clues.local, clues.standard)
        features["support"] = clues.support_ratio(weights)
        score = clues.score(fusion, features)
        if turn < rounds - 1:
            pairs, weights = _matches(score, clues, np.arange(len(clues.links)))
    return Linked(found, features, score, fusion, clues, joined, pairs)


def _start(
    sources: Sequence[Source], clues: Clues, features: Mapping[str, Array], fusion: Fusion, groups: Index
) -> Array:
    """Scores before any alignment, improved by graph matching between the sources of these groups and the candidates."""
    known = [i for i, name in enumerate(fusion.names) if name in features]
    early = Fusion(tuple(fusion.names[i] for i in known), fusion.weights[known])
    score = clues.score(early, features)
    place = np.full(max(int(s.codes.max()) for s in sources) + 1, -1)
    place[clues.standard] = np.arange(len(clues.standard))
    sources = [source for source in sources if _is_profiled(source)]
    hub = max(sources, key=lambda s: int((place[s.codes] >= 0).sum()))
    at_hub = place[hub.codes]
    for g in groups:
        rows = np.flatnonzero(clues.group == g)
        own = max(sources, key=lambda s: int(np.isin(clues.local[rows], s.codes).sum()))
        at = {int(c): i for i, c in enumerate(own.codes)}
        rows = rows[[int(c) in at for c in clues.local[rows]]]
        one = own.matrix[[at[int(c)] for c in clues.local[rows]]]
        cells = np.ix_(rows, at_hub[at_hub >= 0])
        score[cells] = graph_matching(one, hub.matrix[at_hub >= 0], score[cells])
    if clues.apart is not None:
        score[clues.apart] = NEVER
    return score


def _matches(
    score: Array, clues: Clues, groups: Index, slack: float = 3.0, least: float = _LEAST
) -> tuple[NDArray[np.intp], Array]:
    """Sure matches of these groups, group by group, and their cells as weights; what people settled is a match of its own."""
    row, column = clues.same.T
    weights, pairs = np.zeros_like(score), [np.stack([clues.local[row], clues.standard[column]], axis=1)]
    weights[row, column] = 1.0
    for g in groups:
        rows = np.setdiff1d(np.flatnonzero(clues.group == g), row)
        cells = mutual_matches(soft_matching(score[rows], slack), least)
        weights[rows[cells[:, 0]], cells[:, 1]] = 1.0
        pairs.append(np.stack([clues.local[rows[cells[:, 0]]], clues.standard[cells[:, 1]]], axis=1))
    return np.concatenate(pairs), weights
