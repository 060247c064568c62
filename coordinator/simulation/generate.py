"""Simulated sources with known truth.

`simulate_paper` follows section 4 of the SMILE paper; numbers that its text lost are our choice and are the
defaults here (n, d, p, kappa_x, the pairs' intercept and slope). `simulate_sites` is the use that the software
is built for: every site has its own codes, and few are known to be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.model import Relations, Source, vmf
from coordinator.model.factor import Array, Index


@dataclass(frozen=True, eq=False)
class Simulation:
    """Sources, pairs and what is true of them.

    Attributes:
        sources: their rows are rows of `embedding`.
        embedding: (n, d) true u_i.
        centers: (K, d) true mu_k.
        labels: (n,) true z_i.
        similar: synonym pairs, or None.
        related: related pairs, or None.
        prior: (n, K) pi: anchors one-hot, other codes uniform over what they may join; or None.
        scored: (n,) bool, codes that measure success: no prior or shared row gives them away.
    """

    sources: tuple[Source, ...]
    embedding: Array
    centers: Array
    labels: Index
    similar: Relations | None
    related: Relations | None
    prior: sp.csr_array | None
    scored: NDArray[np.bool_]

    @property
    def n_codes(self) -> int:
        """Size of the union vocabulary."""
        return len(self.labels)

    @property
    def n_clusters(self) -> int:
        """K, clusters without a code included."""
        return len(self.centers)


def simulate_paper(
    seed: int,
    *,
    n_clusters: int = 100,
    kappa: float = 20.0,
    n_codes: int = 1000,
    dim: int = 10,
    columns: int = 100,
    n_sources: int = 3,
    source_kappa: float = 100.0,
    positive: float = 0.025,
    negative: float = 0.035,
    intercept: float = -4.0,
    slope: float = 8.0,
    anchored: float = 0.7,
) -> Simulation:
    """Sources x^s ~ vMF(B_s u / |B_s u|, source_kappa); source 1 holds all codes, the others 80 % each.

    Args:
        seed: of everything.
        n_clusters: K.
        kappa: concentration of codes around their cluster's center.
        n_codes: n.
        dim: d.
        columns: p of each source.
        n_sources: S; the fifth source holds the codes that the first holds, and so on.
        source_kappa: kappa_x, concentration of a source's row around its direction.
        positive: positive pairs of each kind, as a share of all pairs: a random part of those that the
            logistic models draw, or all of them if these are fewer.
        negative: negative pairs of each kind, as a share of all pairs: those with the highest cosines in source 1.
        intercept: a and a_R of the logistic models.
        slope: b.
        anchored: share of the clusters that consist of anchors.

    Source: SMILE, section 4.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_clusters, size=n_codes)
    centers = _unit(rng.standard_normal((n_clusters, dim)))
    embedding = vmf.sample(centers[labels], kappa, rng)
    sources = []
    for s in range(n_sources):
        codes = _held(s, n_codes)
        loading = rng.standard_normal((columns, dim))
        matrix = vmf.sample(_unit(embedding[codes] @ loading.T), source_kappa, rng)
        sources.append(Source(f"source {s + 1}", codes, matrix))
    turn = np.diag(rng.choice([-1.0, 1.0], dim) * rng.uniform(0.5, 1.5, dim))
    first, second = np.triu_indices(n_codes, 1)
    cosine = (sources[0].matrix @ sources[0].matrix.T)[first, second]

    def pairs(score: Array) -> Relations:
        hit = rng.random(len(score)) < 1.0 / (1.0 + np.exp(-(intercept + slope * score)))
        yes = np.flatnonzero(hit)
        yes = rng.choice(yes, min(len(yes), int(positive * len(score))), replace=False)
        no = np.argsort(-np.where(hit, -9.0, cosine), kind="stable")[: int(negative * len(score))]
        chosen = np.r_[yes, no]
        return Relations(np.c_[first[chosen], second[chosen]], np.arange(len(chosen)) < len(yes))

    similar = pairs((centers @ centers.T)[labels[first], labels[second]])
    related = pairs((embedding @ turn @ embedding.T)[first, second])
    known = rng.random(n_clusters) < anchored
    prior = np.where(known[labels][:, None], np.eye(n_clusters)[labels], (~known) / max(1, (~known).sum()))
    return Simulation(
        tuple(sources), embedding, centers, labels, similar, related, sp.csr_array(prior), ~known[labels]
    )


