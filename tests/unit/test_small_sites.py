"""The pair floor of small sites: when it holds, that it moves with nothing but the released number, and who checks it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import GateError, StudyError
from protocol.messages import Policy
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import pair_floor, sticky_counts, suppress, too_little
from site_agent.gate.suppression import in_force, round_to_one
from tests.property.test_gate_laws import events
from tests.synthetic import cells_moved, study
from tests.unit.test_second_release import PUBLIC, STUDY, Site, patients

CODES = tuple(f"ICD10CM:{i:02d}" for i in range(24))
T = 130
POLICY = Policy(
    min_code_patients=6,
    min_pair_patients=4,
    margin_rounding=10,
    max_dim=128,
    sticky_patients=5,
    small_site_patients=T,
    small_site_pair_patients=9,
)


def counts_of(n: int, seed: int = 0) -> PairCounts:
    """Counts of n patients, each the same whatever n."""
    who, day, code = events(seed, 400, 24, 8)
    return count_pairs(who[who < n], day[who < n], code[who < n], 24)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 1_000), st.integers(0, 10_000), st.integers(1, 60))
def test_a_site_of_fewer_patients_has_the_higher_floor_however_they_are_rounded(
    patients: int, step: int, threshold: int, floor: int
) -> None:
    rules = POLICY.model_copy(
        update={
            "margin_rounding": step,
            "small_site_patients": threshold,
            "small_site_pair_patients": floor,
        }
    )
    found = in_force(rules, patients)
    assert found.min_pair_patients >= POLICY.min_pair_patients
    if patients < threshold:
        assert found.min_pair_patients >= floor
    if patients >= threshold + step:
        assert found == rules
    # The released number alone decides, as the coordinator repeats it.
    shown = round_to_one(patients, step)
    assert found == rules.at(shown) == found.at(shown)


def test_no_site_is_small_where_the_number_is_zero() -> None:
    rules = POLICY.model_copy(update={"small_site_patients": 0})
    assert in_force(rules, 0) == in_force(rules, 3) == rules


@settings(max_examples=40, deadline=None)
@given(st.integers(100, 170), st.integers(-4, 4), st.integers(0, 50))
def test_a_few_patients_move_no_floor(before: int, more: int, seed: int) -> None:
    """Fewer than `sticky_patients` come or go, at any size around the threshold: pairs stay as they were."""
    first = sticky_counts(counts_of(before, seed), CODES, None, POLICY)
    second = sticky_counts(counts_of(before + more, seed), CODES, first, POLICY)
    assert second.floor == first.floor
    assert cells_moved(first.counts, second.counts) == 0
    assert suppress(first.counts, POLICY).statistics == suppress(second.counts, POLICY).statistics


def test_a_small_site_keeps_only_pairs_over_its_own_floor() -> None:
    for n, floor in ((120, 9), (200, 4)):
        reference = sticky_counts(counts_of(n), CODES, None, POLICY)
        assert reference.floor == floor
        assert reference.counts.pair_patients.data.min() == floor
        assert suppress(counts_of(n), POLICY).statistics.smallest_pair_patients >= floor


def test_a_site_that_grows_out_of_being_small_shows_a_pair_only_when_as_many_are_certainly_new() -> None:
    """Withheld by the higher floor, a pair had up to that floor less one patients."""
    first = sticky_counts(counts_of(120), CODES, None, POLICY)
    later = counts_of(200)
    second = sticky_counts(later, CODES, first, POLICY)
    assert (first.floor, second.floor) == (9, 4)
    old, new = first.counts.pair_patients.toarray(), second.counts.pair_patients.toarray()
    seen = first.counts.code_patients
    bound = np.minimum(np.minimum.outer(seen, seen), first.floor - 1)
    appeared = (old == 0) & (new > 0)
    assert appeared.any()
    assert (new - bound >= POLICY.sticky_patients)[appeared].all()


def test_a_refusal_says_which_floor_withheld_the_codes() -> None:
    kept = suppress(counts_of(40), POLICY)
    (reason,) = too_little(kept, POLICY, study())
    assert "have no pair with 9, as at all sites that may have fewer than 130 patients" in reason
    assert pair_floor(POLICY, 200) == "4"


def test_only_a_study_of_public_data_may_do_without() -> None:
    for changed in ({"small_site_patients": 0}, {"small_site_pair_patients": 11}):
        with pytest.raises(StudyError, match="25 at a site of fewer than 6,000"):
            study(privacy=changed)
        assert study(privacy={**changed, "public_data": True}).privacy
    assert study(privacy={"small_site_patients": 7_000, "small_site_pair_patients": 30}).privacy


def test_a_release_states_the_floor_in_force_and_a_site_can_only_raise_it(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + PUBLIC + "small_site_patients = 500\n")
    at_600 = site.prepare(patients()).release.manifest
    assert (at_600.policy.min_pair_patients, at_600.policy.small_site_patients) == (11, 500)
    site.configure(lambda t: t.replace("[policy]", "[policy]\nsmall_site_patients = 700"))
    found = site.prepare(patients()).release.manifest
    assert (found.policy.min_pair_patients, found.policy.small_site_patients) == (25, 700)
    assert found.statistics.smallest_pair_patients >= 25
    assert found.policy.at(found.statistics.patients) == found.policy
    site.configure(
        lambda t: t.replace(
            "small_site_patients = 700", "small_site_pair_patients = 200\nsmall_site_patients = 700"
        )
    )
    with pytest.raises(
        GateError, match="have no pair with 200, as at all sites that may have fewer than 700"
    ):
        site.prepare(patients())
    site.configure(lambda t: t.replace("small_site_patients = 700", "small_site_patients = 7"))
    assert site.prepare(patients()).release.manifest.policy.small_site_patients == 500
