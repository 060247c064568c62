"""What noise a release needs, and what releases have cost together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from protocol.errors import UsageError


def noise_multiplier(epsilon: float, delta: float) -> float:
    """The least standard deviation, in units of the L2 sensitivity, for which one Gaussian release is (epsilon, delta)-DP.

    Source: Balle and Wang 2018 (Improving the Gaussian mechanism, ICML), theorem 8.

    Raises:
        UsageError: the extra `privacy` is not installed.
    """
    return float(_library().get_sigma_gaussian(epsilon, delta))


def spent_epsilon(multipliers: Iterable[float], delta: float) -> float:
    """The epsilon that releases with these noise multipliers have cost together at this delta; 0 for none.

    Gaussian releases with multipliers z_1 ... z_k are together as telling as a single one with
    1 / z^2 = sum of 1 / z_i^2: no bound, but an equality.

    Source: Dong, Roth, Su 2022 (Gaussian differential privacy, JRSS B), corollary 3.3.

    Raises:
        UsageError: the extra `privacy` is not installed.
    """
    together = math.fsum(z**-2 for z in multipliers)
    return float(_library().get_epsilon_gaussian(together**-0.5, delta)) if together else 0.0


def _library() -> Any:
    try:
        # An extra.
        import dp_accounting  # noqa: PLC0415
    except ImportError:
        raise UsageError(
            "The study asks for differential privacy, and its accounting is not installed",
            why="the library dp-accounting belongs to the extra `privacy`",
            do="Install smile-federation[site,privacy]",
        ) from None
    return dp_accounting
