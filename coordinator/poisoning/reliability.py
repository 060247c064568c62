"""How much a site's release tells, beside the number of patients that it states.

With more patients a site's cosines grow more reliable as a test does when it is made longer (Spearman 1910,
Brown 1910): rho_s^2 = n_s / (n_s + c). Two sites that measure the same likeness with independent errors agree as

    r_st = rho_s rho_t,   logit rho_s^2 = log n_s - log c + d_s

(Spearman 1904; triple collocation, Stoffelen 1998). d_s is 0 for a site whose release tells what its patients
let expect; exp(d_s) is the share of its patients that the release is worth. A release that was mixed with noise
in equal parts is worth an eighth of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from coordinator.poisoning.agreement import Agreement

Array = npt.NDArray[np.float64]

_HONEST = 0.5  # scale of d_s between honest sites: hospitals differ by more than their numbers of patients
_TAIL = 1.5  # how fast a larger |d_s| becomes less likely: p(d) ~ (1 + |d| / 0.5)^-1.5
_MODEL_ERROR = 0.1  # of atanh r_st: that two sites agree better or worse than the product says
_CORNER = 0.02  # where |d| is rounded off, so that it has a slope
_STARTS = 8


class Reliability(NamedTuple):
    """Result of `reliability`.

    Attributes:
        worth: (S,) exp(d_s); nan for a rater without a partner.
        half: c, the number of patients at which rho^2 is one half.
    """

    worth: Array
    half: float


def reliability(pairs: Sequence[Agreement], patients: Sequence[int]) -> Reliability:
    """Penalised least squares for d_s and c.

    Minimises sum over pairs of (atanh r_st - atanh rho_s rho_t)^2 / (2 e_st^2) + 1.5 sum_s log(1 + |d_s| / 0.5).
    The penalty has a corner at 0 and a heavy tail (Candes, Wakin and Boyd 2008): the explanation with the fewest
    sites amiss wins, however far these are. Of three sites two of which agree, the third is it.

    Args:
        pairs: agreements between raters.
        patients: (S,) the number of patients that each rater's site states.

    Returns:
        worth and half; with fewer than two pairs nobody can be told from the others, and worth is nan.
    """
    n = len(patients)
    partners = np.unique([(p.one, p.other) for p in pairs]).astype(np.intp)
    if len(pairs) < 2:
        return Reliability(np.full(n, np.nan), float("nan"))
    one = np.array([p.one for p in pairs], dtype=np.intp)
    other = np.array([p.other for p in pairs], dtype=np.intp)
    seen = np.arctanh(np.clip([p.r for p in pairs], -0.99, 0.995))
    weight = 1.0 / (np.array([p.error for p in pairs]) ** 2 / (1 - np.tanh(seen) ** 2) ** 2 + _MODEL_ERROR**2)
    size = np.log(np.maximum(np.asarray(patients, dtype=np.float64), 1.0))

    def loss(x: Array) -> tuple[float, Array]:
        odds = np.clip(size - x[n] + x[:n], -30.0, 30.0)
        square = 1.0 / (1.0 + np.exp(-odds))
        rho = np.minimum(np.sqrt(square[one] * square[other]), 0.999)
        miss = np.arctanh(rho) - seen
        slope = weight * miss * rho / (1.0 - rho**2) / 2.0
        corner = np.sqrt(x[:n] ** 2 + _CORNER**2)
        gradient = np.zeros(n + 1)
        np.add.at(gradient, one, slope * (1.0 - square[one]))
        np.add.at(gradient, other, slope * (1.0 - square[other]))
        gradient[n] = -gradient[:n].sum()
        gradient[:n] += _TAIL / (_HONEST + corner) * x[:n] / corner
        penalty = _TAIL * np.sum(np.log1p(corner / _HONEST))
        return float(np.sum(weight * miss**2) / 2.0 + penalty), gradient

    typical = float(np.clip(np.median([p.r for p in pairs]), 0.05, 0.95))
    middle = float(np.median(size[partners])) + np.log((1.0 - typical) / typical)
    # The loss has a valley for each site that might be to blame: start in those of the sites that agree least.
    mean = np.array(
        [np.mean([p.r for p in pairs if s in {p.one, p.other}]) if s in partners else 1.0 for s in range(n)]
    )
    starts = [np.zeros(n), *(-3.0 * np.eye(n)[s] for s in np.argsort(mean)[:_STARTS])]
    best = min(
        (
            minimize(
                loss, np.append(d, middle), jac=True, method="L-BFGS-B", bounds=[(-8, 8)] * n + [(None, None)]
            )
            for d in starts
        ),
        key=lambda found: float(found.fun),
    )
    worth = np.full(n, np.nan)
    # c and a common factor of all sites cannot be told apart: the median site is worth its patients.
    shift = float(np.median(best.x[partners]))
    worth[partners] = np.exp(best.x[partners] - shift)
    return Reliability(worth, float(np.exp(best.x[n] - shift)))
