"""The label that a representation is learnt from: a list of codes, or a file of flags; and the words that would give it away."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from protocol.errors import DataError, UsageError
from site_agent.cohort.files import CohortStore
from site_agent.cohort.histories import LEAST_OUTCOMES
from site_agent.cohort.queries import matching
from site_agent.sources.columns import patients_of

Flags = npt.NDArray[np.bool_]

_WORD = re.compile(r"[^\W\d_]{4,}")
_YES, _NO = {"1", "true", "yes", "y", "t"}, {"0", "false", "no", "n", "f"}
_COMMON = (
    "with without other specified unspecified elsewhere classified mention stated type status history personal family "
    "disease diseases disorder disorders acute chronic due from and not uncontrolled controlled stage primary secondary "
    "complication complications following during after condition conditions syndrome"
)
"""Words of code names that say nothing of the label."""
_EVERYWHERE = frozenset(_COMMON.split())


@dataclass(frozen=True, eq=False)
class Label:
    """Who has the label.

    Attributes:
        said: in words.
        known: (n,) patients of whom it is known whether they have it.
        has: (n,) who have it.
        own: (codes,) rows of codes that are left out of the features.
        names: of these codes, and words that were given beside them.
    """

    said: str
    known: Flags
    has: Flags
    own: npt.NDArray[np.intp]
    names: tuple[str, ...]


def label_by_codes(store: CohortStore, patterns: Sequence[str], left_out: Sequence[str] = ()) -> Label:
    """Patients of a build who have one of the codes in its window.

    Args:
        store: the build.
        patterns: codes, or beginnings and *.
        left_out: further codes that are in no feature.

    Raises:
        UsageError: no such code; or too few patients have one, or have none.
    """
    own = _rows(store, patterns)
    has = np.asarray(store.incidence[:, own].sum(axis=1)).ravel() > 0
    out = np.union1d(own, _rows(store, left_out))
    label = Label(", ".join(patterns), np.ones(len(has), dtype=bool), has, out, _names(store, out))
    return _enough(label)


def label_by_file(store: CohortStore, path: Path, left_out: Sequence[str] = ()) -> Label:
    """Patients of a build by a CSV file of patient and flag; of those who are not in it nothing is known.

    Args:
        store: the build.
        path: CSV with the columns patient, written as in the events, and flag: 1 or 0, yes or no.
        left_out: codes that are in no feature, such as those that the flag was made of.

    Raises:
        UsageError: as `label_by_codes`.
        DataError: the file cannot be read, or a patient has both flags.
    """
    try:
        options = pa_csv.ConvertOptions(
            column_types=dict.fromkeys(("patient", "flag"), pa.string()), strings_can_be_null=False
        )
        table = pa_csv.read_csv(path, convert_options=options)
        numbers, missing = patients_of(_integers(store, table["patient"]))
        flags = [str(v).strip().casefold() for v in table["flag"].to_pylist()]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(
            f"The flags {path} cannot be read",
            why=str(error).splitlines()[0][:200],
            do="Write a UTF-8 CSV with the columns patient and flag",
        ) from None
    wrong = [i for i, flag in enumerate(flags) if flag not in _YES | _NO]
    if wrong:
        raise DataError(
            f"Data row {wrong[0] + 1:,} of the flags {path} is neither yes nor no",
            why=f"it is {flags[wrong[0]][:20]!r}",
            do="Write 1 or 0, and leave out patients of whom it is not known",
        )
    row = {int(number): i for i, number in enumerate(np.asarray(store.array("patients")))}
    known, has = (np.zeros(store.manifest.patients, dtype=bool) for _ in range(2))
    denied = known.copy()
    for i, flag in enumerate(flags):
        place = row.get(int(numbers[i]))
        if place is None or (missing is not None and missing[i]):
            continue
        known[place] = True
        (has if flag in _YES else denied)[place] = True
    if (has & denied).any():
        raise DataError(
            f"The flags {path} say both yes and no of {int((has & denied).sum()):,} patients",
            do="Give each patient one row",
        )
    own = _rows(store, left_out)
    return _enough(Label(path.name, known, has, own, _names(store, own)))


def label_terms(names: Iterable[str], terms: Iterable[str] = ()) -> re.Pattern[str] | None:
    """What sentences are left out for: each word of four letters or more in the names, and each term as it is written.

    Words that half of all code names have (disease, chronic, unspecified) stay; an ending of plural does not save a word.

    Args:
        names: of the label's codes.
        terms: words or phrases; letters' case makes no difference.
    """
    words = {w.casefold() for name in names for w in _WORD.findall(name)} - _EVERYWHERE
    phrases = [r"\s+".join(map(re.escape, t.split())) for t in terms if t.strip()]
    parts = sorted({*(re.escape(w.removesuffix("s")) + "s?" for w in words), *phrases}, key=len, reverse=True)
    return re.compile(rf"(?i)(?<!\w)(?:{'|'.join(parts)})(?!\w)") if parts else None


def _rows(store: CohortStore, patterns: Sequence[str]) -> npt.NDArray[np.intp]:
    found = [matching(store, pattern) for pattern in patterns]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.intp)


def _names(store: CohortStore, rows: npt.NDArray[np.intp]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for i in rows if (n := store.codes["name"][int(i)])))


def _integers(store: CohortStore, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Patients that are numbers in the events are numbers here too."""
    if store.has("labels.parquet"):
        return column
    return pc.utf8_trim_whitespace(column).cast(pa.int64())


def _enough(label: Label) -> Label:
    has, lack = int((label.known & label.has).sum()), int((label.known & ~label.has).sum())
    if min(has, lack) < LEAST_OUTCOMES:
        raise UsageError(
            f"Too few patients to learn from: {has:,} have the label, {lack:,} do not",
            why=f"{LEAST_OUTCOMES} of each are needed",
            do="Choose a commoner label",
        )
    return label
