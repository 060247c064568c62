"""Cohort search on the CMS claims: do the patients that are found have the condition of the one who was asked for?

Relevance is one of the 11 chronic-condition flags of the beneficiaries' file. Codes of the families that define a flag are left
out of the features for it. A flag goes with the number of codes a patient has far more than with which ones: `excess` is the
share of those found who have the flag, less what patients with as many codes have on average. `most codes` is the search that
gives everybody the 100 patients with most codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import spearmanr

from coordinator.background import NOTHING
from coordinator.estimate import estimate
from coordinator.harmonize import fit_dim
from coordinator.union import build_union
from protocol.release import COOCCURRENCE
from protocol.study import StudySpec
from protocol.tfidf import inverse_frequency, patient_vectors
from site_agent.cohort.gathering import follow_up
from site_agent.cohort.lift import lift
from site_agent.cohort.own import joined, own_vectors
from site_agent.cooccurrence import PairCounts
from site_agent.gate import allowed_dim, suppress
from site_agent.views.cooccurrence import cooccurrence_view
from tests.benchmarks.real import data
from tests.cms import gem, shared_file
from tests.inprocess import policy

Array = NDArray[np.float64]
K = 100
_BINS = 40
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "alzhdmta": ("290", "294", "331", "797"),
    "chf": ("398", "402", "404", "428"),
    "chrnkidn": (
        *(
            "016",
            "095",
            "189",
            "223",
            "236",
            "249",
            "250",
            "271",
            "274",
            "283",
            "403",
            "404",
            "440",
            "442",
            "572",
        ),
        *("580", "581", "582", "583", "584", "585", "586", "587", "588", "591", "753", "794", "V45", "V56"),
    ),
    "cncr": ("153", "154", "162", "174", "175", "182", "185", "230", "231", "233", "V10"),
    "copd": ("490", "491", "492", "494", "496"),
    "depressn": ("296", "298", "300", "309", "311"),
    "diabetes": ("249", "250", "357", "362", "366"),
    "ischmcht": ("410", "411", "412", "413", "414"),
    "osteoprs": ("733",),
    "ra_oa": ("714", "715", "720", "721"),
    "strketia": ("362", "430", "431", "433", "434", "435", "436", "997"),
}
"""Whole ICD-9-CM families of the codes by which the Chronic Conditions Warehouse defines each flag."""


@dataclass(frozen=True, eq=False)
class Site:
    """A site's patients and the vectors of its codes.

    Attributes:
        system: prefix of its codes.
        icd9: what each code stands for, in ICD-9-CM.
        codes: CURIEs.
        days: csr (patients, codes), on how many days.
        years: of follow-up.
        flags: one row a patient.
        harmonised: (codes, d), zero where a code was not released.
        own: the same, of the site's own embedding, as it released it.
        unfloored: the same, as it would release it without floors.
        inside: the site's own vectors as `cohort build` makes them, which stay at the site.
        anchors: code -> standard code, those that the site gave.
    """

    system: str
    icd9: NDArray[np.object_]
    codes: NDArray[np.object_]
    days: sp.csr_array
    years: Array
    flags: pd.DataFrame
    harmonised: Array
    own: Array
    unfloored: Array
    inside: Array
    anchors: Mapping[str, str]

    def vectors(self, codes: Array, kept: NDArray[np.bool_] | None = None) -> Array:
        """Patient vectors by the product's formula, from the kept columns."""
        chosen = np.ones(len(self.codes), dtype=bool) if kept is None else kept
        rates = sp.csr_array(sp.diags_array(1.0 / self.years) @ self.days[:, chosen])
        return patient_vectors(rates, self.weights[chosen], codes[chosen])

    @property
    def weights(self) -> Array:
        return inverse_frequency((self.days > 0).sum(axis=0), self.days.shape[0])

    def one_hot(self, kept: NDArray[np.bool_]) -> sp.csr_array:
        """TF-IDF rows of unit length."""
        rows = sp.csr_array(self.days[:, kept].astype(float))
        rows.data = np.log1p(rows.data)
        rows = sp.csr_array(rows @ sp.diags_array(self.weights[kept]))
        norm = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        return sp.csr_array(sp.diags_array(1.0 / np.where(norm == 0, 1, norm)) @ rows)


