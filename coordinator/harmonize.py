"""Composition: verified releases -> fit -> mapping set; and the fit's file between `fit` and `publish`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coordinator.background import NOTHING, Background
from coordinator.calibration import FOLDS, UNKNOWN, Calibration, calibrate, calibration_from
from coordinator.candidates import Ranking
from coordinator.estimate import Progress, estimate
from coordinator.knowledge.ancestry import kinship
from coordinator.knowledge.build import Build
from coordinator.mapping import Kinship, MappingSet, make_mappings, with_kinship, with_probability
from coordinator.model import SmileFit
from coordinator.naming import name_codes, naming_of
from coordinator.poisoning.screen import screen
from coordinator.poisoning.verdict import Screening, screening_from
from coordinator.reasons import Reasons, pack_reasons, unpack_reasons
from coordinator.recogniser.audit import audit_alignment
from coordinator.recogniser.verdict import Audit, audit_from
from coordinator.settled import anchored_codes, without_anchors
from coordinator.union import UnionVocabulary, build_union, sources, view_of
from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import FitError, RoundError
from protocol.files import write_atomic
from protocol.messages import BackgroundSource
from protocol.release import COOCCURRENCE, VerifiedRelease
from protocol.study import StudySpec


@dataclass(frozen=True)
class Harmonized:
    """A fit and what was made of it.

    Attributes:
        overruled: anchors of sites (code, standard code) that were not used, since reviewers settled otherwise.
        audit: how far a vector tells its site, before and after.
    """

    union: UnionVocabulary
    fit: SmileFit
    ranking: Ranking
    reasons: Reasons
    names: Mapping[str, str]
    kinship: Mapping[tuple[str, str], Kinship]
    mappings: MappingSet
    calibration: Calibration
    n_clusters: int
    screening: Screening = field(default_factory=Screening)
    background: tuple[BackgroundSource, ...] = ()
    overruled: tuple[tuple[str, str], ...] = ()
    audit: Audit = field(default_factory=Audit)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the result should know, in sentences."""
        few = "There were too few anchors to learn how often a mapping is right: each probability is 0.5"
        over = f"{len(self.overruled)} anchors of sites were not used: reviewers settled otherwise"
        return (
            *self.union.warnings,
            *self.fit.warnings,
            *((over,) if self.overruled else ()),
            *(() if self.calibration.n else (few,)),
        )


def fit_dim(releases: Sequence[VerifiedRelease], study: StudySpec) -> int:
    """The study's latent dimension, or three fifths of the smallest dimension of a site's co-occurrence view.

    A code that one site alone holds tells signal from noise only where that site has more columns than the
    latent space has dimensions.
    """
    # Every code of another view is in this one too, so a narrow view explains no code by itself.
    smallest = int(min(v.matrix.shape[1] for r in releases for v in r.views() if v.name == COOCCURRENCE))
    return max(2, min(study.fit.dim or round(0.6 * smallest), smallest))


