"""Terms of the bound that others write: what else is known of the codes' vectors.

A term enters the fit as the related pairs do: at the posterior means. It adds its value to the bound, its gradient to
the evidence h_i of each code, and of its curvature the trace.
"""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

_STEP = 1e-5
_DRAWS = 5
_TOLERANCE = 1e-4


class Term(Protocol):
    """Something that is known of the codes' vectors, as a log-likelihood of their posterior means.

    A term is not changed by any of its methods. All tensors are float64 and lie on the fit's device.
    """

    def fitted(self, mean: Tensor) -> Self:
        """The term with its own parameters moved to where its value is higher; itself if it has none.

        Args:
            mean: (n, d) E[u_i], of length below 1.
        """
        ...

    def value(self, mean: Tensor) -> float:
        """The log-likelihood, in nats, times the weight that the term is to have."""
        ...

    def evidence(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n, d) of `value`, and for each code (n,) the trace of minus its second derivative, at least 0."""
        ...


def refitted(terms: tuple[Term, ...], mean: Tensor) -> tuple[Term, ...]:
    """The M-step of the terms: each is refitted, or stays where that would lower its value."""
    new = tuple(term.fitted(mean) for term in terms)
    return tuple(b if b.value(mean) >= a.value(mean) else a for a, b in zip(terms, new, strict=True))


def check_term(term: Term, n_codes: int, dim: int, *, seed: int = 0) -> None:
    """Return only if a term keeps its word at random vectors: shapes, signs, gradient, and that refitting is no loss.

    Args:
        term: on the CPU.
        n_codes: n, of the union vocabulary that it was made for.
        dim: d.
        seed: of the vectors and directions that are drawn.

    Raises:
        ValueError: it does not; what is wrong is named.
    """
    random = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        rows = torch.randn(n_codes, dim, generator=random, dtype=torch.float64)
        length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return 0.9 * rows / length

    for _ in range(_DRAWS):
        mean, direction = draw(), draw()
        before, term = term.value(mean), term.fitted(mean)
        if term.value(mean) < before - _TOLERANCE * (1.0 + abs(before)):
            raise ValueError("fitted() lowers value()")
        gradient, trace = term.evidence(mean)
        if gradient.shape != mean.shape or trace.shape != mean.shape[:1]:
            raise ValueError(
                f"evidence() gives {tuple(gradient.shape)} and {tuple(trace.shape)}, not {tuple(mean.shape)} "
                f"and ({n_codes},)"
            )
        if not bool(torch.isfinite(gradient).all()) or not bool((trace >= 0.0).all()):
            raise ValueError("evidence() gives a gradient that is not finite, or a trace below 0")
        there, back = term.value(mean + _STEP * direction), term.value(mean - _STEP * direction)
        slope, told = (there - back) / (2.0 * _STEP), float(torch.sum(gradient * direction))
        if not abs(slope - told) <= _TOLERANCE * (1.0 + abs(slope)):
            raise ValueError(
                f"evidence() says that value() changes by {told:.6g} along a line, and it does by {slope:.6g}"
            )
