"""Noise that holds on a floating point machine."""

from __future__ import annotations

import numpy as np

from protocol.errors import UsageError
from protocol.secure_sum.fixed import Int64Vector
from site_agent.budget.bounding import Statistic


def noisy(values: Int64Vector, statistic: Statistic, scale: float) -> Int64Vector:
    """A vector of a sum with its noise.

    Of margins (2n + 1,), whose first and second n are the same numbers, each number is given one noise: two would cost twice.
    """
    if statistic == "cells":
        return add_noise(values, scale)
    n = len(values) // 2
    found = add_noise(values[n:], scale)
    return np.concatenate([found[:n], found])


def add_noise(values: Int64Vector, scale: float) -> Int64Vector:
    """Add a discrete Gaussian of this standard deviation to each value; from the system's random bits.

    Differences of exact samples on the integers give nothing away in their last bits, as those of
    rounded normal deviates do (Mironov 2012). About 10 microseconds a value.

    Source: Canonne, Kamath, Steinke 2020 (The discrete Gaussian for differential privacy), as OpenDP has it.

    Raises:
        UsageError: the extra `privacy` is not installed.
    """
    try:
        # An extra.
        import opendp.prelude as dp  # noqa: PLC0415
    except ImportError:
        raise UsageError(
            "The study asks for differential privacy, and its noise is not installed",
            why="the library opendp belongs to the extra `privacy`",
            do="Install smile-federation[site,privacy]",
        ) from None
    dp.enable_features("contrib")
    mechanism = dp.m.make_gaussian(
        dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=scale
    )
    return np.array(mechanism(values.tolist()), dtype=np.int64)