def fit_releases(
    releases: Sequence[VerifiedRelease],
    study: StudySpec,
    progress: Progress | None = None,
    *,
    earlier: Sequence[VerifiedRelease] = (),
    accepted: Mapping[str, str] | None = None,
    background: Background = NOTHING,
) -> Harmonized:
    """Check the releases, fit SMILE to those that pass, map every code, and learn how often mappings are right.

    The number of clusters is the study's, or that of the standard codes (`model.twostage.cluster_means`).

    Args:
        releases: all of the round.
        study: says how to fit, and how many sites must remain.
        progress: told the step and the share done.
        earlier: each site's last release that was used as it was, for the checks.
        accepted: site -> why its release is to be used in spite of the checks.
        background: knowledge, names of codes, and what people settled, beside the releases.

    Raises:
        FitError: too few releases pass the checks, sites without a link, or no standard code at all.
    """
    tell = progress or (lambda _step, _share: None)
    tell("checking each release beside the others", 0.0)
    screening = screen(releases, standard=study.standard, earlier=earlier, accepted=accepted)
    _check_enough(screening, len(releases), study)
    releases = screening.admitted(releases, earlier)
    overruled = background.settled.overruled(releases)
    releases = without_anchors(releases, overruled)
    union = _union(releases, study, screening)
    if not union.standard:
        raise FitError(
            f"No release holds or names a code of the standard system {study.standard}",
            do="Name another standard in the study, or have the sites anchor codes to it",
        )
    dim = fit_dim(releases, study)
    tell("encoding names of codes", 0.0)
    supplement = background.supplement(releases, study)
    found = estimate(releases, union, study, dim, supplement, lambda step, share: tell(step, share / 2))
    fit, ranking, reasons = found.fit, found.ranking, found.explain()
    # All that was known of every pair of codes; the folds need as much again.
    del found
    tell("asking vectors for their site", 0.5)
    own = [source for source in sources(releases, union) if view_of(source) == COOCCURRENCE]
    audit = audit_alignment(own, fit.embedding, fit.labels, seed=study.fit.seed)
    names = name_codes(releases, study, background.titles)
    naming = naming_of(study, names)
    mappings = make_mappings(union, fit, ranking, naming=naming, reasons=reasons)
    folds = 0

    def again(fewer: Sequence[VerifiedRelease]) -> MappingSet:
        nonlocal folds
        tell(f"hiding anchors, fold {folds + 1} of {FOLDS}", 0.5 + 0.5 * folds / FOLDS)
        folds += 1
        other = _union(fewer, study, screening)
        # What a reviewer said of a hidden code would give its answer away.
        rest = supplement.settled.without(anchored_codes(releases) - anchored_codes(fewer))
        hidden = estimate(fewer, other, study, dim, replace(supplement, settled=rest))
        return make_mappings(other, hidden.fit, hidden.ranking, naming=naming)

    calibration = _calibrated(releases, again, study)
    known = _kinship(mappings, background.knowledge)
    probable = with_kinship(with_probability(mappings, calibration.probability), known)
    return Harmonized(
        union,
        fit,
        ranking,
        reasons,
        names,
        known,
        probable,
        calibration,
        len(fit.centers),
        screening,
        background.used(supplement),
        overruled,
        audit,
    )


def _kinship(mappings: MappingSet, knowledge: Build | None) -> dict[tuple[str, str], Kinship]:
    """What is known of the standard codes that the fit found."""
    if knowledge is None:
        return {}
    found = ((row.code, row.standard_code) for row in mappings.rows if row.standard_code and not row.given)
    return kinship(knowledge.links, found)


def _union(releases: Sequence[VerifiedRelease], study: StudySpec, screening: Screening) -> UnionVocabulary:
    return build_union(
        releases,
        standard=study.standard,
        reviewed=screening.reviewed,
        require_links=study.fit.method != "two-stage" or not study.fit.weak_pairs,
    )


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
        "background": [source.model_dump() for source in harmonized.background],
        "overruled": [list(pair) for pair in harmonized.overruled],
        "audit": asdict(harmonized.audit),
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
        "ranking/rows": harmonized.ranking.rows,
        "ranking/strength": harmonized.ranking.strength,
        "names": _as_bytes(harmonized.names),
        "kinship": _as_bytes([[*pair, kin] for pair, kin in harmonized.kinship.items()]),
        **{f"reasons/{name}": array for name, array in pack_reasons(harmonized.reasons).items()},
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
    overruled = [(code, target) for code, target in facts["overruled"]]
    union, calibration = (
        _union(without_anchors(screening.admitted(releases), overruled), study, screening),
        calibration_from(facts["calibration"]),
    )
    ranking = Ranking(arrays["ranking/rows"], arrays["ranking/strength"])
    names = json.loads(arrays["names"].tobytes())
    reasons = unpack_reasons(
        {name.removeprefix("reasons/"): a for name, a in arrays.items() if name.startswith("reasons/")}
    )
    found = make_mappings(union, fit, ranking, naming=naming_of(study, names), reasons=reasons)
    known = {(code, target): kin for code, target, kin in json.loads(arrays["kinship"].tobytes())}
    mappings = with_kinship(with_probability(found, calibration.probability), known)
    background = tuple(BackgroundSource.model_validate(source) for source in facts["background"])
    return Harmonized(
        union,
        fit,
        ranking,
        reasons,
        names,
        known,
        mappings,
        calibration,
        facts["n_clusters"],
        screening,
        background,
        tuple(overruled),
        audit_from(facts["audit"]),
    )


def _as_bytes(value: object) -> npt.NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def load_screening(path: Path) -> Screening | None:
    """What the checks said of a round's releases when it was fitted; None if it was not."""
    if not path.exists():
        return None
    return screening_from(json.loads(decode_arrays(path.read_bytes())[1]["facts"])["screening"])
