"""Table maps: which columns of a data model's tables hold patient, date and code. Data only, no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from site_agent.sections import Domain


@dataclass(frozen=True)
class Lookup:
    """A table in which the codes of an event table are keys.

    Attributes:
        table: its name.
        key: the column that the event table's code column equals; 0 is nobody's key.
        description: the column with the text.
        code: the column with the code itself; "" if the key is the code.
        system: the column with the code system; "" if there is none.
        public: whether the texts come from a public terminology.
        vocabulary: whether it lies in `data.vocabulary_schema`.
    """

    table: str
    key: str
    description: str
    code: str = ""
    system: str = ""
    public: bool = False
    vocabulary: bool = False


@dataclass(frozen=True)
class CodeColumn:
    """A column that may hold an event's code.

    Attributes:
        column: its name.
        system: the code system of all its codes; "" for the configured one.
        system_column: the column with a short sign of the code system, if each row says its own.
        systems: sign -> prefix, "" for the configured one; other signs are passed on as they are.
        alike: (sign, regular expression, prefix): codes under the sign that look like this are of another system.
        split: whether the codes are written PREFIX:code.
        lookup: the table that says what the codes mean.
    """

    column: str
    system: str = ""
    system_column: str = ""
    systems: Mapping[str, str] = field(default_factory=dict)
    alike: tuple[tuple[str, str, str], ...] = ()
    split: bool = False
    lookup: Lookup | None = None


@dataclass(frozen=True)
class Only:
    """Rows that are events by themselves; the others are skipped and counted.

    Attributes:
        column: the column that tells.
        value: what it holds in rows to keep, or null.
        reason: what the other rows are counted as.
    """

    column: str
    value: str
    reason: str


@dataclass(frozen=True)
class TableMap:
    """Where in a table its events are.

    Attributes:
        table: its name; case does not matter, here and in columns.
        patient: the column with the patient.
        dates: columns with a date; the first that is not null counts. One of them must exist.
        codes: columns with a code; the first that holds one counts.
        domain: what kind of events; None if of every kind.
        only: which rows are events, if not all.
    """

    table: str
    patient: str
    dates: tuple[str, ...]
    codes: tuple[CodeColumn, ...]
    domain: Domain | None = None
    only: Only | None = None
