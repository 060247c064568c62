"""From sources to vectors, clusters and ranked candidates: the study's method on one union vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from coordinator.candidates import Ranking, rank_linked, rank_nearest
from coordinator.decided import Cells
from coordinator.explain import by_clues, by_vectors, pairs_used
from coordinator.knowledge.build import Build
from coordinator.knowledge.decided import with_settled
from coordinator.knowledge.relations import RowRelations, prior_of, relations_of, standard_anchors
from coordinator.linking import Linked, gather, self_train
from coordinator.model import SmileFit, Source, fit_smile
from coordinator.model.choose import choose_clusters
from coordinator.model.factor import Index
from coordinator.model.noise import whiten_sources
from coordinator.model.prior import Membership, anchored_prior
from coordinator.model.rivals import svd_embedding
from coordinator.model.twostage import Means, cluster_means, first_stage
from coordinator.poisoning.influence import speaking
from coordinator.ranking import default_fusion
from coordinator.reasons import Pairs, Reasons
from coordinator.settled import NOTHING_SETTLED, Settled
from coordinator.text_view import NamedCodes
from coordinator.union import UnionVocabulary, patient_shares, site_of, sources
from protocol.release import VerifiedRelease
from protocol.study import StudySpec

Progress = Callable[[str, float], None]
_CANDIDATES = 20
_ROUNDS = 6
MOST_CELLS = 50_000_000  # local codes times standard codes; each takes about 60 bytes


@dataclass(frozen=True, eq=False)
class Supplement:
    """What there is beside the sources.

    Attributes:
        knowledge: pairs of codes (`coordinator knowledge build`).
        names: what the codes are called, as vectors; the variational fit does without.
        settled: what people settled.
    """

    knowledge: Build | None = None
    names: NamedCodes | None = None
    settled: Settled = NOTHING_SETTLED


NOTHING = Supplement()


@dataclass(frozen=True, eq=False)
class Estimate:
    """A fit and the candidates of each of its rows.

    Attributes:
        explain: says why they rank so, which takes about as long as one round of self-training.
    """

    fit: SmileFit
    ranking: Ranking
    explain: Callable[[], Reasons]


def estimate(
    releases: Sequence[VerifiedRelease],
    union: UnionVocabulary,
    study: StudySpec,
    dim: int,
    supplement: Supplement = NOTHING,
    progress: Progress | None = None,
) -> Estimate:
    """Fit the union vocabulary and rank each row's candidates.

    Args:
        releases: the admitted ones.
        union: of them.
        study: `fit` says how.
        dim: latent dimensions.
        supplement: what else is known.
        progress: told the step and the share done.

    Raises:
        FitError: the sites cannot be aligned.
    """
    tell = progress or (lambda _step, _share: None)
    data = sources(releases, union)
    theirs = None if supplement.knowledge is None else relations_of(supplement.knowledge, union)
    # What people settled is a pair like others to the joint fit, but no clue: a mapping's strength is the model's own.
    every = with_settled(supplement.knowledge, supplement.settled)
    relations = relations_of(every, union) if every is not None and supplement.settled else theirs
    known = None if theirs is None else theirs.known
    decided = supplement.settled.cells(union)
    joint, linked = study.fit.method == "variational", None
    if joint:
        fit = _variational(data, union, study, dim, relations, tell)
        ranking = rank_nearest(fit.embedding, _standard(union), row_categories(union, study), known, decided)
    else:
        names = None if supplement.names is None else supplement.names.rows(union)
        # Many products of small matrices: beside other work on two cores, two threads took twenty times as long as one.
        with threadpool_limits(1, user_api="blas"):
            fit, ranking, linked = _two_stage(releases, data, union, study, dim, names, known, decided, tell)

    def explain() -> Reasons:
        pairs: Pairs = {}
        if every is not None and relations is not None:
            pairs = pairs_used(every, relations, union, ranking.rows, related=joint)
        if linked is None:
            return by_vectors(union.n_rows, pairs)
        with threadpool_limits(1, user_api="blas"):
            return by_clues(linked, ranking.rows, [source.name for source in data], pairs)

    return Estimate(fit, ranking, explain)


def row_categories(union: UnionVocabulary, study: StudySpec) -> Index:
    """(n_rows,) the category of each row's codes, numbered; of several, that of the code that sorts last."""
    category = {system.prefix: system.category for system in study.code_systems}
    numbers = {name: number for number, name in enumerate(sorted(set(category.values())))}
    found = np.zeros(union.n_rows, dtype=np.intp)
    for row, code in [*zip(union.row, union.codes, strict=True), *union.standard.items()]:
        found[row] = numbers[category[code.split(":", 1)[0]]]
    return found


