"""Can a reader of a release's evidence find how many patients a site has with a code? An attack by one who knows all else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest

from coordinator import estimate as estimating
from coordinator.estimate import estimate
from coordinator.exports.tables import CLUE_STEP, SHARE_STEP, shown_clues, shown_share
from coordinator.linking import Linked, self_train
from coordinator.mapping import Clues
from coordinator.reasons import Reasons
from coordinator.union import build_union
from tests.unit import test_estimate as small

Shown = Callable[[Clues], dict[str, float]]
GRID = np.linspace(-4.0, 4.0, 1601)  # log share of patients, about the truth


def fitted(monkeypatch: pytest.MonkeyPatch) -> tuple[Linked, Reasons]:
    """A fit of three sites, 300 codes each, and all that it weighed."""
    found: list[Linked] = []

    def kept(*args: object, **named: object) -> Linked:
        found.append(self_train(*args, **named))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(estimating, "self_train", kept)
    monkeypatch.setattr(small, "N", 300)
    given = small.consortium(15, noise=0.5)
    result = estimate(given, build_union(given, standard="ICD10CM"), small.spec(), small.DIM)
    return found[0], result.explain()


def places(linked: Linked, reasons: Reasons, i: int, *, fine: bool) -> np.ndarray:
    """(G,) which values of a code's log share fit all that was published of it.

    The attacker knows the clue's form a|d| + b d^2 + c d + e with its constants, and every candidate's share of patients.
    """
    row, (one, other) = int(linked.clues.local[i]), linked.clues.support
    near = linked.score[i].argsort(kind="stable")[::-1][:6]
    known = _terms(one[i] - other)
    constants = np.linalg.lstsq(known, linked.features["support"][i], rcond=None)[0]
    weight = dict(zip(linked.fusion.names, linked.fusion.weights, strict=True))["support"]
    said = _terms((one[i] + GRID)[:, None] - other[None]) @ constants * weight
    clue = said[:, near] - said.mean(axis=1, keepdims=True)
    clues = [reasons.clues_of(row, rank) for rank in range(len(near))]
    shares = [float(reasons.share[row, rank]) for rank in range(len(near))]
    if fine:
        seen = np.array([round(c["support"] / CLUE_STEP) * CLUE_STEP for c in clues])
        return np.asarray((np.abs(clue - seen) <= CLUE_STEP / 2 + 1e-9).all(axis=1))
    shown = [dict(shown_clues(c)) for c in clues]
    side = np.array([[dict(shown_clues({"support": v}))["support"] for v in line] for line in clue])
    fits = (side == np.array([c["support"] for c in shown])).all(axis=1)
    rest = [sum(v for name, v in c.items() if name != "support") for c in shown]
    slack = CLUE_STEP * (len(shown[0]) - 1)  # of the difference of two sums of rounded clues
    low = [np.log(max(shown_share(s) - SHARE_STEP / 2, 1e-12)) for s in shares]
    high = [np.log(shown_share(s) + SHARE_STEP / 2) for s in shares]
    for j, k in combinations(range(len(near)), 2):
        odds = clue[:, j] - clue[:, k] + rest[j] - rest[k]
        fits &= (odds + slack >= low[j] - high[k] - 1e-9) & (odds - slack <= high[j] - low[k] + 1e-9)
    return np.asarray(fits)


def _terms(d: np.ndarray) -> np.ndarray:
    return np.stack([np.abs(d), d**2, d, np.ones_like(d)], axis=-1)


def test_published_evidence_leaves_counts_in_the_dark(monkeypatch: pytest.MonkeyPatch) -> None:
    linked, reasons = fitted(monkeypatch)
    truth, step = len(GRID) // 2, GRID[1] - GRID[0]
    wide, narrow = [], []
    for i in range(0, len(linked.clues.local), 6):
        fits = places(linked, reasons, i, fine=False)
        assert fits[truth]  # else the attack would be wrong
        wide.append(fits.sum() * step)
        narrow.append(places(linked, reasons, i, fine=True).sum() * step)
    median, tenth = np.median(wide), np.quantile(wide, 0.1)
    print(f"\nlog share known within {median:.2f} (median), {tenth:.2f} (a tenth of the codes)")
    print(f"if the clue `support` were published in halves: {np.median(narrow):.3f}")
    assert median > 0.15
    assert tenth > 0.08
    assert np.median(narrow) < 0.05
