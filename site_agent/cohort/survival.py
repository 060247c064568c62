"""Survival from times with and without a death: Kaplan and Meier's estimate, Greenwood's variance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Survival:
    """A survival curve: a step at each time of a death.

    Attributes:
        time: (k,) distinct times of deaths, ascending, in days.
        share: (k,) of patients who live longer.
        low: (k,) lower limit of the pointwise interval.
        high: (k,) upper limit.
        at_risk: (k,) patients alive and observed just before.
        deaths: (k,) at that time.
        patients: all of them.
        longest: the longest time that was observed; the curve says nothing beyond.
    """

    time: Ints
    share: Floats
    low: Floats
    high: Floats
    at_risk: Ints
    deaths: Ints
    patients: int
    longest: int

    def at(self, day: int) -> tuple[float, float, float] | None:
        """Share, lower and upper limit after so many days; None where nobody was observed so long."""
        if day > self.longest:
            return None
        place = int(np.searchsorted(self.time, day, side="right")) - 1
        if place < 0:
            return (1.0, 1.0, 1.0)
        return (float(self.share[place]), float(self.low[place]), float(self.high[place]))

    @property
    def median(self) -> int | None:
        """The first day at which at most half are alive; None if that was not observed."""
        reached = np.flatnonzero(self.share <= 0.5 + 1e-12)  # products of ratios round
        return int(self.time[reached[0]]) if reached.size else None


def kaplan_meier(time: npt.ArrayLike, died: npt.ArrayLike, *, level: float = 0.95) -> Survival:
    """The product-limit estimate with Greenwood's variance, and limits on the scale log(-log S), which keeps them in [0, 1].

    S(t) = prod_{t_i <= t} (1 - d_i / n_i), var(log S) = sum d_i / (n_i (n_i - d_i)). Who is censored at t_i counts as
    observed at t_i. Where S falls to 0 the variance has no value, and the limits are those of the step before, down to 0.

    Args:
        time: (n,) days of observation, 0 or more.
        died: (n,) whether it ended by death.
        level: of each interval alone.

    Law: without censoring S is the share alive, and Greenwood's variance that of a binomial share.
    Source: Kaplan and Meier 1958; Greenwood 1926; Kalbfleisch and Prentice 2002, section 1.4.

    Raises:
        ValueError: a negative time.
    """
    t, d = np.asarray(time, dtype=np.int64), np.asarray(died, dtype=bool)
    if (t < 0).any():
        raise ValueError("times must be 0 or more")
    steps, deaths = np.unique(t[d], return_counts=True)
    at_risk = len(t) - np.searchsorted(np.sort(t), steps, side="left")
    share = np.asarray(np.cumprod(1.0 - deaths / at_risk), dtype=np.float64)
    left = at_risk - deaths
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(deaths / (at_risk * left.astype(np.float64)))
        log = np.log(share)
        wide = float(norm.ppf(0.5 + level / 2)) * np.sqrt(variance) / log
        low, high = share ** np.exp(-wide), share ** np.exp(wide)
    if left.size and left[-1] == 0:
        low[-1], high[-1] = 0.0, high[-2] if len(high) > 1 else 1.0
    return Survival(steps, share, low, high, at_risk, deaths.astype(np.int64), len(t), int(t.max(initial=0)))
