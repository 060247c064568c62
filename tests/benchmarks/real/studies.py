"""Code groups, indications and laboratory codes: what is measured on each data set, one seed at a time."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.real.groups import fitted, phecode_scores
from tests.benchmarks.real.indications import displays, indication_scores
from tests.benchmarks.real.labs import lab_scores
from tests.benchmarks.real.recoded import synthea, uci
from tests.benchmarks.real.regimes import Cell, Row, clues, problem

Tables = dict[str, dict[str, Row]]


def claims_study(seed: int) -> Tables:
    """Phecodes on the claims under three code systems, 10 % anchors, no text."""
    task = problem(Cell(seed, True, 0.1, "no text"))
    known = clues(task)
    return {"phecodes": phecode_scores(task, fitted(task, known), known, "10", seed)}


def uci_study(seed: int) -> Tables:
    """Phecodes and indications on UCI, a third of the codes recoded."""
    task = uci(seed)
    known = clues(task)
    methods = fitted(task, known)
    return {
        "phecodes": phecode_scores(task, methods, known, "9", seed),
        "indications": indication_scores(task, methods, known, {}, seed),
    }


def synthea_study(seed: int) -> Tables:
    """Indications and laboratory codes on Synthea's events, a third of the codes recoded."""
    task = synthea(seed)
    known = clues(task)
    methods = fitted(task, known)
    return {
        "indications": indication_scores(task, methods, known, displays(), seed),
        "labs": lab_scores(task, methods, known, seed),
    }


STUDIES: dict[str, Callable[[int], Tables]] = {
    "claims": claims_study,
    "UCI": uci_study,
    "Synthea": synthea_study,
}