@lru_cache(maxsize=8)
def sites(seed: int, floors: bool, share: float = 0.2) -> tuple[Site, ...]:
    """claims9 and claims10 with the vectors of one fit of all three sites."""
    samples = data.split(seed)
    found = data.hospitals(samples, floors=floors, seed=seed)
    releases = data.with_anchors(found, share, seed)
    union = build_union(releases, standard=found.study.standard, require_links=False)
    dim = fit_dim(releases, found.study)
    supplement = NOTHING.supplement(releases, found.study)
    fit = estimate(releases, union, found.study, dim, supplement, lambda _step, _share: None).fit
    place = dict(zip(union.codes, fit.embedding[union.row], strict=True))
    flags = pq.read_table(shared_file("cms_claims/beneficiaries.parquet")).to_pandas()
    flags.index = flags["sample"].astype(str) + ":" + flags["patient"]
    made = []
    for number, (site, system) in enumerate(list(data.SYSTEMS.items())[:2]):
        release = releases[number]
        own = next(v for v in release.views() if v.name == COOCCURRENCE)
        row = dict(zip(release.manifest.codes, own.matrix, strict=True))
        anchors = {release.manifest.codes[a.row]: a.standard for a in release.manifest.anchors}
        assert release.manifest.site == site
        made.append(_site(system, samples[number], flags, place, row, anchors, found.study))
    return tuple(made)


def _site(
    system: str,
    samples: tuple[int, ...],
    flags: pd.DataFrame,
    place: Mapping[str, Array],
    own: Mapping[str, Array],
    anchors: Mapping[str, str],
    study: StudySpec,
) -> Site:
    events = data._events()
    events = events[events["sample"].isin(list(samples))]
    key = events["sample"].astype(str) + ":" + events["patient"]
    spelt = events["code"] if system == "ICD9CM" else events["code"].map(gem())
    patient, names = pd.factorize(key, sort=True)
    code, codes = pd.factorize(f"{system}:" + spelt, sort=True)
    icd9 = pd.Series(events["code"].to_numpy()).groupby(code).first().to_numpy(dtype=object)
    day = pd.to_datetime(events["date"]).to_numpy().astype("datetime64[D]").astype(np.int64)
    cells = np.unique(np.stack([patient, day, code]), axis=1)
    days = sp.csr_array((np.ones(cells.shape[1]), (cells[0], cells[2])))
    days.sum_duplicates()
    span = pd.Series(day).groupby(patient).agg(["min", "max"])
    years = follow_up(span["min"].to_numpy(), span["max"].to_numpy())

    counts, names_of_codes = data.count(events["patient"], day, f"{system}:" + spelt, study)
    assert list(names_of_codes) == list(codes)
    shift, dim = study.embedding.ppmi_shift, study.embedding.dim
    inside = own_vectors(counts, dim=dim, shift=shift, seed=study.embedding.seed).astype(np.float64)

    def table(known: Mapping[str, Array]) -> Array:
        width = len(next(iter(known.values())))
        return np.array([known.get(c, np.zeros(width)) for c in codes], dtype=np.float64)

    return Site(
        system=system,
        icd9=icd9,
        codes=np.asarray(codes, dtype=object),
        days=days,
        years=years,
        flags=flags.loc[names],
        harmonised=table(place),
        own=table(own),
        unfloored=_unfloored(counts),
        inside=inside,
        anchors=anchors,
    )


def _unfloored(counts: PairCounts) -> Array:
    """(codes, d) what a site would release of its co-occurrence if the study had no floors; zero where nothing."""
    study = data.study_of(floors=False)
    floors, embedding = policy(study), study.embedding
    kept = suppress(counts, floors, shift=embedding.ppmi_shift)
    dim = allowed_dim(len(kept.rows), floors, study)
    view = cooccurrence_view(kept, dim=dim, shift=embedding.ppmi_shift, seed=embedding.seed)
    vectors = np.zeros((len(counts.code_patients), view.matrix.shape[1]))
    vectors[kept.rows] = view.matrix
    return vectors


