"""Event files: what is read, and one clear sentence for everything that cannot be."""

from __future__ import annotations

import gzip
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protocol.errors import DataError
from site_agent.sections import Columns, Data
from site_agent.sources import Description, Events
from site_agent.sources.anchors import read_anchors
from site_agent.sources.clean import collect
from site_agent.sources.triplets import TripletFile

TODAY = date(2026, 1, 1)
CMS = Path(__file__).parents[2].parent / "shared" / "data" / "cms_claims" / "inpatient_events.parquet"


def read(path: Path, **changes: Any) -> Events:
    data = Data(**({"events": path.name, "system": "ICD10CM"} | changes))
    return collect(TripletFile(path, data), data, today=TODAY)


def csv(folder: Path, text: str) -> Path:
    path = folder / "events.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path: Path) -> None:
    events = read(
        csv(
            tmp_path,
            "patient,date,code\np1,2020-01-02,0010\np2,2020-01-03 10:00:00,E11.9\np1,2020-01-02,0010\n",
        )
    )
    assert events.codes == ("ICD10CM:0010", "ICD10CM:E11.9")
    assert events.code.tolist() == [0, 1, 0]
    assert events.day.tolist() == [(date(2020, 1, 2) - date(1970, 1, 1)).days] * 1 + [18264, 18263]
    assert events.patient[0] == events.patient[2] != events.patient[1]
    assert events.skipped == {}


def test_parquet_equals_csv(tmp_path: Path) -> None:
    rows = {"patient": [7, 8], "date": [date(2020, 1, 2), date(2020, 1, 3)], "code": ["a", "b"]}
    path = tmp_path / "events.parquet"
    for column in (rows["date"], [datetime(2020, 1, 2, 23), datetime(2020, 1, 3)]):
        pq.write_table(pa.table(rows | {"date": column}), path)
        found = read(path)
        expected = read(csv(tmp_path, "patient,date,code\n7,2020-01-02,a\n8,2020-01-03,b\n"))
        assert found.codes == expected.codes
        np.testing.assert_array_equal(found.day, expected.day)
        np.testing.assert_array_equal(found.code, expected.code)


def test_systems_descriptions_and_column_names(tmp_path: Path) -> None:
    path = csv(tmp_path, "pid,when,item,vocab,text\n1,2020-01-01,x,ICD9CM,Eks\n1,2020-01-01,x,,Other\n")
    columns = Columns(patient="pid", date="when", code="item", system="vocab", description="text")
    events = read(path, columns=columns)
    assert events.codes == ("ICD10CM:x", "ICD9CM:x")
    assert events.descriptions == {"ICD9CM:x": Description("Eks"), "ICD10CM:x": Description("Other")}


