"""What the rule of a question costs: all codes weigh alike, where a site's own search weighs a code by how rare it is there.

python -m pytest tests/benchmarks/test_cohort_question.py -s

One hospital of the CMS claims, three splits; code vectors are PPMI-SVD of its own codes of 20 patients, 16 dimensions, for both
ways. Codes that define a flag are left out of the patients; the profile is made of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from protocol.tfidf import inverse_frequency, patient_vectors
from tests.benchmarks.real import data
from tests.benchmarks.real.cohort import FAMILIES
from tests.cms import shared_file

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]
SEEDS, QUERIES, K, PROFILED, DIM, FLOOR = range(3), 200, 100, 500, 16, 20


class Hospital(NamedTuple):
    """Patients and their codes: on how many days, the codes' vectors, how rare they are, and the patients' flags."""

    days: sp.csr_array
    codes: np.ndarray
    vectors: np.ndarray
    support: np.ndarray
    flags: pd.DataFrame

    def patients(self, weights: np.ndarray, kept: np.ndarray) -> np.ndarray:
        return patient_vectors(sp.csr_array(self.days[:, kept]), weights[kept], self.vectors[kept])


def hospital(seed: int) -> Hospital:
    events = data._events()
    events = events[events["sample"].isin(list(data.split(seed)[0]))]
    patient, names = pd.factorize(events["sample"].astype(str) + ":" + events["patient"], sort=True)
    code, codes = pd.factorize(events["code"], sort=True)
    day = pd.to_datetime(events["date"]).to_numpy().astype("datetime64[D]").astype(np.int64)
    cells = np.unique(np.stack([patient, day, code]), axis=1)
    days = sp.csr_array((np.ones(cells.shape[1]), (cells[0], cells[2])))
    days.sum_duplicates()
    has = sp.csr_array((days > 0).astype(float))
    support = np.asarray(has.sum(axis=0)).ravel()
    kept = support >= FLOOR
    pairs = (has[:, kept].T @ has[:, kept]).toarray()
    row = pairs.sum(axis=1)
    weight = np.maximum(0.0, np.log(np.maximum(pairs * row.sum() / np.outer(row, row), 1e-12)))
    left, values, _ = svds(weight, k=DIM, random_state=0)
    vectors = np.zeros((len(codes), DIM))
    vectors[kept] = left * np.sqrt(values)
    vectors[kept] /= np.linalg.norm(vectors[kept], axis=1, keepdims=True)
    flags = pq.read_table(shared_file("cms_claims/beneficiaries.parquet")).to_pandas()
    flags.index = flags["sample"].astype(str) + ":" + flags["patient"]
    return Hospital(days, np.asarray(codes, dtype=str), vectors, support, flags.loc[names])


def test_that_no_code_weighs_more_for_being_rare_costs_no_precision() -> None:
    hospitals = [hospital(seed) for seed in SEEDS]
    print(f"\nprecision@{K} of {QUERIES} patients a split, and of the {PROFILED} nearest to the profile")
    print(f"{'flag':10} {'all':>6} {'TF-IDF':>7} {'alike':>7} {'difference (SE)':>17}   {'by profile':>13}")
    for flag, family in FAMILIES.items():
        found: dict[str, list[np.ndarray]] = {"TF-IDF": [], "alike": []}
        profile: dict[str, list[float]] = {"TF-IDF": [], "alike": []}
        share = []
        for seed, site in enumerate(hospitals):
            has = site.flags[flag].to_numpy(dtype=bool)
            kept = ~np.char.startswith(site.codes[:, None], np.array(family)[None]).any(axis=1)
            rare = inverse_frequency(site.support, len(has))
            rows = {"TF-IDF": site.patients(rare, kept), "alike": site.patients(np.ones(len(rare)), kept)}
            able = np.flatnonzero(has & rows["alike"].any(axis=1))
            asked = np.random.default_rng(seed).choice(able, QUERIES, replace=False)
            share.append(has.mean())
            for name, vectors in rows.items():
                score = vectors[asked] @ vectors.T
                score[np.arange(QUERIES), asked] = -np.inf
                found[name].append(has[np.argpartition(-score, K, axis=1)[:, :K]].mean(axis=1))
                nearest = np.argsort(-(vectors @ site.vectors[~kept].sum(axis=0)))[:PROFILED]
                profile[name].append(float(has[nearest].mean()))
        one, other = (np.concatenate(found[name]) for name in ("TF-IDF", "alike"))
        error = (other - one).std(ddof=1) / np.sqrt(len(one))
        print(
            f"{flag:10} {np.mean(share):6.3f} {one.mean():7.3f} {other.mean():7.3f} "
            f"{(other - one).mean():+9.4f} ({error:.4f})   {np.mean(profile['TF-IDF']):.3f}  {np.mean(profile['alike']):.3f}"
        )
        assert (other - one).mean() > -0.005


def test_weights_of_their_own_would_put_a_patient_in_at_one_site_and_out_at_another() -> None:
    """Two sites of different patients: those with and those without diabetes. The same records, weighed by either."""
    apart = []
    for seed in SEEDS:
        site = hospital(seed)
        ill = site.flags["diabetes"].to_numpy(dtype=bool)
        has = site.days > 0
        weights = [
            inverse_frequency(np.asarray(has[group].sum(axis=0)).ravel(), int(group.sum()))
            for group in (ill, ~ill)
        ]
        everything = np.ones(len(site.codes), dtype=bool)
        for family in FAMILIES.values():
            profile = site.vectors[
                np.char.startswith(site.codes[:, None], np.array(family)[None]).any(axis=1)
            ]
            query = profile.sum(axis=0) / np.linalg.norm(profile.sum(axis=0))
            one, other = (site.patients(w, everything) @ query for w in weights)
            least = np.quantile(one, 0.95)
            both, either = (
                ((one >= least) & (other >= least)).sum(),
                ((one >= least) | (other >= least)).sum(),
            )
            apart.append(1 - both / either)
    print(
        f"\nof those in at one of two sites, out at the other: {np.mean(apart):.3f} ({min(apart):.3f} to {max(apart):.3f})"
    )
    assert np.mean(apart) > 0.02
