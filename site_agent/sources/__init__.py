"""Event sources: each yields the raw rows of one data set, batch by batch; `clean` checks and codes them.

A source knows where rows lie and what their columns mean. What is a usable row is decided in one place,
`site_agent.sources.clean`, so that a date in the future is found and counted alike in every source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from protocol.arrays import IntVector

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


def silent(_step: str, _share: float) -> None:
    """The progress of a caller that shows none."""


@dataclass
class Reading:
    """What a source tells while it is read.

    Attributes:
        progress: called with a sentence and the share done.
        skipped: reason -> rows that the source itself left out, with `skip`; those that `clean` leaves out come on top.
    """

    progress: Progress = silent
    skipped: Counter[str] = field(default_factory=Counter)

    def skip(self, reason: str, rows: int) -> None:
        """Count rows that hold no event of the study, or none that can be read."""
        if rows:
            self.skipped[reason] += rows


class EventSource(Protocol):
    """Anything that a site's events can be read from.

    Attributes:
        name: what messages call it: a path, or a database and its table.
    """

    @property
    def name(self) -> str:
        """What messages call it: a path, or a database and its schema."""
        ...

    def fingerprint(self) -> str:
        """A text that differs whenever the data differ: of files their sizes and times, of tables their row counts.

        Raises:
            DataError: the data are not there, or not as this source needs them.
        """
        ...

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """Raw rows in any order, about a million in a batch.

        The columns of each batch, by these names:
            patient: int64 or string; null where there is none.
            date: date32, timestamp or string; null where there is none.
            code: string, without its prefix; null where there is none.
            system: string, optional: the code system's prefix; null means the configured one.
            description: string, optional: the site's text for the code.
            public: bool, optional: whether that text comes from a public terminology and not from the site.

        Raises:
            DataError: the data are not there, not as this source needs them, or change while they are read.
        """
        ...

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """CURIE -> the CURIEs that stand for it after roll-up, if this source knows a hierarchy and is told to use it."""
        ...


@dataclass(frozen=True)
class Description:
    """A text for a code.

    Attributes:
        text: as the source has it.
        public: whether it comes from a public terminology; the site's own texts may hold anything.
    """

    text: str
    public: bool = False


@dataclass(frozen=True)
class Events:
    """A site's events, coded as integers and held in memory.

    Attributes:
        patient: (m,) any integer a patient.
        day: (m,) days since 1970-01-01.
        code: (m,) rows of `codes`.
        codes: CURIEs in order of text.
        descriptions: CURIE -> text; local ones never leave the site.
        skipped: reason -> number of rows that were left out for it.
    """

    patient: IntVector
    day: IntVector
    code: IntVector
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
