"""Composition: verified releases -> fit -> mapping set; and the fit's file between `fit` and `publish`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from coordinator.mapping import MappingSet, make_mappings
from coordinator.model import SmileFit, fit_smile
from coordinator.union import UnionVocabulary, build_union, sources
from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import FitError, RoundError
from protocol.files import write_atomic
from protocol.release import VerifiedRelease
from protocol.study import StudySpec


@dataclass(frozen=True)
class Harmonized:
    """A fit and what was made of it."""

    union: UnionVocabulary
    fit: SmileFit
    mappings: MappingSet
    n_clusters: int


def fit_dim(releases: Sequence[VerifiedRelease], study: StudySpec) -> int:
    """The study's latent dimension, or the smallest dimension that a site released."""
    smallest = min(v.matrix.shape[1] for r in releases for v in r.views())
    return min(study.fit.dim or smallest, smallest)


def fit_releases(
    releases: Sequence[VerifiedRelease],
    study: StudySpec,
    progress: Callable[[int, float], None] | None = None,
) -> Harmonized:
    """Fit SMILE to the releases and map every code.

    The number of clusters is the study's, or the number of standard codes that
    the releases hold or anchor to: the codes that clusters are to be named by.

    Raises:
        FitError: sites without a link, or no standard code at all.
    """
    union = build_union(releases, standard=study.standard)
    if not union.standard:
        raise FitError(
            f"No release holds or names a code of the standard system {study.standard}",
            do="Name another standard in the study, or have the sites anchor codes to it",
        )
    n_clusters = min(study.fit.clusters or len(union.standard), union.n_rows)
    fit = fit_smile(
        sources(releases, union),
        n_codes=union.n_rows,
        n_clusters=n_clusters,
        dim=fit_dim(releases, study),
        seed=study.fit.seed,
        iterations=study.fit.iterations,
        progress=progress,
    )
    return Harmonized(union, fit, make_mappings(union, fit), n_clusters)


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
        "shape": list(fit.responsibilities.shape),
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
        noise=np.array(facts["noise"]),
        responsibilities=responsibilities,
        warnings=tuple(facts["warnings"]),
    )
    union = build_union(releases, standard=study.standard)
    return Harmonized(union, fit, make_mappings(union, fit), facts["n_clusters"])
