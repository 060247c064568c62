"""How much more often a code is had in a cohort than in the rest, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Lift:
    """Ratios of shares, for n codes.

    Attributes:
        ratio: (n,) share of the cohort over share of the rest.
        low: (n,) lower limit of the interval.
        high: (n,) upper limit.
    """

    ratio: Floats
    low: Floats
    high: Floats


def lift(
    having: npt.ArrayLike, cohort: int, rest_having: npt.ArrayLike, rest: int, *, level: float = 0.95
) -> Lift:
    """Risk ratios with the log interval; half a patient is added to every count, so that none is without bounds.

    ratio = ((a + .5) / (n + .5)) / ((b + .5) / (m + .5)), and
    se(log ratio)^2 = 1/(a + .5) - 1/(n + .5) + 1/(b + .5) - 1/(m + .5).

    Args:
        having: (k,) a: patients of the cohort with each code.
        cohort: n: patients of the cohort.
        rest_having: (k,) b: the same in the rest.
        rest: m: patients of the rest.
        level: of each interval alone; they do not hold together for all codes.

    Law: cohort and rest exchanged give the reciprocal.
    Source: Walter 1975; Katz et al. 1978; coverage in Agresti 2013, section 3.1.

    Raises:
        ValueError: more patients with a code than patients.
    """
    a, b = np.asarray(having, dtype=np.float64), np.asarray(rest_having, dtype=np.float64)
    if not (((a >= 0) & (a <= cohort)).all() and ((b >= 0) & (b <= rest)).all()):
        raise ValueError("patients with a code must be between 0 and all patients")
    n, m = cohort + 0.5, rest + 0.5
    log = np.log((a + 0.5) / n) - np.log((b + 0.5) / m)
    error = np.sqrt(np.maximum(1 / (a + 0.5) - 1 / n + 1 / (b + 0.5) - 1 / m, 0.0))
    wide = float(norm.ppf(0.5 + level / 2)) * error
    return Lift(np.exp(log), np.exp(log - wide), np.exp(log + wide))
