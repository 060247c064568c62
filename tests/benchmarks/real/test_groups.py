"""Code groups, indications and laboratory codes: one seed of each study, and what the figures rest on.

python -m pytest tests/benchmarks/real/test_groups.py -s

`python -m tests.benchmarks.real` measures more seeds.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.real.groups import ALONE, LINKED, TWO_STAGE, matched
from tests.benchmarks.real.indications import diseases, ingredients
from tests.benchmarks.real.labs import WITH
from tests.benchmarks.real.report_groups import group_sections
from tests.benchmarks.real.studies import Tables, claims_study, synthea_study, uci_study

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]


def test_uci_codes_of_one_disease_come_together_across_sites() -> None:
    tables = uci_study(0)
    print(group_sections({"UCI": [tables]}))
    _groups(tables, {"one code": 0.8, "same phecode": 0.55, "far": 0.7})
    assert set(tables["indications"]) == set(tables["phecodes"])


def test_claims_codes_of_one_disease_come_together_across_sites() -> None:
    tables = claims_study(0)
    print(group_sections({"claims": [tables]}))
    _groups(tables, {"one code": 0.6, "same phecode": 0.6, "far": 0.55})


def test_synthea_drugs_are_near_to_what_they_treat() -> None:
    tables = synthea_study(0)
    print(group_sections({"Synthea": [tables]}))
    scores = tables["indications"]
    for own in (LINKED, TWO_STAGE):
        assert scores[own]["indicated"] > 0.6  # type: ignore[operator]
    labs = tables["labs"]
    assert 20 < labs["facts"]["shared"] < 64  # type: ignore[operator]
    assert f"{LINKED} {WITH}" in labs and f"{ALONE} {WITH}" not in labs


def _groups(tables: Tables, least: dict[str, float]) -> None:
    scores = tables["phecodes"]
    for own in (LINKED, TWO_STAGE):
        for kind, value in least.items():
            assert scores[own][kind] > value, (own, kind)  # type: ignore[operator]
    # Two names of one code are at two sites: what one site sees alone cannot tell them.
    assert abs(float(scores[ALONE]["one code"] or 0.0) - 0.5) < 0.1
    assert scores[LINKED]["hits@1"] > scores[TWO_STAGE]["hits@1"]  # type: ignore[operator]


def test_chance_pairs_are_of_the_same_sites_as_common_and_unrelated() -> None:
    rng = np.random.default_rng(0)
    share, held = rng.normal(size=200), rng.integers(2, size=200)
    root = rng.integers(40, size=200)
    unrelated = root[:, None] != root[None]
    known = np.argwhere(np.triu(~unrelated, 1))
    pairs = matched(known, unrelated, np.arange(200), share, held, seed=0)
    assert len(pairs.free) == 10 * len(known)
    assert unrelated[pairs.free[:, 0], pairs.free[:, 1]].all()
    second = np.repeat(known[:, 1], 10)
    assert (held[pairs.free[:, 1]] == held[second]).all()
    assert np.abs(share[pairs.free[:, 1]] - share[second]).mean() < 0.3 * np.abs(share - share[::-1]).mean()


def test_pairs_of_any_likeness_that_knows_nothing_have_an_auc_of_one_half() -> None:
    rng = np.random.default_rng(1)
    root = rng.integers(60, size=300)
    unrelated = root[:, None] != root[None]
    known = np.argwhere(np.triu(~unrelated, 1))
    share = rng.normal(size=300)
    pairs = matched(known, unrelated, np.arange(300), share, np.zeros(300, dtype=int), seed=0)
    # Popular codes are alike: without matching that alone would tell nothing from something.
    assert abs(pairs.auc(np.add.outer(share, share)) - 0.5) < 0.05


def test_indications_are_found_by_ingredient_and_disease() -> None:
    shown = {
        "R1": "24 HR Metformin hydrochloride 500 MG Extended Release Oral Tablet",
        "D1": "Diabetes mellitus type 2",
    }
    assert ingredients("R1", shown) == {"metformin"}
    assert ingredients("Rglyburide-metformin", {}) == {"glyburide", "metformin"}
    assert diseases("D1", shown) == {"type 2 diabetes mellitus"}
    assert diseases("D25002", {}) == diseases("D2506", {}) == {"type 2 diabetes mellitus"}
    assert diseases("D25001", {}) == {"type 1 diabetes mellitus"}
    assert not diseases("D4280", {})