METHODS = (
    "one-hot TF-IDF",
    "un-harmonised",
    "un-harmonised, no floors",
    "harmonised",
    "harmonised, centred",
    "own codes alone",
    "own beside own",
    "joined",
)
RIVALS = (*METHODS[:3], "own beside own")


def found_flags(site: Site, flag: str, queries: int, seed: int) -> dict[str, dict[str, Array]]:
    """For each method and query patient: precision@100, F1@100 and excess; and what the most codes would find."""
    has = site.flags[flag].to_numpy(dtype=bool)
    kept = np.array([not str(c).startswith(FAMILIES[flag]) for c in site.icd9])
    size = np.asarray((site.days[:, kept] > 0).sum(axis=1)).ravel()
    bins = np.searchsorted(np.quantile(size, np.linspace(0, 1, _BINS + 1)[1:-1]), size)
    expected = (np.bincount(bins, has, minlength=_BINS) / np.maximum(np.bincount(bins, minlength=_BINS), 1))[
        bins
    ]
    one_hot = site.one_hot(kept)
    harmonised = site.vectors(site.harmonised, kept)
    centred = harmonised - harmonised.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    dense = {
        "un-harmonised": site.vectors(site.own, kept),
        "un-harmonised, no floors": site.vectors(site.unfloored, kept),
        "own codes alone": site.vectors(site.inside, kept),
        # What the site could join by itself: its released vectors where the joined ones have the harmonised.
        "own beside own": site.vectors(joined(site.own, site.inside), kept),
        "joined": site.vectors(joined(site.harmonised, site.inside), kept),
        "harmonised": harmonised,
        "harmonised, centred": centred,
    }
    able = np.flatnonzero(has & dense["harmonised"].any(axis=1) & dense["un-harmonised"].any(axis=1))
    asked = np.random.default_rng(seed).choice(able, min(queries, len(able)), replace=False)
    scores = {"one-hot TF-IDF": (one_hot[asked] @ one_hot.T).toarray()}
    scores |= {name: rows[asked] @ rows.T for name, rows in dense.items()}
    table = {}
    for name, score in scores.items():
        score[np.arange(len(asked)), asked] = -np.inf
        top = np.argpartition(-score, K, axis=1)[:, :K]
        precision = has[top].mean(axis=1)
        recall = has[top].sum(axis=1) / (has.sum() - 1)
        table[name] = {
            "precision": precision,
            "F1": 2 * precision * recall / np.maximum(precision + recall, 1e-12),
            "excess": (has[top] - expected[top]).mean(axis=1),
        }
    most = np.argsort(-size, kind="stable")[:K]
    table["most codes"] = {"precision": np.full(len(asked), has[most].mean())}
    table["everybody"] = {"precision": np.full(len(asked), has.mean())}
    return table


PROFILED = ("one-hot TF-IDF", "own codes alone", "harmonised", "joined", "most codes")
_PROFILE, _LIFTED = 10, 40


def profiled_flags(site: Site, flag: str, profiles: int, seed: int) -> dict[str, Array]:
    """precision@100 of each method for each of some profiles, of which each is ten codes of one weight.

    They are drawn from the forty codes of highest lift among those with the flag in a random half of the patients, and asked
    in the other half. "family" is asked with the flag's own codes, which are no features: one-hot rows have none of them.
    """
    has = site.flags[flag].to_numpy(dtype=bool)
    kept = np.array([not str(c).startswith(FAMILIES[flag]) for c in site.icd9])
    tables = {
        "own codes alone": site.inside,
        "harmonised": site.harmonised,
        "joined": joined(site.harmonised, site.inside).astype(np.float64),
    }
    patients = {name: site.vectors(table, kept) for name, table in tables.items()}
    one_hot, held = site.one_hot(kept), sp.csr_array((site.days > 0).astype(np.int64))
    size = np.asarray(held[:, kept].sum(axis=1)).ravel().astype(np.float64)
    rng = np.random.default_rng(seed)

    def precision(score: Array, pool: NDArray[np.bool_]) -> float:
        return float(has[np.argsort(-np.where(pool, score, -np.inf), kind="stable")[:K]].mean())

    everyone = np.ones(len(has), dtype=bool)
    found: dict[str, list[float]] = {
        f"family, {name}": [precision(patients[name] @ table[~kept].sum(axis=0), everyone)]
        for name, table in tables.items()
    }
    for _ in range(profiles):
        half = rng.random(len(has)) < 0.5
        counts = [np.asarray(held[group].sum(axis=0)).ravel() for group in (half & has, half & ~has)]
        lifts = lift(counts[0], int((half & has).sum()), counts[1], int((half & ~has).sum()))
        best = np.argsort(-np.where(kept & (counts[0] > 0), lifts.low, -np.inf))[:_LIFTED]
        chosen = rng.choice(best, _PROFILE, replace=False)
        scores = {name: patients[name] @ table[chosen].sum(axis=0) for name, table in tables.items()}
        scores["one-hot TF-IDF"] = one_hot @ np.isin(np.flatnonzero(kept), chosen).astype(np.float64)
        scores["most codes"] = size
        for name, score in scores.items():
            found.setdefault(name, []).append(precision(score, ~half))
    return {name: np.array(values) for name, values in found.items()}