def test_unicode_codes_are_one_code_in_any_form(tmp_path: Path) -> None:
    events = read(
        csv(
            tmp_path, "patient,date,code\n1,2020-01-01,Ähre\n1,2020-01-02, A\u0308hre \n2,2020-01-01,糖尿病\n"
        )
    )
    assert events.codes == ("ICD10CM:Ähre", "ICD10CM:糖尿病")
    assert events.code.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ["is empty"]),
        ("patient,date,code\n", ["header but no rows"]),
        (
            "patient,day,code\n1,2020-01-01,x\n",
            ["no column 'date'", "'patient', 'day', 'code'", "data.columns"],
        ),
        (
            "patient,date,code\n1,01/02/2020,x\n",
            ["1 row", "not a date", "data row 1", "'01/02/2020'", "skip"],
        ),
        ("patient,date,code\n1,2020-13-01,x\n", ["not a date"]),
        (
            "patient,date,code\n1,2020-01-01,x\n1,2030-01-01,x\n",
            ["date in the future", "data row 2", "2030-01-01"],
        ),
        ("patient,date,code\n1,1066-10-14,x\n", ["date before 1900"]),
        ("patient,date,code\n1,2020-01-01,\n1,2020-01-01,NaN\n", ["2 rows", "no code"]),
        ("patient,date,code\n,2020-01-01,x\n", ["no patient"]),
        ("patient,date,code\n1,,x\n", ["no date"]),
        ("patient,date,code\n1,2020-01-01\n", ["cannot be read"]),
        ("patient,date,code\n1,2020-01-01,a\u202eb\n", ["control character"]),
        ("patient,date,code\n1,2020-01-01," + "x" * 300 + "\n", ["300 characters"]),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, reasons: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(csv(tmp_path, text))
    for reason in reasons:
        assert reason in str(caught.value)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    text = "patient,date,code\n1,2020-01-01,x\n1,soon,x\n1,2020-01-01,nan\n2,2030-01-01,y\n2,2020-01-01,y\n"
    events = read(csv(tmp_path, text), bad_rows="skip")
    assert events.codes == ("ICD10CM:x", "ICD10CM:y")
    assert events.skipped == {
        "no code": 1,
        "not a date (YYYY-MM-DD)": 1,
        "date in the future (after 2026-01-01)": 1,
    }
    with pytest.raises(DataError, match="No row"):
        read(csv(tmp_path, "patient,date,code\n1,soon,x\n"), bad_rows="skip")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no event file"):
        read(tmp_path / "none.csv")
    path = tmp_path / "events.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match="cannot be read"):
        read(path)
    (tmp_path / "latin.csv").write_bytes("patient,date,code\n1,2020-01-01,\xe4\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "latin.csv")


def anchors(folder: Path, text: str) -> dict[str, str]:
    path = folder / "anchors.csv"
    path.write_text(text)
    return read_anchors(path, system="SOUTH", standard="ICD10CM")


def test_anchors(tmp_path: Path) -> None:
    found = anchors(tmp_path, "local_code,standard_code\nD1,E11.9\nSOUTH:D2,ICD10CM:I10\n")
    assert found == {"SOUTH:D1": "ICD10CM:E11.9", "SOUTH:D2": "ICD10CM:I10"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("local,standard_code\n", "no column 'local_code'"),
        ("local_code,standard_code\nD1,\n", "Line 2"),
        ("local_code,standard_code\nD1,A\nD1,B\n", "Line 3"),
        ("", "cannot be read"),
    ],
)
def test_bad_anchors(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        anchors(tmp_path, text)


def test_what_spreadsheets_write(tmp_path: Path) -> None:
    text = '\ufeffpatient,code,date,description\n1,"a,b",2020-01-01,"two\nlines ""quoted"""\n'
    events = read(csv(tmp_path, text))
    assert events.codes == ("ICD10CM:a,b",)
    assert events.descriptions == {"ICD10CM:a,b": Description('two\nlines "quoted"')}


def test_one_column_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than one column 'code'"):
        read(csv(tmp_path, "patient,date,code,code\n1,2020-01-01,a,b\n"))
    assert read(csv(tmp_path, "patient,date,code,x,x\n1,2020-01-01,a,1,2\n")).codes == ("ICD10CM:a",)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "events.csv.gz"
    whole = gzip.compress(b"patient,date,code\n" + b"1,2020-01-01,x\n" * 1000)
    for content in (whole[:-20], b"no gzip"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        read(tmp_path)


def test_rows_are_numbered_over_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "events.parquet"
    rows = {"patient": [1] * 50, "date": ["2020-01-01"] * 49 + ["soon"], "code": ["x"] * 50}
    pq.write_table(pa.table(rows), path, row_group_size=20)
    with pytest.raises(DataError, match=r"1 of 50 rows .* data row 50: 'soon'"):
        read(path)


@pytest.mark.skipif(not CMS.exists(), reason="the CMS claims are not on this machine")
def test_cms_claims() -> None:
    events = read(CMS)
    table = pq.read_table(CMS)
    assert len(events.code) == table.num_rows == 302_769
    assert events.codes == tuple(sorted(f"ICD9CM:{c}" for c in set(table["code"].to_pylist())))
    assert len(np.unique(events.patient)) == len(set(table["patient"].to_pylist())) == 19_461
    days = table["date"].cast(pa.int32()).to_numpy()
    np.testing.assert_array_equal(events.day, days)
    assert [events.codes[c] for c in events.code[:1000]] == [
        f"ICD9CM:{c}" for c in table["code"][:1000].to_pylist()
    ]
