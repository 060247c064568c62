"""Event sources: each yields the events of one data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from protocol.arrays import IntVector

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


def silent(_step: str, _share: float) -> None:
    """The progress of a caller that shows none."""


@dataclass(frozen=True)
class Events:
    """A site's events, coded as integers.

    Attributes:
        patient: (m,) any integer a patient.
        day: (m,) days since 1970-01-01.
        code: (m,) rows of `codes`.
        codes: CURIEs in order of text.
        descriptions: CURIE -> the site's own text for it; never leaves the site.
        skipped: reason -> number of rows that were left out for it.
    """

    patient: IntVector
    day: IntVector
    code: IntVector
    codes: tuple[str, ...]
    descriptions: Mapping[str, str]
    skipped: Mapping[str, int]


class EventSource(Protocol):
    """Anything that a site's events can be read from."""

    def read(self, progress: Progress = silent) -> Events:
        """All events.

        Raises:
            DataError: the data cannot be used as they are.
        """
        ...
