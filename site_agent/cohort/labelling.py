"""What a site calls its patients, remembered while their events are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from site_agent.sources import EventSource, Reading
from site_agent.sources.columns import distinct, is_missing, patient_number


@dataclass
class Labelling:
    """A source that remembers which number stands for which patient's text; patients that are numbers stand for themselves.

    The texts are held in memory, some hundred bytes a patient.
    """

    source: EventSource
    labels: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The source's own."""
        return self.source.name

    def fingerprint(self) -> str:
        """The source's own."""
        return self.source.fingerprint()

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """The source's own."""
        return self.source.ancestors()

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """The source's own."""
        for batch in self.source.batches(reading):
            kind = batch.column("patient").type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                with suppress(pa.ArrowException):  # the cleaner says what is wrong with it
                    texts, _ = distinct(batch.column("patient"))
                    for text in texts:
                        if text is not None and not is_missing(text):
                            self.labels[patient_number(text.strip())] = text.strip()
            yield batch
