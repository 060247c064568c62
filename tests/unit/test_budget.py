"""The privacy budget: bounded contributions, noise of the right size, and a budget that ends."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from typer.testing import CliRunner

from protocol.errors import FederationError, GateError
from protocol.sections import DifferentialPrivacy
from site_agent.budget import (
    BudgetLedger,
    add_noise,
    keep_codes,
    noise_multiplier,
    sensitivity,
    spent_epsilon,
)
from site_agent.cli import app
from tests.sum_federation import STUDY, Consortium

SESSION = "0" * 64


def delta_of(epsilon: float, multiplier: float) -> float:
    """The exact delta of one Gaussian release: equation 6 of Balle and Wang 2018."""
    a, b = 1 / (2 * multiplier), epsilon * multiplier
    return float(norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_noise_is_what_the_exact_formula_asks_for(epsilon: float) -> None:
    multiplier = noise_multiplier(epsilon, 1e-6)
    assert delta_of(epsilon, multiplier) <= 1e-6 * 1.001
    assert delta_of(epsilon, multiplier * 0.99) > 1e-6


def test_releases_cost_less_together_than_one_by_one() -> None:
    one = spent_epsilon([2.0], 1e-6)
    four = spent_epsilon([2.0] * 4, 1e-6)
    assert one < four < 4 * one
    # Four releases with noise 2 are one release with noise 1.
    assert four == pytest.approx(spent_epsilon([1.0], 1e-6), rel=1e-2)


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12)), max_size=60),
    most=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_no_patient_keeps_more_codes_than_allowed(
    events: list[tuple[int, int]], most: int, seed: int
) -> None:
    events = sorted(events, key=lambda e: e[0])
    patient = np.array([e[0] for e in events], dtype=np.int64)
    code = np.array([e[1] for e in events], dtype=np.int32)
    kept = keep_codes(patient, code, most, np.random.default_rng(seed))
    for p in set(patient.tolist()):
        own = patient == p
        all_codes, kept_codes = set(code[own].tolist()), set(code[own & kept].tolist())
        assert len(kept_codes) == min(most, len(all_codes))
        # A kept code keeps all of its events.
        assert int((own & kept).sum()) == sum(int(c) in kept_codes for c in code[own])


def test_every_code_of_a_patient_is_as_likely_to_stay() -> None:
    rng = np.random.default_rng(0)
    code = np.arange(10, dtype=np.int32)
    found = sum(keep_codes(np.zeros(10, dtype=np.int64), code, 4, rng).astype(int) for _ in range(4000))
    # Binomial(4000, .4): standard deviation 31.
    assert np.all(np.abs(found - 1600) < 5 * 31)


def test_one_patient_moves_counts_by_no_more_than_the_sensitivity() -> None:
    k = 7
    codes = np.arange(k)
    margins = np.zeros(21)
    margins[codes] += 1
    margins[20] += 1  # the number of patients
    cells = np.zeros((20, 20))
    cells[np.ix_(codes, codes)] += np.triu(np.ones((k, k)))
    assert np.linalg.norm(margins) == pytest.approx(sensitivity("margins", k))
    assert np.linalg.norm(cells) == pytest.approx(sensitivity("cells", k))


def test_the_noise_has_the_stated_size_and_no_bias() -> None:
    values = np.arange(4000, dtype=np.int64) * 1000
    noise = add_noise(values, 30.0) - values
    assert abs(noise.mean()) < 5 * 30 / math.sqrt(4000)
    assert noise.std() == pytest.approx(30, rel=0.06)
    assert len(set(noise.tolist())) > 50


def test_the_budget_ends_and_a_refusal_costs_nothing(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "budget.jsonl")
    rule = DifferentialPrivacy(enabled=True, epsilon=2.0, release_epsilon=1.0)
    spent: list[float] = []
    with pytest.raises(GateError, match="budget of this site does not reach"):
        spent.extend(ledger.spend(rule, statistic="margins", session=SESSION).epsilon for _ in range(50))
    assert 2 <= len(spent) < 50
    assert spent == sorted(spent)
    assert spent[0] == pytest.approx(1.0, rel=0.01)
    assert ledger.spent(rule.delta) == pytest.approx(spent[-1])
    assert spent[-1] <= 2.0


def test_a_new_study_does_not_give_the_budget_back(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "budget.jsonl")
    ledger.spend(DifferentialPrivacy(epsilon=3.0, release_epsilon=3.0), statistic="cells", session=SESSION)
    with pytest.raises(GateError):
        ledger.spend(
            DifferentialPrivacy(epsilon=3.0, release_epsilon=0.5), statistic="cells", session=SESSION
        )


def test_an_altered_budget_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    rule = DifferentialPrivacy(epsilon=5.0, release_epsilon=1.0)
    for _ in range(2):
        BudgetLedger(path).spend(rule, statistic="margins", session=SESSION)
    path.write_bytes(path.read_bytes().replace(b'"noise_multiplier":"', b'"noise_multiplier":"9', 1))
    with pytest.raises(FederationError, match="is broken at line 2"):
        BudgetLedger(path).spent(1e-6)


def test_the_command_shows_charges_and_what_is_left(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path / "all", study=STUDY + "[differential_privacy]\nenabled = true\n")
    home = consortium.homes["lake"]
    rule = consortium.study.differential_privacy
    BudgetLedger(home.folder / "budget.jsonl").spend(rule, statistic="margins", session=SESSION)
    done = CliRunner().invoke(app, ["sums", "budget", "--home", str(home.folder), "--json"])
    found = json.loads(done.stdout)
    assert found["enabled"]
    assert found["spent"] == pytest.approx(rule.release_epsilon)
    assert [c["statistic"] for c in found["charges"]] == ["margins"]
    plain = CliRunner().invoke(app, ["sums", "budget", "--home", str(home.folder)])
    assert "Spent: epsilon 1.000 of 3" in plain.stdout
