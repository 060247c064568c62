"""Outcomes on the CMS claims by harmonised vectors, beside random ones and TF-IDF.

The outcome is a chronic-condition flag of the beneficiaries' file; codes of the families that define it are left out. To foresee
a first diagnosis there are too few: of 6,400 patients some 600 have stays on both sides of a day, and no method beats chance.

python -m pytest tests/benchmarks/test_prediction_real.py -s                    CI: one split and flag, every third patient
SMILE_BENCH=full python -m pytest tests/benchmarks/test_prediction_real.py -s   three splits, four flags
"""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest

from site_agent.cohort.histories import LONGEST, Histories
from site_agent.cohort.prediction import HARMONISED, compare_views
from tests.benchmarks.real import data
from tests.benchmarks.real.cohort import FAMILIES, Site, sites

FULL = os.environ.get("SMILE_BENCH") == "full"
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600 if FULL else 900)]
SEEDS = range(3 if FULL else 1)
FLAGS = ("chrnkidn", "copd", "depressn", "strketia") if FULL else ("chrnkidn",)


def flagged(site: Site, flag: str, seed: int) -> Histories:
    """Codes in order of days, without those that define the flag; patients without any other are left out."""
    events = data._events()
    events = events[events["sample"].isin(list(data.split(seed)[0]))]
    patient, names = pd.factorize(events["sample"].astype(str) + ":" + events["patient"], sort=True)
    code, codes = pd.factorize("ICD9CM:" + events["code"], sort=True)
    assert list(codes) == list(site.codes)
    assert list(names) == list(site.flags.index)
    day = pd.to_datetime(events["date"]).to_numpy().astype("datetime64[D]").astype(np.int64)
    kept = np.array([not str(c).startswith(FAMILIES[flag]) for c in site.icd9])[code]
    cells = np.unique(np.stack([patient, day, code])[:, kept], axis=1)
    held, first = np.unique(cells[0], return_index=True)
    parts = [p[-LONGEST:] for p in np.split(cells[2], first[1:])]
    if not FULL:
        parts, held = parts[::3], held[::3]
    start = np.r_[0, np.cumsum([len(p) for p in parts])]
    return Histories(
        start, np.concatenate(parts).astype(np.int32), site.flags[flag].to_numpy(dtype=bool)[held]
    )


@pytest.mark.parametrize("flag", FLAGS)
def test_flags_by_other_codes(flag: str) -> None:
    pytest.importorskip("torch")
    over = []
    for seed in SEEDS:
        site = sites(seed, floors=True)[0]
        told = compare_views(flagged(site, flag, seed), site.harmonised.astype(np.float32), seed=seed)
        chance = told.with_outcome / told.patients[2]
        areas = "; ".join(f"{k} {a.value:.3f} ({a.low:.3f} to {a.high:.3f})" for k, a in told.areas.items())
        gains = "; ".join(
            f"over {k} {a.value:+.3f} ({a.low:+.3f} to {a.high:+.3f})" for k, a in told.gains.items()
        )
        print(
            f"\n{flag}, split {seed}, {sum(told.patients):,} patients, chance {chance:.3f}: {areas}; {gains}",
            flush=True,
        )
        over.append(told.areas[HARMONISED].low - chance)
    assert min(over) > 0
