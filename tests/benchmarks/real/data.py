"""Public claims as three hospitals that share no code: what they would release, what is true, and what codes are called.

`claims9` codes in ICD-9-CM, `claims10` in ICD-10-CM (the standard; recoded by the GEMs) and `claimsx` in opaque local
ids. The CMS DE-SynPUF samples are disjoint sets of beneficiaries; a split says which samples each site has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocol.messages import Anchor
from protocol.release import VerifiedRelease
from protocol.study import StudySpec, parse_study
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import allowed_dim, make_release, suppress
from site_agent.views.cooccurrence import cooccurrence_view
from tests.cms import gem, shared_file
from tests.inprocess import policy
from tests.synthetic import verified

STANDARD = "ICD10CM"
ROUNDING = 5
"""Of released patient counts; the study default is coarser, and costs the support feature part of what it knows."""
SYSTEMS = {"claims9": "ICD9CM", "claims10": STANDARD, "claimsx": "LOCALX"}
REGIMES = ("full titles", "abbreviated titles", "no text")
_TITLE = {"full titles": "long_desc", "abbreviated titles": "short_desc"}


@dataclass(frozen=True)
class Hospitals:
    """The releases of one split, and the truth.

    Attributes:
        study: floors and dimensions.
        releases: without anchors.
        truth: code -> standard code, CURIEs.
        titles: regime -> code -> its title; a code without a title is absent.
        mass: share of co-occurrence that each site released.
        kinds: code -> what kind of thing it is; empty where all are of one kind.
    """

    study: StudySpec
    releases: tuple[VerifiedRelease, ...]
    truth: Mapping[str, str]
    titles: Mapping[str, Mapping[str, str]] = field(repr=False)
    mass: tuple[float, ...]
    kinds: Mapping[str, str] = field(default_factory=dict, repr=False)


def hospitals(samples: Sequence[Sequence[int]], *, floors: bool, seed: int = 0) -> Hospitals:
    """Three sites made of the given samples each.

    Args:
        samples: of claims9, claims10 and claimsx.
        floors: the study's default floors; without them a code needs two patients, so that it can be in a pair at all.
        seed: of the opaque ids.
    """
    study = study_of(floors=floors)
    events, meaning = _events(), gem()
    distinct = sorted(set(events["code"]))
    rng = np.random.default_rng(seed)
    opaque = dict(zip(distinct, (f"L{n:05d}" for n in rng.permutation(len(distinct))), strict=True))
    names = {regime: _titles(column) for regime, column in _TITLE.items()}
    truth: dict[str, str] = {}
    titles: dict[str, dict[str, str]] = {regime: {} for regime in REGIMES}
    releases, mass = [], []
    for (site, system), own in zip(SYSTEMS.items(), samples, strict=True):
        part = events[events["sample"].isin(list(own))]
        spelt = {
            "claims9": {c: c for c in distinct},
            "claims10": {c: meaning[c] for c in distinct},
            "claimsx": opaque,
        }[site]
        for code in distinct:
            curie = f"{system}:{spelt[code]}"
            truth[curie] = f"{STANDARD}:{meaning[code]}"
            for regime, known in names.items():
                # Local ids are opaque, but the hospital has a description of each.
                title = known.get(("10", meaning[code]) if system == STANDARD else ("9", code))
                if title:
                    titles[regime][curie] = title
        releases.append(
            release(
                part["patient"],
                pd.to_datetime(part["date"]).to_numpy().astype("datetime64[D]").astype(np.int64),
                f"{system}:" + part["code"].map(spelt),
                site,
                study,
            )
        )
        mass.append(float(releases[-1].manifest.statistics.mass_kept))
    return Hospitals(study, tuple(releases), truth, titles, tuple(mass))


def split(seed: int) -> tuple[tuple[int, ...], ...]:
    """Six samples in pairs, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(6) + 1
    return tuple(tuple(int(s) for s in pair) for pair in order.reshape(3, 2))


def with_anchors(found: Hospitals, share: float, seed: int) -> tuple[VerifiedRelease, ...]:
    """The releases with the standard codes of a share of each other site's codes, drawn at random."""
    rng = np.random.default_rng([seed, round(1000 * share)])
    result = []
    for release in found.releases:
        codes = release.manifest.codes
        chosen = sorted(rng.choice(len(codes), round(share * len(codes)), replace=False).tolist())
        own = release.manifest.site != "claims10"
        anchors = tuple(Anchor(row=i, standard=found.truth[codes[i]]) for i in chosen if own)
        result.append(replace(release, manifest=release.manifest.model_copy(update={"anchors": anchors})))
    return tuple(result)


@cache
def _events() -> pd.DataFrame:
    table = pq.read_table(shared_file("cms_claims/inpatient_events.parquet")).to_pandas()
    return table[table["code"].isin(list(gem()))]


@cache
def _titles(column: str) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for system, file in (("9", "icd9cm_hierarchy"), ("10", "icd10cm2019")):
        table = pd.read_csv(shared_file(f"icd_titles/{file}.csv.gz"), dtype=str).dropna(
            subset=["code", column]
        )
        found |= {(system, code): text for code, text in zip(table["code"], table[column], strict=True)}
    return found


def release(
    patient: Sequence[object], day: NDArray[np.int64], code: Sequence[str], site: str, study: StudySpec
) -> VerifiedRelease:
    """What a site with these events releases: one row an event, the code a CURIE."""
    floors = policy(study)
    counts, names = count(patient, day, code, study)
    shift = study.embedding.ppmi_shift
    kept = suppress(counts, floors, shift=shift)
    dim = allowed_dim(len(kept.rows), floors, study)
    view = cooccurrence_view(kept, dim=dim, shift=shift, seed=study.embedding.seed)
    identity = {"site": site, "sequence": 1, "previous": "", "agent_version": "0", "agent_digest": "0" * 64}
    return verified(make_release(kept, (view,), names, {}, policy=floors, study=study, identity=identity))


def count(
    patient: Sequence[object], day: NDArray[np.int64], code: Sequence[str], study: StudySpec
) -> tuple[PairCounts, tuple[str, ...]]:
    """Pair counts of all patients by the study's rule, and the codes in order."""
    row, codes = pd.factorize(code, sort=True)
    number, _ = pd.factorize(patient, sort=True)
    order = np.lexsort((row, day, number))
    columns = np.stack([number[order], day[order], row[order]])
    first = np.r_[True, (columns[:, 1:] != columns[:, :-1]).any(axis=0)]
    counts = count_pairs(
        columns[0, first].astype(np.int64),
        columns[1, first].astype(np.int32),
        columns[2, first].astype(np.int32),
        len(codes),
        window_days=study.counting.window,
        max_events_per_patient=study.counting.max_events_per_patient,
    )
    return counts, tuple(str(c) for c in codes)


def study_of(*, floors: bool) -> StudySpec:
    """The study's default floors, or next to none."""
    table: dict[str, object] = {
        "id": "claims",
        "sites": list(SYSTEMS),
        "standard": STANDARD,
        "minimum_sites": 3,
        "code_systems": [
            {"prefix": STANDARD},
            {"prefix": "ICD9CM"},
            {"prefix": "LOCALX", "local_to": "claimsx"},
        ],
    }
    if floors:
        table["privacy"] = {"margin_rounding": ROUNDING}
    else:
        table["privacy"] = {
            "public_data": True,
            "min_code_patients": 2,
            "min_pair_patients": 1,
            "small_site_patients": 0,
            "margin_rounding": 1,
        }
    return parse_study(table, "of the benchmark")
