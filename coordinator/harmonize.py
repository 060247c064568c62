"""Composition: verified releases -> fit -> mapping set; and the fit's file between `fit` and `publish`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from coordinator.calibration import FOLDS, UNKNOWN, Calibration, calibrate
from coordinator.mapping import MappingSet, make_mappings, with_probability
from coordinator.model import SmileFit, fit_smile
from coordinator.model.choose import choose_clusters
from coordinator.model.factor import Index
from coordinator.model.noise import whiten_sources
from coordinator.model.prior import Membership, anchored_prior
from coordinator.model.rivals import svd_embedding
from coordinator.model.twostage import fit_two_stage
from coordinator.poisoning.influence import speaking
from coordinator.poisoning.screen import screen
from coordinator.poisoning.verdict import Screening, screening_from
from coordinator.union import UnionVocabulary, build_union, sources
from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import FitError, RoundError
from protocol.files import write_atomic
from protocol.release import TEXT, VerifiedRelease
from protocol.study import StudySpec

Progress = Callable[[str, float], None]
_CANDIDATES = 20


@dataclass(frozen=True)
class Harmonized:
    """A fit and what was made of it."""

    union: UnionVocabulary
    fit: SmileFit
    mappings: MappingSet
    calibration: Calibration
    n_clusters: int
    screening: Screening = field(default_factory=Screening)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the result should know, in sentences."""
        few = "There were too few anchors to learn how often a mapping is right: each probability is 0.5"
        return (*self.union.warnings, *self.fit.warnings, *(() if self.calibration.n else (few,)))


def fit_dim(releases: Sequence[VerifiedRelease], study: StudySpec) -> int:
    """The study's latent dimension, or three fifths of the smallest dimension that a site released.

    A code that one site alone holds tells signal from noise only where that site has more columns than the
    latent space has dimensions.
    """
    smallest = int(min(v.matrix.shape[1] for r in releases for v in r.views() if v.name != TEXT))
    return max(2, min(study.fit.dim or round(0.6 * smallest), smallest))


def fit_releases(
    releases: Sequence[VerifiedRelease],
    study: StudySpec,
    progress: Progress | None = None,
    *,
    earlier: Sequence[VerifiedRelease] = (),
    accepted: Mapping[str, str] | None = None,
) -> Harmonized:
    """Check the releases, fit SMILE to those that pass, map every code, and learn how often mappings are right.

    The number of clusters is the study's, or chosen for each category of code
    systems (`choose.choose_clusters`).

    Args:
        releases: all of the round.
        study: says how to fit, and how many sites must remain.
        progress: told the step and the share done.
        earlier: each site's last release that was used as it was, for the checks.
        accepted: site -> why its release is to be used in spite of the checks.

    Raises:
        FitError: too few releases pass the checks, sites without a link, or no standard code at all.
    """
    tell = progress or (lambda _step, _share: None)
    tell("checking each release beside the others", 0.0)
    screening = screen(releases, standard=study.standard, earlier=earlier, accepted=accepted)
    _check_enough(screening, len(releases), study)
    releases = screening.admitted(releases, earlier)
    union = _union(releases, study, screening)
    if not union.standard:
        raise FitError(
            f"No release holds or names a code of the standard system {study.standard}",
            do="Name another standard in the study, or have the sites anchor codes to it",
        )
    dim = fit_dim(releases, study)
    fit = _fit(releases, union, study, dim, lambda step, share: tell(step, share / 2))
    mappings = make_mappings(union, fit)
    folds = 0

    def again(fewer: Sequence[VerifiedRelease]) -> MappingSet:
        nonlocal folds
        tell(f"hiding anchors, fold {folds + 1} of {FOLDS}", 0.5 + 0.5 * folds / FOLDS)
        folds += 1
        other = _union(fewer, study, screening)
        return make_mappings(other, _fit(fewer, other, study, dim))

    calibration = _calibrated(releases, again, study)
    probable = with_probability(mappings, calibration.probability)
    return Harmonized(union, fit, probable, calibration, len(fit.centers), screening)


def _union(releases: Sequence[VerifiedRelease], study: StudySpec, screening: Screening) -> UnionVocabulary:
    return build_union(releases, standard=study.standard, reviewed=screening.reviewed)


def _check_enough(screening: Screening, n_releases: int, study: StudySpec) -> None:
    """Return only if the study's minimum of sites is left after the checks.

    Without a rejected site nothing is refused here: how many releases a round needs is the round's business.
    """
    out = [v for v in screening.sites if v.left_out]
    for verdict in out:
        if verdict.pillar:
            raise FitError(
                f"Site {verdict.site} alone holds most standard codes, and its release did not pass the checks",
                why=" ".join(verdict.reasons),
                do="The last version stands; ask the site what changed, or use its release with --accept-site and your reason",
            )
    if out and n_releases - len(out) < study.minimum_sites:
        raise FitError(
            f"{len(out)} of {n_releases} releases did not pass the checks, and the study needs {study.minimum_sites} sites",
            why="; ".join(f"{v.site}: {' '.join(v.reasons)}" for v in out),
            do="Ask these sites what changed; --accept-site uses a release in spite of the checks, with your reason",
        )


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


