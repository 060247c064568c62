"""Cleaning of one Spark partition, and how the findings of several partitions add up to those of the whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import date
from itertools import islice

from site_agent.sections import Data
from site_agent.sources import Description
from site_agent.sources.clean import Cleaner


class PartCleaner(Cleaner):
    """A cleaner whose tallies travel as text, and can take in those of others."""

    def __init__(
        self, data: Data, today: date, rollup: Mapping[str, tuple[str, ...]] | None, *, name: str
    ) -> None:
        super().__init__(data, today, rollup, name=name)
        self.today = today

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
