"""Differential privacy of summed statistics: bounded contributions, Gaussian noise, and a budget that ends.

Off unless the study says `[differential_privacy] enabled = true`, and then only for sums: the unit
is a patient, each contributes at most `codes_per_patient` of its codes, the noise is OpenDP's
discrete Gaussian, the accounting Google's dp-accounting. Each site adds all of the noise that its
own patients need, so that the promise holds against the coordinator and all other sites together;
the sum of n sites then has n times the variance that one trusted adder would need.
"""

from site_agent.budget.accounting import noise_multiplier, spent_epsilon
from site_agent.budget.bounding import keep_codes, sensitivity
from site_agent.budget.ledger import BudgetLedger, Spending
from site_agent.budget.noise import add_noise, noisy

__all__ = [
    "BudgetLedger",
    "Spending",
    "add_noise",
    "keep_codes",
    "noise_multiplier",
    "noisy",
    "sensitivity",
    "spent_epsilon",
]
