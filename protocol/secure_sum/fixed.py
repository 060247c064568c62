"""Numbers as integers that can be summed modulo 2^64 without wrapping around."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError

Int64Vector: TypeAlias = npt.NDArray[np.int64]
"""(cells,)."""

MAX_BITS = 52


def largest_value(sites: int) -> int:
    """The largest magnitude of one site's cell for which a sum over `sites` sites stays in an int64."""
    return int((2**63 - 1) // sites)


def check_range(values: Int64Vector, sites: int) -> None:
    """Return only if the sum of `sites` vectors with cells like these cannot overflow.

    Raises:
        DataError: a cell is too large.
    """
    limit = largest_value(sites)
    if values.size and (int(values.max()) > limit or int(values.min()) < -limit):
        raise DataError(
            "A cell is too large to be summed",
            why=f"with {sites} sites a cell may hold at most {limit} in magnitude, or the sum could wrap around",
            do="Use fewer fractional bits, or scale the statistic",
        )


def to_fixed(values: npt.NDArray[np.floating[Any]], bits: int, *, sites: int) -> Int64Vector:
    """Round to multiples of 2^-bits and give the multiples.

    Law: |from_fixed(sum of to_fixed(x_i)) - sum of x_i| <= sites * 2^-(bits + 1).

    Args:
        values: any shape; finite.
        bits: fractional bits, 0 to 52.
        sites: the number of sites whose vectors are to be summed.

    Returns:
        int64, of the same shape.

    Raises:
        DataError: a value is not finite, or so large that the sum could overflow.
        ValueError: bits out of range.
    """
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"bits is {bits}, not within 0 to {MAX_BITS}")
    with np.errstate(over="ignore"):  # an overflow to infinity is refused below
        scaled = np.rint(np.ldexp(np.asarray(values, dtype=np.float64), bits))
    if not np.isfinite(scaled).all():
        raise DataError("A value to be summed is not finite, or too large for fixed point")
    # Cells of 2^63 and more have no int64; the exact bound follows on the integers.
    if (np.abs(scaled) >= 2.0**63).any():
        raise DataError(
            "A value is too large for fixed point",
            why=f"with {bits} fractional bits a cell must stay below 2^{63 - bits}",
            do="Use fewer fractional bits, or scale the statistic",
        )
    fixed = scaled.astype(np.int64)
    check_range(fixed, sites)
    return fixed


def from_fixed(total: Int64Vector, bits: int) -> npt.NDArray[np.float64]:
    """The numbers behind multiples of 2^-bits, same shape.

    Raises:
        ValueError: bits out of range.
    """
    if not 0 <= bits <= MAX_BITS:
        raise ValueError(f"bits is {bits}, not within 0 to {MAX_BITS}")
    return np.ldexp(total.astype(np.float64), -bits)
