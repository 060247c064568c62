"""Columns of raw rows as numbers: patients, days, and distinct texts with an index into them."""

from __future__ import annotations

import hashlib
import re
from datetime import date
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int32s: TypeAlias = npt.NDArray[np.int32]
Int64s: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

EPOCH = date(1970, 1, 1)
EARLIEST = date(1900, 1, 1)

# Marks in place of a day, far before every usable one.
NO_DATE, NOT_A_DATE, PARTIAL = (int(np.iinfo(np.int32).min) + i for i in range(3))

_MISSING = {"", "nan", "NaN", "NULL", "null", "None", "<NA>"}
"""What spreadsheets and data frames write for "no value"; a code never looks like this."""

_FULL_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([ T]|$)")
_PARTIAL_DATE = re.compile(r"[0-9]{4}(-[0-9]{2})?$")
_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def is_missing(text: str) -> bool:
    """Whether a text is one of those that stand for "no value"."""
    return text.strip() in _MISSING


def patient_number(text: str) -> int:
    """The number that stands for a patient's text: 63 bits of BLAKE2b, the same in every run.

    Among n patients two share a number with probability below n^2 / 2^64: 5e-8 for a million, 9e-6 for 12.6 million.
    The number is no protection: whoever has the texts can make it. It stays at the site as the text does.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def patients_of(column: pa.ChunkedArray) -> tuple[Int64s, Flags | None]:
    """(n,) patient numbers, and where there is none."""
    kind = column.type
    if pa.types.is_integer(kind):
        values = column.combine_chunks()
        missing = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
        return _filled(values.cast(pa.int64(), safe=False)), missing
    if pa.types.is_floating(kind):  # what data frames make of integers when one is missing
        absent = pc.is_null(column, nan_is_null=True)
        column = pc.if_else(absent, None, column).cast(pa.int64())  # raises ArrowInvalid at a fraction
        return patients_of(column)
    texts, index = distinct(column)
    # A dictionary may hold far more patients than this batch has.
    present = np.zeros(len(texts), dtype=bool)
    present[index] = True
    absent = np.zeros(len(texts), dtype=bool)
    numbers = np.zeros(len(texts), dtype=np.int64)
    for i in np.flatnonzero(present):
        text = texts[i]
        if text is None or is_missing(text):
            absent[i] = True
        else:
            numbers[i] = patient_number(text.strip())
    return numbers[index], absent[index] if absent.any() else None


def days_of(column: pa.ChunkedArray) -> Int32s:
    """(n,) days since 1970, or the mark of what is wrong with the date."""
    kind = column.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string_view(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if pa.types.is_timestamp(kind):
        naive = pc.local_timestamp(column) if kind.tz else column
        ticks = naive.cast(pa.int64()).combine_chunks()
        # Times outside 32-bit days are outside any bound that is checked later.
        days = np.clip(_filled(ticks) // _PER_DAY[kind.unit], -(2**30), 2**30).astype(np.int32)
        return _marked(days, ticks)
    if pa.types.is_date(kind):
        values = column.cast(pa.date32(), safe=False).cast(pa.int32()).combine_chunks()
        return _marked(_filled(values), values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return _text_days(column)
    absent = pc.is_null(column, nan_is_null=True).combine_chunks().to_numpy(zero_copy_only=False)
    return np.where(absent, NO_DATE, NOT_A_DATE).astype(np.int32)


def _marked(days: Int32s, values: pa.Array) -> Int32s:
    if values.null_count:
        days = np.where(values.is_null().to_numpy(zero_copy_only=False), np.int32(NO_DATE), days)
    return days


def _text_days(column: pa.ChunkedArray) -> Int32s:
    if not pa.types.is_dictionary(column.type):
        # What follows the eleventh character is a time, and would make every text a distinct one.
        column = pc.utf8_slice_codeunits(pc.utf8_trim_whitespace(column), 0, 11)
    texts, index = distinct(column)
    days: Int32s = np.array([_parse_day(t) for t in texts], dtype=np.int32)[index]
    return days


def _parse_day(text: str | None) -> int:
    """Days since 1970 of a text that begins with YYYY-MM-DD and goes on with nothing or a time."""
    if text is None or is_missing(text):
        return NO_DATE
    text = text.strip()
    if not _FULL_DATE.match(text):
        return PARTIAL if _PARTIAL_DATE.match(text) else NOT_A_DATE
    try:
        return (date.fromisoformat(text[:10]) - EPOCH).days
    except ValueError:
        return NOT_A_DATE


def distinct(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], npt.NDArray[np.integer[Any]]]:
    """The distinct texts of a column, None at the end, and (n,) where in them each row is."""
    kind = column.type
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_floating(value_type) and not pc.all(pc.is_null(column, nan_is_null=True)).as_py():
        raise pa.ArrowInvalid(
            "A column of decimal numbers: 250.1 and 250.10 would be one code; write it as text"
        )
    if not _is_text(value_type):
        column = column.cast(value_type).cast(pa.string())
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    encoded = column.combine_chunks()
    values = encoded.dictionary.to_numpy(zero_copy_only=False)
    index = encoded.indices.fill_null(len(values)) if encoded.indices.null_count else encoded.indices
    texts = np.empty(len(values) + 1, dtype=object)
    texts[:-1] = values
    return texts, index.to_numpy(zero_copy_only=False)


def optional(batch: pa.Table, name: str) -> pa.ChunkedArray | None:
    """A column that a batch may lack."""
    return batch.column(name) if name in batch.column_names else None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _filled(values: pa.Array) -> npt.NDArray[Any]:
    filled = values.fill_null(0) if values.null_count else values
    result: npt.NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return result
