"""Laws of the gate: nothing below a floor has any effect on what leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from protocol.errors import GateError
from protocol.messages import Policy
from protocol.release import SourceView
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import make_release, refuse, round_to, suppress, too_little
from site_agent.views.cooccurrence import cooccurrence_view
from tests.synthetic import study

POLICY = Policy(
    min_code_patients=6, min_pair_patients=4, margin_rounding=5, max_dim=128, small_site_patients=0
)


def events(seed: int, patients: int, codes: int, per_patient: int) -> tuple[Any, Any, Any]:
    """Patients with codes of a few topics, so that some pairs pass the floors and some do not."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 4, patients)
    who = np.repeat(np.arange(patients), per_patient)
    code = (topic[who] * codes // 4 + rng.geometric(0.2, len(who)) - 1) % codes
    # Some codes that everyone has: without them the topics would be unconnected groups.
    code = np.where(rng.random(len(who)) < 0.3, rng.integers(0, codes, len(who)), code)
    return who, rng.integers(0, 60, len(who)), code.astype(np.int32)


def counted(seed: int, patients: int = 120, codes: int = 24) -> PairCounts:
    return count_pairs(*events(seed, patients, codes, 8), codes)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_kept_counts_obey_the_floors(seed: int) -> None:
    counts = counted(seed)
    kept = suppress(counts, POLICY)
    assert (counts.code_patients[kept.rows] >= POLICY.min_code_patients).all()
    support = counts.pair_patients[kept.rows][:, kept.rows].toarray()
    assert (support[kept.events.toarray() > 0] >= POLICY.min_pair_patients).all()
    assert (kept.code_patients % 5 == 0).all()
    smallest = support[kept.events.toarray() > 0]
    if smallest.size:
        assert kept.statistics.smallest_pair_patients == smallest.min()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_cells_below_the_floor_have_no_effect(seed: int, random: Any) -> None:
    """Changing every small cell to any other value below its floor changes no array that leaves."""
    counts = counted(seed)
    support, events_ = counts.pair_patients.copy(), counts.events.copy()
    small = np.flatnonzero(support.data < POLICY.min_pair_patients)
    for i in small:
        support.data[i] = random.randint(1, POLICY.min_pair_patients - 1)
        events_.data[i] = random.randint(1, 50)
    code_patients = counts.code_patients.copy()
    below = code_patients < POLICY.min_code_patients
    code_patients[below] = [random.randint(1, POLICY.min_code_patients - 1) for _ in range(below.sum())]
    other = PairCounts(
        **{**vars(counts), "events": events_, "pair_patients": support, "code_patients": code_patients}
    )
    one, two = suppress(counts, POLICY), suppress(other, POLICY)
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.events.toarray(), two.events.toarray())
    np.testing.assert_array_equal(one.code_patients, two.code_patients)
    assume(len(one.rows) > 2)
    views = [cooccurrence_view(k, dim=2, shift=1.0, seed=0) for k in (one, two)]
    np.testing.assert_array_equal(views[0].matrix, views[1].matrix)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(1, 50))
def test_rounding(counts: list[int], step: int) -> None:
    rounded = round_to(np.array(counts), step)
    assert (rounded % step == 0).all()
    assert (np.abs(rounded - counts) * 2 <= step).all()


def test_a_refusal_lists_every_reason() -> None:
    with pytest.raises(GateError) as caught:
        refuse(too_little(suppress(counted(0, patients=3), POLICY), POLICY, study()), "Bring more")
    assert len(caught.value.reasons) == 2
    assert "fewer than 6 patients" in str(caught.value)
    assert "40 are needed" in str(caught.value)


def test_one_code_and_one_patient() -> None:
    for who, code in (([1] * 50, list(range(50))), (list(range(50)), [0] * 50)):
        counts = count_pairs(np.array(who), np.zeros(50, int), np.array(code, dtype=np.int32), 50)
        kept = suppress(counts, POLICY)
        assert len(kept.rows) == 0
        assert too_little(kept, POLICY, study())


def test_more_dimensions_than_allowed_are_refused() -> None:
    counts = count_pairs(*events(1, 4000, 60, 12), 60)
    spec = study(embedding={"codes_per_dim": 20})
    policy = Policy(min_code_patients=20, min_pair_patients=11, margin_rounding=5, max_dim=2)
    kept = suppress(counts, policy)
    wide = SourceView("cooccurrence", np.arange(len(kept.rows)), np.ones((len(kept.rows), 3), np.float32))
    codes = tuple(f"ICD10CM:{i:02d}" for i in range(60))
    identity = {
        "site": "north",
        "sequence": 1,
        "previous": "",
        "agent_version": "0",
        "agent_digest": "0" * 64,
    }
    with pytest.raises(GateError, match="3 dimensions, 2 are allowed"):
        make_release(kept, (wide,), codes, {}, policy=policy, study=spec, identity=identity)
    foreign = tuple(f"SOUTH:{i:02d}" for i in range(60))
    view = cooccurrence_view(kept, dim=2, shift=1.0, seed=0)
    with pytest.raises(GateError, match="local to site south"):
        make_release(kept, (view,), foreign, {}, policy=policy, study=spec, identity=identity)
    good = make_release(
        kept, (view,), codes, {codes[0]: "ICD10CM:X"}, policy=policy, study=spec, identity=identity
    )
    assert isinstance(kept.events, sp.csr_array)
    assert good.manifest.codes == tuple(codes[r] for r in kept.rows)