def cluster_candidates(union: UnionVocabulary, categories: Index) -> dict[int, list[int]]:
    """Numbers of clusters to choose from: from a third of a category's standard codes to all of them.

    A silhouette has one peak at the synonyms and others at the chapters of medicine; the standard codes tell which
    peak is meant.
    """
    standard = categories[np.fromiter(union.standard, dtype=np.intp, count=len(union.standard))]
    found = {}
    for category in np.unique(categories):
        size, count = int(np.sum(categories == category)), max(int(np.sum(standard == category)), 3)
        grid = np.geomspace(min(count / 3, size), min(count, size), _CANDIDATES)
        found[int(category)] = np.unique(np.round(grid).astype(int)).tolist()
    return found


def _two_stage(
    releases: Sequence[VerifiedRelease],
    data: Sequence[Source],
    union: UnionVocabulary,
    study: StudySpec,
    dim: int,
    names: NDArray[np.float64] | None,
    known: sp.csr_array | None,
    decided: Cells,
    tell: Progress,
) -> tuple[SmileFit, Ranking, Linked | None]:
    """Latent means of self-trained loadings, their clusters, and candidates by all clues, or by vectors where cells are too many.

    Each local code joins the cluster of its first candidate: more speaks for that than its latent vector.
    """
    heard, categories = speaking(union, data), row_categories(union, study)
    joins, linked, standard = None, None, _standard(union)
    if 0 < (union.n_rows - len(standard)) * len(standard) <= MOST_CELLS:
        clues = gather(
            data,
            union.n_rows,
            standard,
            patient_shares(releases, union, data),
            names,
            sites=[union.sites.index(site_of(source)) for source in data],
            categories=categories,
            known=known,
            speaks=heard,
            decided=decided,
        )
        linked = self_train(
            data,
            union.n_rows,
            clues,
            dim,
            default_fusion(clues.names),
            speaks=heard,
            rounds=_ROUNDS if study.fit.weak_pairs else 1,
            progress=tell,
        )
        found = linked.latent
        means = Means(found.vectors(), found.noise, found.bound, found.warnings)
        ranking = rank_linked(linked, means.embedding, standard, categories)
        first = ranking.rows[:, 0]
        joins = np.where(first >= 0, first, np.arange(union.n_rows))
    else:
        means = first_stage(data, n_codes=union.n_rows, dim=dim, speaks=heard, progress=tell)
        ranking = rank_nearest(means.embedding, standard, categories, known, decided)
    fit = cluster_means(
        means,
        n_clusters=min(study.fit.clusters, union.n_rows) or None,
        categories=categories,
        candidates=cluster_candidates(union, categories),
        joins=joins,
        seed=study.fit.seed,
        progress=tell,
    )
    return fit, ranking, linked


def _standard(union: UnionVocabulary) -> Index:
    return np.array(sorted(union.standard), dtype=np.intp)


def _variational(
    data: Sequence[Source],
    union: UnionVocabulary,
    study: StudySpec,
    dim: int,
    relations: RowRelations | None,
    tell: Progress,
) -> SmileFit:
    """The joint fit, with the pairs and the prior that knowledge gives."""
    most, seed, categories = study.fit.iterations, study.fit.seed, row_categories(union, study)
    given = min(study.fit.clusters, union.n_rows) or None
    white = whiten_sources(data, union.n_rows, dim)
    prior = None
    if given is None:
        chosen = choose_clusters(
            svd_embedding(white, union.n_rows, dim),
            categories,
            candidates=cluster_candidates(union, categories),
            seed=seed,
        )
        of_cluster = np.repeat([c.category for c in chosen], [c.n_clusters for c in chosen])
        given = len(of_cluster)
        if relations is None:
            prior = anchored_prior(Membership(np.full(union.n_rows, -1), categories, of_cluster))
        else:
            anchors = standard_anchors(union, categories, of_cluster)
            prior = prior_of(relations, categories, of_cluster, anchors=anchors)
    return fit_smile(
        white,
        n_codes=union.n_rows,
        n_clusters=given,
        dim=dim,
        prior=prior,
        similar=None if relations is None else relations.similar,
        related=None if relations is None else relations.related,
        seed=seed,
        iterations=most,
        exponent=1.0,
        progress=lambda i, bound: tell(
            f"iteration {i + 1}, bound {bound:,.1f}", min((i + 1) / (3 * most), 1.0)
        ),
    )