def agreement(pair: tuple[Site, ...], flag: str, k: int = 500) -> dict[str, float]:
    """Spearman correlation of two sites' code lifts, in cohorts of k that one profile finds at each.

    The profile is the flag's codes as released in ICD-10-CM. Un-harmonised, the ICD-9-CM site looks with those of its own codes
    that it anchored to codes of the profile, in its own space; NaN where there are none. Joined, each looks with its own
    vectors of these codes beside the harmonised ones. Codes of the profile are not compared, nor codes that fewer than 20
    patients have at either site.
    """
    nine, ten = pair
    meaning = gem()
    wanted = np.array([str(c).startswith(FAMILIES[flag]) for c in ten.icd9]) & ten.harmonised.any(axis=1)
    named = set(ten.codes[wanted])
    joint = ten.harmonised[wanted].sum(axis=0)
    anchored = np.array([nine.anchors.get(c) in named for c in nine.codes])
    pairs: dict[str, tuple[tuple[Site, Array | None, Array], ...]] = {
        "harmonised": ((nine, joint, nine.harmonised), (ten, joint, ten.harmonised)),
        "un-harmonised": (
            (nine, nine.own[anchored].sum(axis=0), nine.own),
            (ten, ten.own[wanted].sum(axis=0), ten.own),
        ),
        "joined": tuple(
            (
                site,
                joined(joint[None], site.inside[rows].sum(axis=0)[None])[0],
                joined(site.harmonised, site.inside),
            )
            for site, rows in ((nine, anchored), (ten, wanted))
        ),
        "most codes": ((nine, None, nine.own), (ten, None, ten.own)),
    }
    result = {}
    for name, searches in pairs.items():
        lifts = []
        for site, query, codes in searches:
            # Without a query: the patients with most codes, as a search would find that heeds their number alone.
            score = (
                np.asarray((site.days > 0).sum(axis=1)).ravel()
                if query is None
                else site.vectors(codes) @ query
            )
            cohort = np.zeros(len(score), dtype=bool)
            cohort[np.argsort(-score, kind="stable")[:k]] = True
            has = sp.csr_array((site.days > 0).astype(np.int64))
            concept = [meaning[c] for c in site.icd9]
            order = sorted(set(concept))
            onto = sp.csr_array(
                (
                    np.ones(len(concept), np.int64),
                    (np.arange(len(concept)), [order.index(c) for c in concept]),
                )
            )
            per = sp.csr_array(((has @ onto) > 0).astype(np.int64))
            inside, rest = (np.asarray(per[g].sum(axis=0)).ravel() for g in (cohort, ~cohort))
            ratio = lift(inside, k, rest, len(score) - k).ratio
            lifts.append({c: r for c, r, n in zip(order, ratio, inside + rest, strict=True) if n >= 20})
        left_out = {c.partition(":")[2] for c in named}
        shared = sorted((set(lifts[0]) & set(lifts[1])) - left_out)
        asked = bool(anchored.any()) or name != "un-harmonised"
        values = [np.log([one[c] for c in shared]) for one in lifts]
        result[name] = float(spearmanr(*values).statistic) if asked else float("nan")
    return result
