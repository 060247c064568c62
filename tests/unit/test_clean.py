"""Cleaning of rows: dates, patients, codes and what is counted when they cannot be used."""

from __future__ import annotations

from datetime import date, datetime
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import DataError
from site_agent.sections import Data, RollUp
from site_agent.sources import Description
from site_agent.sources.clean import Cleaner, CodedRows
from site_agent.sources.codebook import CodeBook
from site_agent.sources.columns import patient_number

TODAY = date(2026, 1, 1)
DAY = date(2020, 1, 2)


def configured(**changes: Any) -> Data:
    return Data(**({"events": "x", "system": "LOCAL", "bad_rows": "skip"} | changes))


def cleaned(
    *batches: dict[str, Any],
    rollup: dict[str, tuple[str, ...]] | None = None,
    unmapped: Literal["keep", "skip"] = "keep",
    **changes: Any,
) -> tuple[CodedRows, CodeBook]:
    """All batches' rows, with codes as rows of the book in order of text."""
    cleaner = Cleaner(configured(rollup=RollUp(unmapped=unmapped), **changes), TODAY, rollup)
    parts = [cleaner.add(pa.table(b)) for b in batches]
    book = cleaner.finish()
    patient, day, code = (np.concatenate(c) for c in zip(*parts, strict=True))
    return CodedRows(patient, day, book.position[code]), book


def one(**columns: Any) -> dict[str, Any]:
    """A usable row beside the rows that are given."""
    n = len(next(iter(columns.values())))
    rows: dict[str, Any] = {"patient": list(range(n)), "date": [DAY] * n, "code": ["x"] * n}
    return rows | columns


@pytest.mark.parametrize(
    ("values", "days"),
    [
        (pa.array([DAY, date(1900, 1, 1)]), [18263, -25567]),
        (pa.array([datetime(2020, 1, 2, 23, 59), datetime(1969, 12, 31, 1)]), [18263, -1]),
        (pa.array([datetime(2020, 1, 2, 23, 59)]).cast(pa.timestamp("ns")), [18263]),
        (pa.array([18263 * 86_400_000]).cast(pa.date64()), [18263]),
        (pa.array(["2020-01-02", " 2020-01-02 10:00", "2020-01-02T23:00:00Z"]), [18263] * 3),
        (pa.array(["2020-01-02", "2020-01-03", "2020-01-02"]).dictionary_encode(), [18263, 18264, 18263]),
        (pa.array(["2020-01-02"]).cast(pa.large_string()), [18263]),
        (pa.array(["2020-01-02"]).cast(pa.string_view()), [18263]),
        (pa.array([b"2020-01-02"]), [18263]),
        (pa.array([datetime(2020, 1, 2)]).dictionary_encode(), [18263]),
    ],
    ids=lambda v: str(getattr(v, "type", "")),
)
def test_dates_of_every_type(values: pa.Array, days: list[int]) -> None:
    rows, _ = cleaned(one(date=values))
    assert rows.day.tolist() == days
    assert rows.day.dtype == np.int32


def test_the_day_is_that_of_the_clock_on_the_wall() -> None:
    instant = pa.array([datetime(2020, 1, 2, 3, 30)]).cast(pa.timestamp("us"))
    for zone, day in {"UTC": 18263, "America/New_York": 18262, "+09:00": 18263, "-04:00": 18262}.items():
        rows, _ = cleaned(
            one(date=instant.cast(pa.timestamp("us", tz="UTC")).cast(pa.timestamp("us", tz=zone)))
        )
        assert rows.day.tolist() == [day], zone
    texts = ["2020-01-02T23:30:00-05:00", "2020-01-02T00:30:00+14:00"]
    assert cleaned(one(date=texts))[0].day.tolist() == [18263, 18263]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("patient", None, "no patient"),
        ("patient", " ", "no patient"),
        ("code", None, "no code"),
        ("code", "nan", "no code"),
        ("system", "two words", "code system not known (not in data.systems)"),
        ("system", "http://example.org/codes", "code system not known (not in data.systems)"),
        ("code", "x" * 201, "code longer than 200 characters"),
        ("code", "a\nb", "code with a control character"),
        ("code", "a\tb", "code with a control character"),
        ("date", None, "no date"),
        ("date", "<NA>", "no date"),
        ("date", "02.01.2020", "not a date (YYYY-MM-DD)"),
        ("date", "20200102", "not a date (YYYY-MM-DD)"),
        ("date", "2020-W01-4", "not a date (YYYY-MM-DD)"),
        ("date", "2020-02-30", "not a date (YYYY-MM-DD)"),
        ("date", "2020-01-021", "not a date (YYYY-MM-DD)"),
        ("date", "2020-01", "not a full date (a year or a month)"),
        ("date", "2020", "not a full date (a year or a month)"),
        ("date", "1899-12-31", "date before 1900-01-01"),
        ("date", "2026-01-02", "date in the future (after 2026-01-01)"),
    ],
)
def test_every_reason_is_counted_or_stops(column: str, value: str | None, reason: str) -> None:
    good = {"patient": "p", "date": "2020-01-02", "code": "x", "system": "LOCAL"}
    bad = good | {column: value}
    batch = pa.Table.from_pylist([good, bad, good, bad, good], pa.schema([(k, pa.string()) for k in good]))
    rows, book = cleaned({k: batch.column(k) for k in good})
    assert len(rows.code) == 3
    assert book.skipped == {reason: 2}
    assert book.codes == ("LOCAL:x",)
    cleaner = Cleaner(configured(bad_rows="stop"), TODAY, name="here")
    cleaner.add(batch.slice(0, 1))
    for start in (1, 3):
        cleaner.add(batch.slice(start, 2))
    with pytest.raises(DataError) as caught:
        cleaner.finish()
    assert str(caught.value).startswith(
        f"2 of 5 rows of here cannot be used. 2 rows: {reason}, the first is data row 2"
    )


