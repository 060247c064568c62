"""Why the candidates of a fit rank as they do, by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordinator.mapping import NO_CLUES, Clues, KnownPair

Pairs = Mapping[tuple[int, int], tuple[KnownPair, ...]]
"""(row, row of a candidate) -> what is known of the two."""


@dataclass(frozen=True, eq=False)
class Reasons:
    """What speaks for each candidate of each row, against the average candidate of the row's category.

    With w_f the fusion's weight of clue f and f_ij its value for row i and candidate j, a contribution is
    w_f (f_ij - mean over j of f_ij).

    Attributes:
        clues: F names.
        sources: S site/view, and `coverage` last: parts of the clue `latent`.
        share: (n_rows, C) softmax of the score over all candidates, at those of the ranking; 0 where nothing was weighed.
        clue: (n_rows, C, F) contributions to the log odds; 0 where nothing was weighed.
        source: (n_rows, C, S + 1) the parts of `latent`.
        pairs: that the fit used.

    Laws: contributions of all clues add up to the score less the row's mean score; parts of all sources to `latent`.
    """

    clues: tuple[str, ...]
    sources: tuple[str, ...]
    share: NDArray[np.float64]
    clue: NDArray[np.float64]
    source: NDArray[np.float64]
    pairs: Pairs

    def clues_of(self, row: int, rank: int) -> Clues:
        """Contributions to one candidate, by clue; empty where nothing was weighed."""
        return self._named(self.clues, self.clue, row, rank)

    def sources_of(self, row: int, rank: int) -> Clues:
        """Parts of its clue `latent`, by source."""
        return self._named(self.sources, self.source, row, rank)

    def _named(self, names: tuple[str, ...], values: NDArray[np.float64], row: int, rank: int) -> Clues:
        # The likeliest candidate's share is at least one over their number, unless nothing was weighed.
        if not self.share[row].any():
            return NO_CLUES
        return dict(zip(names, values[row, rank].tolist(), strict=True))


def pack_reasons(reasons: Reasons) -> dict[str, NDArray[Any]]:
    """As arrays for a file."""
    pairs = [[*rows, [astuple(p) for p in known]] for rows, known in sorted(reasons.pairs.items())]
    texts = {"clues": reasons.clues, "sources": reasons.sources, "pairs": pairs}
    return {
        "share": reasons.share,
        "clue": reasons.clue,
        "source": reasons.source,
        "texts": np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8),
    }


def unpack_reasons(arrays: Mapping[str, NDArray[Any]]) -> Reasons:
    """From the arrays of `pack_reasons`."""
    texts = json.loads(arrays["texts"].tobytes())
    return Reasons(
        clues=tuple(texts["clues"]),
        sources=tuple(texts["sources"]),
        share=arrays["share"],
        clue=arrays["clue"],
        source=arrays["source"],
        pairs={(a, b): tuple(KnownPair(*p) for p in known) for a, b, known in texts["pairs"]},
    )
