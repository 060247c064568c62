"""The budget: an append-only record of what noisy sums have cost this site's patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import GateError
from protocol.sections import DifferentialPrivacy
from site_agent.budget.accounting import noise_multiplier, spent_epsilon
from site_agent.budget.bounding import Statistic, sensitivity
from site_agent.ledger import Ledger


@dataclass(frozen=True)
class Spending:
    """One noisy release.

    Attributes:
        multiplier: standard deviation of the noise in units of the sensitivity.
        scale: standard deviation of the noise, in patients.
        epsilon: what this and all earlier releases have cost together, at the study's delta.
    """

    multiplier: float
    scale: float
    epsilon: float


@dataclass(frozen=True)
class BudgetLedger:
    """The file `budget.jsonl` of a site, hash-chained as the ledger is.

    It outlives a study: patients do not get their privacy back when a study file changes.
    """

    path: Path

    def spent(self, delta: float) -> float:
        """Epsilon of all releases so far.

        Raises:
            FederationError: the file was altered.
            UsageError: the extra `privacy` is not installed.
        """
        return spent_epsilon(self._multipliers(), delta)

    def spend(self, rule: DifferentialPrivacy, *, statistic: Statistic, session: str) -> Spending:
        """Charge one release of counts; the charge is on the disk before there is any noise to add.

        A release that is charged and then never sent stays charged: nobody can know who saw it.

        Args:
            rule: what the study allows.
            statistic: counts of codes, or of pairs of codes.
            session: digest of the sum's participant list.

        Raises:
            GateError: the budget does not reach; nothing was charged.
            FederationError: the file was altered.
            UsageError: the extra `privacy` is not installed.
        """
        multiplier = noise_multiplier(rule.release_epsilon, rule.delta)
        after = spent_epsilon([*self._multipliers(), multiplier], rule.delta)
        if after > rule.epsilon * (1 + 1e-9):  # the last digit of two ways to the same number
            before = self.spent(rule.delta)
            raise GateError(
                "The privacy budget of this site does not reach for another sum",
                (
                    f"epsilon {before:.2f} of {rule.epsilon:g} is spent at delta {rule.delta:g}",
                    f"this sum would bring it to {after:.2f}",
                ),
                do="Agree on a larger budget in the study, or do without this sum",
            )
        Ledger(self.path).append(
            "spent",
            statistic=statistic,
            session=session,
            noise_multiplier=repr(multiplier),
            codes_per_patient=rule.codes_per_patient,
        )
        scale = multiplier * sensitivity(statistic, rule.codes_per_patient)
        return Spending(multiplier, scale, after)

    def _multipliers(self) -> list[float]:
        entries = Ledger(self.path).verify()
        return [float(e.facts["noise_multiplier"]) for e in entries if e.event == "spent"]