def test_stopping_names_all_reasons_at_once() -> None:
    cleaner = Cleaner(configured(bad_rows="stop"), TODAY)
    assert len(cleaner.add(pa.table(one(code=["x", "y"]))).code) == 2
    cleaner.add(pa.table(one(code=["x", None], date=["1066-10-14", "2020-01-02"])))
    assert len(cleaner.add(pa.table(one(code=["x"]))).code) == 0
    cleaner.add(pa.table(one(date=["soon"])))
    with pytest.raises(DataError) as caught:
        cleaner.finish()
    for part in (
        "3 of 6 rows",
        "1 row: no code, the first is data row 4",
        "1 row: date before 1900-01-01, the first is data row 3: '1066-10-14'",
        "1 row: not a date (YYYY-MM-DD), the first is data row 6: 'soon'",
    ):
        assert part in str(caught.value)


def test_a_row_with_several_faults_is_counted_once() -> None:
    _, book = cleaned(one(patient=["p", None], date=["2020-01-02", None], code=["x", None]))
    assert book.skipped == {"no patient": 1}


def test_no_usable_row_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError, match=r"No row .* 1 row: no date"):
        cleaned(one(date=pa.array([None], pa.date32())))
    with pytest.raises(DataError, match="there are no rows"):
        cleaned(
            {
                "patient": pa.array([], pa.int64()),
                "date": pa.array([], pa.date32()),
                "code": pa.array([], pa.string()),
            }
        )


def test_patients() -> None:
    assert cleaned(one(patient=[-5, 2**62]))[0].patient.tolist() == [-5, 2**62]
    assert cleaned(one(patient=[7.0, None, float("nan")]))[0].patient.tolist() == [7]
    texts = cleaned(one(patient=["7", " 7", "07"]))[0].patient.tolist()
    assert texts[0] == texts[1] == patient_number("7") != texts[2]
    with pytest.raises(DataError, match="cannot be read"):
        cleaned(one(patient=[7.5]))


def test_patient_numbers_are_the_same_in_every_run() -> None:
    # Computed once by hashlib.blake2b(b"patient 1", digest_size=8), the first 63 bits.
    assert patient_number("patient 1") == 1_254_505_318_704_931_494
    assert 0 <= min(map(patient_number, map(str, range(1000)))) < 2**63


def test_codes_with_separators_survive() -> None:
    codes = ["a,b", "a|b", 'a"b', "a'b", "a:b", "a;b", "a/b", "a b", "BMI (kg/m2)"]
    rows, book = cleaned(one(code=codes))
    assert [book.codes[c] for c in rows.code] == [f"LOCAL:{c}" for c in codes]


def test_spellings_of_one_code_are_one_code_over_batches() -> None:
    rows, book = cleaned(one(code=["\u00c4", "b"]), one(code=[" A\u0308 ", "b "], system=[None, " LOCAL"]))
    assert book.codes == ("LOCAL:b", "LOCAL:\u00c4")
    assert rows.code.tolist() == [1, 0, 1, 0]


def test_codes_of_other_types() -> None:
    assert cleaned(one(code=[10, 20]))[1].codes == ("LOCAL:10", "LOCAL:20")
    assert cleaned(one(code=pa.array([10, 20]).dictionary_encode()))[1].codes == ("LOCAL:10", "LOCAL:20")
    with pytest.raises(DataError, match=r"250\.1 and 250\.10"):
        cleaned(one(code=[250.1]))


def test_systems_are_translated() -> None:
    systems = ["http://loinc.org", "ICD9CM", None, "", "http://loinc.org"]
    rows, book = cleaned(
        one(code=["a", "a", "a", "b", "b"], system=systems),
        systems={"http://loinc.org": "LOINC", "ICD9CM": "ICD9"},
    )
    assert [book.codes[c] for c in rows.code] == ["LOINC:a", "ICD9:a", "LOCAL:a", "LOCAL:b", "LOINC:b"]


