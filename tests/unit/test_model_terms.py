"""Terms of the bound that others write: what the fit makes of them, and what it makes sure of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from coordinator.model import check_term, fit_smile
from coordinator.simulation.generate import simulate_paper

QUICK: dict[str, Any] = {"starts": ("average",), "rounds": 1, "iterations": 15}


@dataclass(frozen=True)
class Link:
    """Pairs of codes of which some are linked: logit P = a + b E[u_i]'E[u_j], with an intercept of its own."""

    one: Tensor
    other: Tensor
    linked: Tensor
    slope: float = 4.0
    intercept: float = 0.0
    weight: float = 1.0
    wrong: float = 1.0

    def fitted(self, mean: Tensor) -> Link:
        a = self.intercept
        for _ in range(5):
            chance = torch.sigmoid(a + self._cosine(mean))
            a += float((self.linked - chance).sum() / (chance * (1 - chance)).sum().clamp_min(1e-6))
        return replace(self, intercept=a)

    def value(self, mean: Tensor) -> float:
        logit = self.intercept + self._cosine(mean)
        return self.weight * float((self.linked * logit + logsigmoid(-logit)).sum())

    def evidence(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        chance = torch.sigmoid(self.intercept + self._cosine(mean))
        pull = self.wrong * self.weight * self.slope * (self.linked - chance)
        bend = self.weight * self.slope**2 * chance * (1 - chance)
        slope, trace = torch.zeros_like(mean), mean.new_zeros(len(mean))
        for i, j in ((self.one, self.other), (self.other, self.one)):
            slope.index_add_(0, i, pull[:, None] * mean[j])
            trace.index_add_(0, i, bend * (mean[j] ** 2).sum(dim=1))
        return slope, trace

    def _cosine(self, mean: Tensor) -> Tensor:
        return self.slope * (mean[self.one] * mean[self.other]).sum(dim=1)


@pytest.fixture(scope="module")
def paper() -> Any:
    return simulate_paper(0, n_codes=120, n_clusters=12, columns=20)


def link(paper: Any, **how: Any) -> Link:
    rng = np.random.default_rng(0)
    i = rng.integers(120, size=400)
    j = (i + 1 + rng.integers(119, size=400)) % 120
    linked = np.sum(paper.embedding[i] * paper.embedding[j], axis=1) > 0.3
    parts = (torch.from_numpy(i), torch.from_numpy(j), torch.from_numpy(linked.astype(np.float64)))
    return Link(*parts, **how)


def fit(paper: Any, **how: Any) -> Any:
    return fit_smile(paper.sources, n_codes=120, n_clusters=12, dim=8, **QUICK, **how)


def test_a_term_moves_the_fit_where_it_says_and_the_bound_never_falls(paper: Any) -> None:
    term = link(paper, weight=3.0)
    check_term(term, 120, 8)
    plain, moved = fit(paper), fit(paper, terms=[term])
    pairs = np.stack([term.one.numpy(), term.other.numpy()], axis=1)
    yes = term.linked.numpy().astype(bool)

    def apart(found: Any) -> float:
        likeness = found.similarity(pairs)
        return float(likeness[yes].mean() - likeness[~yes].mean())

    assert apart(moved) > apart(plain) + 0.02
    assert (np.diff(moved.history) >= -1e-8 * abs(moved.history[0])).all()


def test_a_term_of_no_weight_changes_nothing(paper: Any) -> None:
    plain, same = fit(paper), fit(paper, terms=[link(paper, weight=0.0)])
    np.testing.assert_array_equal(plain.embedding, same.embedding)
    assert plain.history == same.history


def test_a_wrong_gradient_never_lowers_the_bound(paper: Any) -> None:
    moved = fit(paper, terms=[link(paper, weight=3.0, wrong=-1.0)])
    assert (np.diff(moved.history) >= -1e-8 * abs(moved.history[0])).all()


@dataclass(frozen=True)
class Worse(Link):
    """Refits its intercept to a value that is worse."""

    def fitted(self, mean: Tensor) -> Worse:
        return replace(self, intercept=self.intercept + 5.0)


@dataclass(frozen=True)
class Flat(Link):
    """Gives a trace below 0."""

    def evidence(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        slope, trace = super().evidence(mean)
        return slope, -trace


@dataclass(frozen=True)
class Short(Link):
    """Gives a gradient of another shape."""

    def evidence(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        slope, trace = super().evidence(mean)
        return slope[1:], trace


@pytest.mark.parametrize(
    ("kind", "how", "reason"),
    [
        (Link, {"wrong": -1.0}, "changes by"),
        (Worse, {}, r"fitted\(\) lowers"),
        (Flat, {}, "trace below 0"),
        (Short, {}, "gives"),
    ],
)
def test_a_term_that_breaks_its_word_is_named(paper: Any, kind: type[Link], how: Any, reason: str) -> None:
    good = link(paper, **how)
    term = kind(good.one, good.other, good.linked, wrong=good.wrong)
    with pytest.raises(ValueError, match=reason):
        check_term(term, 120, 8)


def test_a_refit_that_lowers_the_value_is_not_taken(paper: Any) -> None:
    good = link(paper)
    moved = fit(paper, terms=[Worse(good.one, good.other, good.linked)])
    assert (np.diff(moved.history) >= -1e-8 * abs(moved.history[0])).all()


def test_terms_are_for_the_variational_fit(paper: Any) -> None:
    with pytest.raises(ValueError, match="variational"):
        fit_smile(paper.sources, n_codes=120, n_clusters=12, dim=8, fit="plug-in", terms=[link(paper)])