def _fit(
    releases: Sequence[VerifiedRelease],
    union: UnionVocabulary,
    study: StudySpec,
    dim: int,
    progress: Progress | None = None,
) -> SmileFit:
    """The study's method on one union vocabulary."""
    data, seed, tell = sources(releases, union), study.fit.seed, progress or (lambda _step, _share: None)
    categories = row_categories(union, study)
    given = min(study.fit.clusters, union.n_rows) or None
    if study.fit.method == "two-stage":
        return fit_two_stage(
            data,
            n_codes=union.n_rows,
            n_clusters=given,
            dim=dim,
            categories=categories,
            candidates=cluster_candidates(union, categories),
            speaks=speaking(union, data),
            seed=seed,
            progress=tell,
        )
    most = study.fit.iterations
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
        prior = anchored_prior(Membership(np.full(union.n_rows, -1), categories, of_cluster))
    return fit_smile(
        white,
        n_codes=union.n_rows,
        n_clusters=given,
        dim=dim,
        prior=prior,
        seed=seed,
        iterations=most,
        exponent=1.0,
        progress=lambda i, _bound: tell(f"iteration {i + 1}", min((i + 1) / (3 * most), 1.0)),
    )


def _calibrated(
    releases: Sequence[VerifiedRelease],
    again: Callable[[Sequence[VerifiedRelease]], MappingSet],
    study: StudySpec,
) -> Calibration:
    """The calibration, or none where the sites hang together by too few anchors to hide any."""
    try:
        return calibrate(releases, again, standard=study.standard, seed=study.fit.seed)
    except FitError:
        return UNKNOWN


def save_fit(path: Path, harmonized: Harmonized, releases: Sequence[VerifiedRelease]) -> None:
    """Keep a fit beside the digests of the releases that it was made from."""
    fit = harmonized.fit
    facts = {
        "releases": [r.manifest.digest for r in releases],
        "kappa": fit.kappa,
        "history": list(fit.history),
        "warnings": list(fit.warnings),
        "noise": [float(v) for v in fit.noise],
        "n_clusters": harmonized.n_clusters,
        "calibration": asdict(harmonized.calibration),
        "shape": list(fit.responsibilities.shape),
        "screening": harmonized.screening.facts(),
    }
    arrays = {
        "embedding": fit.embedding,
        "centers": fit.centers,
        "labels": np.asarray(fit.labels, dtype=np.int64),
        "posterior": fit.posterior,
        "relatedness": fit.relatedness,
        "responsibilities/data": fit.responsibilities.data,
        "responsibilities/indices": np.asarray(fit.responsibilities.indices, dtype=np.int64),
        "responsibilities/indptr": np.asarray(fit.responsibilities.indptr, dtype=np.int64),
    }
    write_atomic(path, encode_arrays(arrays, {"facts": json.dumps(facts)}))


def load_fit(path: Path, releases: Sequence[VerifiedRelease], study: StudySpec) -> Harmonized:
    """The saved fit of exactly these releases.

    Raises:
        RoundError: there is none, or it was made from other releases.
    """
    if not path.exists():
        raise RoundError("The round has not been fitted", do="Run coordinator fit first")
    arrays, metadata = decode_arrays(path.read_bytes())
    facts = json.loads(metadata["facts"])
    if facts["releases"] != [r.manifest.digest for r in releases]:
        raise RoundError(
            "The fit was made from other releases than the round holds now", do="Run coordinator fit again"
        )
    responsibilities = sp.csr_array(
        tuple(arrays[f"responsibilities/{part}"] for part in ("data", "indices", "indptr")),
        shape=facts["shape"],
    )
    fit = SmileFit(
        embedding=arrays["embedding"],
        centers=arrays["centers"],
        labels=arrays["labels"],
        posterior=arrays["posterior"],
        kappa=facts["kappa"],
        relatedness=arrays["relatedness"],
        history=tuple(facts["history"]),
        noise=tuple(facts["noise"]),
        responsibilities=responsibilities,
        warnings=tuple(facts["warnings"]),
    )
    screening = screening_from(facts["screening"])
    union, calibration = (
        _union(screening.admitted(releases), study, screening),
        Calibration(**facts["calibration"]),
    )
    mappings = with_probability(make_mappings(union, fit), calibration.probability)
    return Harmonized(union, fit, mappings, calibration, facts["n_clusters"], screening)


def load_screening(path: Path) -> Screening | None:
    """What the checks said of a round's releases when it was fitted; None if it was not."""
    if not path.exists():
        return None
    return screening_from(json.loads(decode_arrays(path.read_bytes())[1]["facts"])["screening"])
