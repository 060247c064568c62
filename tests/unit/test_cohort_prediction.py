"""Foreseeing an outcome: whose codes count, how it is scored, and that a signal in the vectors is found."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from protocol.errors import UsageError
from site_agent.cli import app
from site_agent.cohort.histories import LEAST_OUTCOMES, LONGEST, Histories, histories
from site_agent.cohort.precision import average_precision, intervals
from site_agent.cohort.prediction import HARMONISED, RANDOM, TFIDF, compare_views, tfidf_scores
from tests.unit.test_cohort import make_home


@settings(deadline=None)  # scikit-learn is slow on a busy machine
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_average_precision_is_that_of_scikit_learn(pairs):
    positive, score = np.array([p for p, _ in pairs]), np.array([s for _, s in pairs], dtype=float)
    if positive.any():
        assert average_precision(positive, score) == pytest.approx(average_precision_score(positive, score))
    else:
        with pytest.raises(ValueError, match="positive"):
            average_precision(positive, score)


def test_intervals_of_a_good_and_a_useless_score():
    rng = np.random.default_rng(0)
    positive = rng.random(600) < 0.3
    scores = {"good": positive + rng.normal(0, 0.5, 600), "useless": rng.normal(size=600)}
    areas, gains = intervals(positive, scores, "good", repeats=200)
    for area in areas.values():
        assert area.low < area.value < area.high
    assert areas["useless"].low < 0.3 < areas["useless"].high
    assert gains["useless"].low > 0.2
    assert set(gains) == {"useless"}


def part(rows: list[tuple[int, int, int]]) -> tuple[Any, Any, Any]:
    patient, day, code = np.array(sorted(rows)).T
    return patient.astype(np.int64), day.astype(np.int32), code.astype(np.int32)


def people(n: int = LEAST_OUTCOMES) -> list[tuple[int, int, int]]:
    """Even patients have the outcome 9 after day 100, odd ones another code."""
    return [row for p in range(2 * n) for row in ((p, 10, 1), (p, 50, 2), (p, 50, 2), (p, 100, 9 - p % 2))]


def test_only_what_came_before_the_day_is_told():
    nobody = tuple(np.zeros(0, dtype=kind) for kind in (np.int64, np.int32, np.int32))
    extra = [
        (1000, 10, 9), (1000, 150, 9),  # had it before
        (1001, 10, 1),  # nothing afterwards
        (1002, 150, 9),  # nothing before
        *((1003, d, 3) for d in range(2 * LONGEST)), (1003, 100, 1),  # too long
    ]  # fmt: skip
    outcome = np.arange(10) == 9
    found = histories([part(people()), nobody, part(extra)], 100, outcome)
    assert found.had == 1
    assert len(found.outcome) == 2 * LEAST_OUTCOMES + 1
    assert found.code[: found.start[1]].tolist() == [1, 2]
    assert found.outcome[:4].tolist() == [True, False, True, False]
    assert found.start[-1] - found.start[-2] == LONGEST
    assert not np.isin(found.code, [8, 9]).any()


def test_too_few_outcomes_are_refused():
    with pytest.raises(UsageError, match="Too few patients to predict: 49 have"):
        histories([part(people(LEAST_OUTCOMES - 1))], 100, np.arange(10) == 9)


def cohort(seed: int, n: int = 1200) -> tuple[Histories, np.ndarray]:
    """60 codes; those whose vectors point along the first axis bring the outcome on. Each patient has five of them."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((60, 6))
    vectors[:, 0] = np.where(np.arange(60) < 20, 2.0, -1.0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    code = rng.integers(60, size=(n, 5))
    odds = 1.5 * ((code < 20).sum(axis=1) - 2.5)
    outcome = rng.random(n) < 1 / (1 + np.exp(-odds))
    return Histories(5 * np.arange(n + 1), code.ravel().astype(np.int32), outcome), vectors.astype(np.float32)


def test_vectors_that_tell_the_outcome_are_worth_more_than_chance():
    pytest.importorskip("torch")
    found, vectors = cohort(0)
    told = compare_views(found, vectors)
    assert sum(told.patients) == 1200
    assert set(told.areas) == {HARMONISED, RANDOM, TFIDF}
    share = told.with_outcome / told.patients[2]
    assert told.areas[HARMONISED].low > share + 0.2
    assert told.areas[TFIDF].low > share
    assert told == compare_views(found, vectors), "equal input gives an equal answer"


def test_an_outcome_that_nothing_tells_is_not_foreseen():
    pytest.importorskip("torch")
    found, vectors = cohort(1)
    rng = np.random.default_rng(0)
    blind = Histories(found.start, found.code, rng.permutation(found.outcome))
    told = compare_views(blind, vectors)
    share = told.with_outcome / told.patients[2]
    assert all(area.low < share + 0.05 for area in told.areas.values())


def test_padding_changes_no_score():
    torch = pytest.importorskip("torch")
    from site_agent.cohort.encoder import Encoder

    torch.manual_seed(0)
    model = Encoder(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)).eval()
    with torch.no_grad():
        short = model(torch.tensor([[1, 2]]))
        long = model(torch.tensor([[1, 2, -1, -1], [3, 4, 5, 6]]))[:1]
    torch.testing.assert_close(short, long, rtol=0, atol=1e-5)
    assert not model.table.requires_grad


def test_tfidf_scores_do_not_see_the_patients_asked_about():
    found, _ = cohort(2, 600)
    learn, stop, ask = np.split(np.arange(600), [360, 480])
    other = Histories(found.start, found.code, np.r_[found.outcome[:480], ~found.outcome[480:]])
    scores = [tfidf_scores(h, 60, learn, stop, ask) for h in (found, other)]
    np.testing.assert_array_equal(*scores)


def test_command_from_events_to_a_table(tmp_path: Path):
    pytest.importorskip("torch")
    home = make_home(tmp_path)
    rows = []
    for i in range(160):
        rows += [(f"P{i:03}", date(2020, 1, 1), "I50.1" if i % 2 else "N18.3")]
        rows += [(f"P{i:03}", date(2021, 2, 1), "I50.9" if i % 2 else "N18.5")]
    patient, day, code = zip(*rows, strict=True)
    pq.write_table(pa.table({"patient": patient, "date": day, "code": code}), tmp_path / "events.parquet")
    command = ["cohort", "predict", "--outcome", "I50.9", "--at", "2021-01-01", "--home", str(home.folder)]
    said = CliRunner().invoke(app, [*command, "--json"])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert told["areas"][TFIDF]["value"] == 1.0
    assert sum(told["patients"]) == 160
    assert "P00" not in said.stdout
    assert not list(home.work.glob("predict*")), "coded events are removed"
    table = CliRunner().invoke(app, command)
    assert "harmonised less this" in table.stdout
    wrong = CliRunner().invoke(app, [*command[:-4], "--at", "soon", *command[-2:]])
    assert isinstance(wrong.exception, UsageError) or "is no date" in wrong.output


def test_without_torch_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    from site_agent.cohort.prediction import need_torch

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="Prediction needs torch") as raised:
        need_torch()
    assert "smile-federation[predict]" in str(raised.value)


def test_the_commands_start_without_torch():
    script = "import sys, site_agent.cli, site_agent.run, site_agent.cohort; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