def test_unused_values_of_a_dictionary_are_no_codes() -> None:
    codes = pa.DictionaryArray.from_arrays(pa.array([2, 2]), pa.array(["a\nb", "unused", "c"]))
    _, book = cleaned(one(code=codes))
    assert book.codes == ("LOCAL:c",)
    assert book.skipped == {}


def test_codes_only_of_rows_left_out_are_no_codes() -> None:
    rows, book = cleaned(one(code=["a", "z"], date=["2030-01-01", "2020-01-01"]))
    assert book.codes == ("LOCAL:z",)
    assert rows.code.tolist() == [0]


def test_of_several_descriptions_the_first_in_order_of_text_and_public_ones_before() -> None:
    _, book = cleaned(
        one(code=["a", "a", "b", "c"], description=["nan", "first", None, "mine"], public=[False] * 4),
        one(
            code=["a", "b", "c", "c"],
            description=["later", "B", "theirs", "other"],
            public=[False, False, True, True],
        ),
        one(code=["d"], description=pa.array([None], pa.float64())),
    )
    assert book.descriptions == {
        "LOCAL:a": Description("first"),
        "LOCAL:b": Description("B"),
        "LOCAL:c": Description("other", public=True),
    }


def test_descriptions_of_rows_left_out_are_not_taken() -> None:
    _, book = cleaned(one(code=["a", "a"], date=["2030-01-01", "2020-01-01"], description=["bad", "good"]))
    assert book.descriptions == {"LOCAL:a": Description("good")}


def test_many_systems_and_codes_take_the_sorting_way(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = one(code=["a", "b", "a", "b"], system=["S1", "S2", "S2", None])
    expected, book = cleaned(batch)
    monkeypatch.setattr("site_agent.sources.codebook._TABLE_CELLS", 0)
    found, other = cleaned(batch)
    assert found.code.tolist() == expected.code.tolist() == [1, 3, 2, 0]
    assert book.codes == other.codes == ("LOCAL:b", "S1:a", "S2:a", "S2:b")


def test_free_text_in_the_code_column_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agent.sources.codebook.MAX_CODES", 3)
    with pytest.raises(DataError, match="more than 3 distinct codes"):
        cleaned(one(code=["a", "b", "c", "d"]))


def test_rollup_turns_one_event_into_one_of_each_target() -> None:
    rollup = {"LOCAL:a": ("T:1", "T:2"), "LOCAL:b": ("T:1",)}
    batch = one(code=["a", "b", "c", "a"], description=["A", "B", "C", "A"])
    rows, book = cleaned(batch, rollup=rollup)
    assert book.codes == ("LOCAL:c", "T:1", "T:2")
    assert rows.patient.tolist() == [0, 0, 1, 2, 3, 3]
    assert rows.code.tolist() == [1, 2, 1, 0, 1, 2]
    assert book.descriptions == {"LOCAL:c": Description("C")}
    assert book.skipped == {}
    rows, book = cleaned(batch, rollup=rollup, unmapped="skip")
    assert book.codes == ("T:1", "T:2")
    assert rows.patient.tolist() == [0, 0, 1, 3, 3]
    assert book.skipped == {"no target in the roll-up": 1}


@given(st.data())
def test_splitting_into_batches_changes_nothing(data: st.DataObject) -> None:
    row = st.fixed_dictionaries(
        {
            "patient": st.sampled_from(["p", "q", None]),
            "date": st.sampled_from(["2020-01-01", "2020-01-02", "soon", None, "2031-01-01"]),
            "code": st.sampled_from(["a", "b", " a", "c", None]),
            "system": st.sampled_from(["S", None, "no system"]),
            "description": st.sampled_from(["d1", "d2", None]),
        }
    )
    rows = [{"patient": "p", "date": "2020-01-01", "code": "a", "system": None, "description": None}]
    rows += data.draw(st.lists(row, max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    whole = pa.Table.from_pylist(rows, pa.schema([(k, pa.string()) for k in rows[0]]))
    bounds = [0, *cuts, len(rows)]
    parts = [whole.slice(a, b - a) for a, b in pairwise(bounds)]
    names = list(rows[0])
    one_batch, book = cleaned({k: whole.column(k) for k in names})
    many, other = cleaned(*({k: p.column(k) for k in names} for p in parts))
    for expected, found in zip(one_batch, many, strict=True):
        np.testing.assert_array_equal(expected, found)
    assert book.codes == other.codes
    assert book.descriptions == other.descriptions
    assert book.skipped == other.skipped
    assert len(one_batch.code) + sum(book.skipped.values()) == len(rows)
