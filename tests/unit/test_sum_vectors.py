"""What a site puts into a sum: anchors before counting, floors, cells, rosters and approvals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from protocol.errors import FederationError, ProtocolError, StudyError
from protocol.messages import Policy
from protocol.study import parse_study, study_differences
from protocol.sums import (
    Roster,
    agreed_cells,
    read_answer,
    read_margins,
    roster_differences,
    step_id,
    write_answer,
)
from site_agent.cooccurrence import PairCounts
from site_agent.sections import Data
from site_agent.sums.counting import with_anchors
from site_agent.sums.vectors import cells_vector, margins_vector, over_vocabulary
from tests.synthetic import keys, study

CODES = ("A:1", "A:2", "A:3", "B:9")
VOCABULARY = ("A:0", "A:1", "A:3")
FLOORS = Policy(min_code_patients=20, min_pair_patients=11, margin_rounding=5, max_dim=128)


def counts(events: Any, pair_patients: Any, code_patients: Any) -> PairCounts:
    upper = sparse.csr_array(np.triu(np.asarray(events, dtype=np.int64)))
    who = upper.copy()
    who.data = np.asarray(pair_patients, dtype=np.int64)[upper.nonzero()]
    return PairCounts(upper, who, np.asarray(code_patients, dtype=np.int64), n_patients=90, n_events=900)


EVENTS = [[5, 9, 40, 7], [0, 3, 8, 6], [0, 0, 30, 2], [0, 0, 0, 1]]
PATIENTS = [[4, 9, 20, 7], [0, 3, 8, 6], [0, 0, 12, 2], [0, 0, 0, 1]]


def test_only_codes_of_the_vocabulary_count_and_small_counts_are_zero() -> None:
    found = over_vocabulary(counts(EVENTS, PATIENTS, [50, 30, 40, 20]), CODES, VOCABULARY, FLOORS)
    assert found.code_patients.tolist() == [0, 50, 40]
    assert list(zip(found.row, found.column, found.pairs, strict=True)) == [(1, 2, 40), (2, 2, 30)]
    assert (found.withheld_pairs, found.withheld_codes, found.other_codes) == (1, 0, 2)
    # Row sums of the symmetric matrix: a diagonal cell counts once, another in both rows.
    assert margins_vector(found).tolist() == [0, 50, 40, 0, 40, 70, 90]
    exact = over_vocabulary(counts(EVENTS, PATIENTS, [50, 30, 40, 20]), CODES, VOCABULARY, None)
    assert margins_vector(exact).tolist() == [0, 50, 40, 0, 45, 70, 90]


def test_a_code_below_its_floor_takes_its_pairs_with_it() -> None:
    found = over_vocabulary(counts(EVENTS, PATIENTS, [19, 30, 40, 20]), CODES, VOCABULARY, FLOORS)
    assert found.code_patients.tolist() == [0, 0, 40]
    assert found.pairs.tolist() == [30]
    assert found.withheld_codes == 1


def test_cells_follow_the_agreed_pairs() -> None:
    found = over_vocabulary(counts(EVENTS, PATIENTS, [50, 30, 40, 20]), CODES, VOCABULARY, None)
    agreed = agreed_cells([0, 100, 100], 1)
    assert list(zip(agreed.row, agreed.column, strict=True)) == [(1, 1), (1, 2), (2, 2)]
    assert cells_vector(found, agreed).tolist() == [5, 40, 30]
    none = over_vocabulary(counts(np.zeros((4, 4)), PATIENTS, [0] * 4), CODES, VOCABULARY, None)
    assert cells_vector(none, agreed).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=6, max_size=6), st.integers(0, 10))
def test_no_count_below_its_floor_reaches_the_vectors(small: list[int], code: int) -> None:
    """Law: whatever the small cells are, the vectors are the same."""
    events, patients = np.array(EVENTS), np.array(PATIENTS)
    for (i, j), n in zip([(0, 0), (0, 1), (0, 3), (1, 1), (1, 2), (2, 3)], small, strict=True):
        events[i, j], patients[i, j] = 3 * n, n
    base = over_vocabulary(counts(EVENTS, PATIENTS, [50, 8, 40, 20]), CODES, CODES, FLOORS)
    other = over_vocabulary(counts(events, patients, [50, code, 40, 20]), CODES, CODES, FLOORS)
    np.testing.assert_array_equal(margins_vector(base), margins_vector(other))
    agreed = agreed_cells([9, 9, 9, 9], 1)
    np.testing.assert_array_equal(cells_vector(base, agreed), cells_vector(other, agreed))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5, 2**40), min_size=1, max_size=30), st.integers(1, 1000))
def test_agreed_cells_are_the_same_for_any_order_of_computing(rows: list[int], minimum: int) -> None:
    """Law: for products below 2^53 the pairs are those of exact integers; always each once, in order."""
    r = [max(x, 0) for x in rows]
    exact = [
        (j, k) for j in range(len(r)) for k in range(j, len(r)) if r[j] * r[k] >= max(minimum * sum(r), 1)
    ]
    try:
        found = agreed_cells(rows, minimum)
    except FederationError:
        assert not exact
        return
    pairs = list(zip(found.row.tolist(), found.column.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    if max(r) ** 2 < 2**53:
        assert pairs == exact


def test_anchors_are_applied_before_counting_and_after_a_roll_up() -> None:
    data = Data.model_validate({"events": "x", "system": "L", "rollup": {"unmapped": "skip"}})
    anchors = {"L:1": "A:1", "L:9": "A:9"}
    changed, targets = with_anchors(data, None, anchors)
    assert targets == {"L:1": ("A:1",), "L:9": ("A:9",)}
    assert changed.rollup.unmapped == "keep"  # a site without a roll-up skips nothing
    changed, targets = with_anchors(data, {"P:1": ("L:1", "A:1", "L:2")}, anchors)
    assert targets == {"P:1": ("A:1", "L:2"), "L:1": ("A:1",), "L:9": ("A:9",)}
    assert changed.rollup.unmapped == "skip"
    assert with_anchors(data, None, {}) == (data, None)


def test_margins_come_back_from_their_vector() -> None:
    margins = read_margins(np.array([1, 2, 3, 40, 50, 60, 7]))
    assert (margins.code_patients, margins.rows, margins.patients) == ((1, 2, 3), (40, 50, 60), 7)


# --- Messages ------------------------------------------------------------------------------------------


def test_steps_of_different_sums_have_different_names() -> None:
    names = {step_id(n, a, s) for n in ("a", "a-1", "a-1-2") for a in (1, 2) for s in ("offer", "close")}  # type: ignore[arg-type]
    assert len(names) == 12
    assert len(step_id("x" * 24, 1000, "close")) <= 32


def test_answers_come_back_and_cut_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answer"
    write_answer(path, b"message", np.arange(3, dtype=np.uint64))
    found = read_answer(path)
    assert found.message == b"message"
    assert np.frombuffer(found.vector, "<u8").tolist() == [0, 1, 2]
    write_answer(path, b"message")
    assert len(read_answer(path).vector) == 0
    for data in (b"", b"\0\0", b"\0\0\0\x08message", b"\xff\xff\xff\xff"):
        path.write_bytes(data)
        with pytest.raises(ProtocolError, match="cut short"):
            read_answer(path)


def test_a_roster_says_in_what_it_differs() -> None:
    a, b, c = (keys(name).public() for name in ("a", "b", "c"))
    roster = Roster(study_digest="0" * 64, keys={"lake": a, "north": b, "south": c})
    assert len(roster.fingerprint.replace(" ", "")) == 40
    assert roster_differences(roster, roster.keys) == []
    (line,) = roster_differences(roster, {"lake": a, "north": c, "south": c})
    assert line.startswith(f"north: {b.fingerprint} here, {c.fingerprint} there")
    assert roster_differences(roster, {"lake": a, "north": b}) == [
        f"south: {c.fingerprint} here, absent there"
    ]


# --- The study -----------------------------------------------------------------------------------------


def test_a_study_says_what_travels_how() -> None:
    table = study().model_dump(mode="json")
    sealed = parse_study(table, "x")
    assert (sealed.sharing.embeddings, sealed.sharing.counts) == ("sealed", "none")
    assert sealed.sharing.minimum_summed_sites == 5
    summed = parse_study(
        table | {"sharing": {"counts": "summed", "minimum_summed_sites": len(sealed.sites)}}
        if len(sealed.sites) >= 3
        else table | {"sites": ["a", "b", "c"], "sharing": {"counts": "summed", "minimum_summed_sites": 3}},
        "x",
    )
    assert "sharing.counts: none here, summed there" in study_differences(sealed, summed)
    assert summed.digest != sealed.digest
    for wrong, reason in (
        ({"embeddings": "none"}, "nothing is shared"),
        ({"counts": "summed", "minimum_summed_sites": 400}, "but there are"),
        ({"counts": "summed", "minimum_summed_sites": 2}, "greater than or equal to 3"),
    ):
        with pytest.raises(StudyError, match=reason):
            parse_study(table | {"sharing": wrong}, "x")