def simulate_sites(
    seed: int,
    *,
    n_concepts: int = 250,
    dim: int = 32,
    kappa: float = 128.0,
    columns: int = 64,
    n_sites: int = 3,
    shared: float = 0.15,
    noise: float = 1.0,
    spectral: bool = False,
) -> Simulation:
    """Three sites that code the same concepts, each with one or two codes of its own.

    Args:
        seed: of everything.
        n_concepts: K.
        dim: d.
        kappa: concentration of codes around their concept.
        columns: p_s of each site.
        n_sites: number of sites.
        shared: share of a site's codes whose row is shared by all sites.
        noise: standard deviation of the noise over that of the signal, in total over a row.
        spectral: make each site's matrix as a PMI-SVD is made, from the leading eigenvectors of a noisy
            symmetric matrix U diag(1, ..., 1/2) U' + E, instead of by U B_s' + E; noise is then the standard
            deviation of E over that of the rest.
    """
    rng = np.random.default_rng(seed)
    centers = _unit(rng.standard_normal((n_concepts, dim)))
    held: list[list[int]] = [[] for _ in range(n_sites)]
    labels: list[int] = []
    common: list[bool] = []
    for concept in range(n_concepts):
        sizes = rng.integers(1, 3, size=n_sites)
        # One code of each site at most shares its row, so that `shared` of all codes do.
        joint = rng.random() < shared * float(sizes.mean())
        if joint:
            for codes in held:
                codes.append(len(labels))
            labels.append(concept)
            common.append(True)
        for codes, size in zip(held, sizes, strict=True):
            for _ in range(int(size) - int(joint)):
                codes.append(len(labels))
                labels.append(concept)
                common.append(False)
    embedding = vmf.sample(centers[labels], kappa, rng)
    sources = []
    for s, rows in enumerate(held):
        own: Index = np.array(rows, dtype=np.intp)
        make = _spectral_matrix if spectral else _linear_matrix
        sources.append(Source(f"site {s + 1}", own, _unit(make(embedding[own], columns, noise, rng))))
    return Simulation(
        tuple(sources), embedding, centers, np.array(labels), None, None, None, ~np.array(common)
    )


def _linear_matrix(u: Array, columns: int, noise: float, rng: np.random.Generator) -> Array:
    signal = u @ rng.standard_normal((columns, u.shape[1])).T
    return np.asarray(signal + noise * signal.std() * rng.standard_normal(signal.shape))


def _spectral_matrix(u: Array, columns: int, noise: float, rng: np.random.Generator) -> Array:
    signal = (u * np.linspace(1.0, 0.5, u.shape[1])) @ u.T
    error = rng.standard_normal(signal.shape)
    value, vector = np.linalg.eigh(signal + noise * signal.std() * (error + error.T) / np.sqrt(2.0))
    turn = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return np.asarray(vector[:, -columns:] * np.sqrt(np.maximum(value[-columns:], 0.0)) @ turn.T)


def _held(s: int, n: int) -> Index:
    """All codes for the first source; different 80 % for the others."""
    everything = np.arange(n)
    parts: list[Index] = [
        everything,
        everything[: int(0.8 * n)],
        everything[int(0.2 * n) :],
        np.r_[everything[: int(0.4 * n)], everything[int(0.6 * n) :]],
    ]
    return parts[s % 4]


def _unit(matrix: Array) -> Array:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
