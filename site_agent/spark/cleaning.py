"""Cleaning of one Spark partition, and how the findings of several partitions add up to those of the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from itertools import islice

import numpy as np
import pyarrow as pa

from site_agent.config import Data
from site_agent.sources import Description
from site_agent.sources.clean import Cleaner
from site_agent.sources.codebook import GrowingCodeBook
from site_agent.sources.columns import Flags, Int32s, distinct, is_missing, optional


class PartCleaner(Cleaner):
    """A cleaner whose tallies travel as text, and can take in those of others."""

    _book: _PartBook

    def __init__(
        self, data: Data, today: date, rollup: Mapping[str, tuple[str, ...]] | None, *, name: str
    ) -> None:
        super().__init__(data, today, rollup, name=name)
        self.today = today
        self._book = _PartBook(data, rollup)

    def names(self, first: int) -> list[str]:
        """CURIEs of the code numbers from `first` on, used or not."""
        return list(islice(self._book._number, first, None))

    def descriptions(self) -> Mapping[str, Description]:
        """CURIE as the data have it -> its smallest text from a public terminology, else its smallest text."""
        return self._book._descriptions

    def findings(self, where: str) -> str:
        """What `take_in` takes, as JSON; `where` says where the rows are that are named as the first bad ones."""
        first = {reason: f"{text} in one part of {where}" for reason, text in self._first.items()}
        return json.dumps([self.rows, self.kept, self._bad, first, self._skipped])

    def take_in(self, findings: str) -> None:
        """Add the tallies of another partition; of a reason's first rows the one that came first stays."""
        rows, kept, bad, first, skipped = json.loads(findings)
        self.rows += rows
        self.kept += kept
        self._bad += Counter(bad)
        self._first = first | self._first
        self._skipped += Counter(skipped)


class _PartBook(GrowingCodeBook):
    """A code book whose choice among several texts of one code does not depend on the order of rows."""

    def describe(self, batch: pa.Table, keep: Flags | None, slot: Int32s) -> None:
        column = optional(batch, "description")
        if column is None or not len(slot):
            return
        flags = optional(batch, "public")
        local = (
            np.ones(len(column), bool)
            if flags is None
            else ~flags.fill_null(False).to_numpy(zero_copy_only=False)
        )
        texts, index = distinct(column)
        if keep is not None:
            local, index = local[keep], index[keep]
        key = (slot.astype(np.int64) * len(texts) + index) * 2 + local
        for found in _unique(key):
            pair, is_local = divmod(found, 2)
            code, text = self._names[pair // len(texts)], texts[pair % len(texts)]
            if text is None or is_missing(text):
                continue
            known = self._descriptions.get(code)
            if known is None or (is_local, text) < (not known.public, known.text):
                self._descriptions[code] = Description(text, public=not is_local)


def _unique(key: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterable[int]:
    found: list[int] = np.unique(key).tolist()
    return found
