"""Shamir's secret sharing of 256-bit secrets over a prime field."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from protocol.errors import ProtocolError

RandomBytes = Callable[[int], bytes]

PRIME = 2**256 + 297
"""The least prime above 2^256: every 32-byte secret is a field element."""
SHARE_BYTES = 33
_SECRET_BYTES = 32


def split(
    secret: bytes, points: Sequence[int], threshold: int, random: RandomBytes = os.urandom
) -> dict[int, bytes]:
    """Share a secret so that any `threshold` shares restore it and fewer say nothing of it.

    The share at x is f(x), f a polynomial of degree threshold - 1 with f(0) = secret and uniform coefficients.

    Args:
        secret: 32 bytes.
        points: distinct positive x, one a holder.
        threshold: shares needed, 1 to the number of points.
        random: source of random bytes; anything but the default is for tests.

    Returns:
        33 bytes, big-endian, for each point.

    Raises:
        ValueError: another length, repeated or zero points, or a threshold out of range.
    Source: Shamir 1979, How to share a secret.
    """
    if len(secret) != _SECRET_BYTES or not 1 <= threshold <= len(points):
        raise ValueError("a secret has 32 bytes, and a threshold lies between 1 and the number of points")
    if len(set(points)) != len(points) or any(not 0 < x < PRIME for x in points):
        raise ValueError("points are distinct and positive")
    coefficients = [int.from_bytes(secret), *(_uniform(random) for _ in range(threshold - 1))]
    return {x: _evaluate(coefficients, x).to_bytes(SHARE_BYTES) for x in points}


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret behind exactly as many shares as its threshold, by interpolation at 0.

    A wrong share gives a wrong secret or an error: check the result against a commitment.

    Raises:
        ProtocolError: a share is no field element, or the result no 32-byte secret.
    """
    values = {x: int.from_bytes(share) for x, share in shares.items()}
    if any(len(share) != SHARE_BYTES or values[x] >= PRIME for x, share in shares.items()):
        raise ProtocolError("A share of a secret is malformed")
    secret = 0
    for x, value in values.items():
        numerator = denominator = 1
        for other in values:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        secret = (secret + value * numerator * pow(denominator, -1, PRIME)) % PRIME
    if secret >= 1 << (8 * _SECRET_BYTES):
        raise ProtocolError("The shares do not belong to one secret")
    return secret.to_bytes(_SECRET_BYTES)


def _evaluate(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def _uniform(random: RandomBytes) -> int:
    # 128 bits more than the prime: the bias of the remainder is below 2^-128.
    return int.from_bytes(random(SHARE_BYTES + 16)) % PRIME
