"""MEDS folders: codes and their systems, static rows, real data, and folders that are none."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources import Description, Events, Reading
from site_agent.sources.clean import collect
from site_agent.sources.meds import STATIC, MedsFolder

TODAY = date(2026, 1, 1)
WHEN = datetime(2020, 1, 2, 23, 59)
MIMIC = (
    Path(__file__).parents[2].parent
    / "shared"
    / "data"
    / "mimic4demo_meds"
    / "mimic_iv_demo_meds_events.parquet"
)


def folder_of(folder: Path, rows: dict[str, Any] | pa.Table, name: str = "train/0") -> Path:
    path = folder / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.table(rows), path)
    return folder


def rows(*codes: str | None, time: Any = WHEN) -> dict[str, Any]:
    n = len(codes)
    return {
        "subject_id": pa.array(range(n), pa.int64()),
        "time": pa.array([time] * n, pa.timestamp("us")),
        "code": pa.array(codes, pa.string()),
    }


def read(folder: Path, *, today: date = TODAY, **changes: Any) -> Events:
    data = Data(**({"kind": "meds", "events": ".", "system": "LOCAL"} | changes))
    return collect(MedsFolder(folder, data), data, today=today)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("ICD10CM/E11.9", "ICD10CM:E11.9"),
        ("LAB//51274//mg", "LOINC:51274//mg"),
        ("DIAGNOSIS//ICD//10//E119", "ICD10CM:E119"),
        ("DIAGNOSIS//DRG//7", "LOCAL:DIAGNOSIS//DRG//7"),
        ("BMI (kg/m2)", "LOCAL:BMI (kg/m2)"),
        ("MEDS_BIRTH", "LOCAL:MEDS_BIRTH"),
        ("LAB", "LOCAL:LAB"),
        ("/x", "LOCAL:/x"),
    ],
)
def test_code_prefixes(tmp_path: Path, code: str, found: str) -> None:
    systems = {"ICD10CM": "ICD10CM", "LAB": "LOINC", "DIAGNOSIS//ICD//10": "ICD10CM"}
    assert read(folder_of(tmp_path, rows(code)), systems=systems).codes == (found,)


def test_a_prefix_without_a_code_is_no_code(tmp_path: Path) -> None:
    events = read(folder_of(tmp_path, rows("LAB//", "LAB//1")), systems={"LAB": "LAB"}, bad_rows="skip")
    assert events.codes == ("LAB:1",)
    assert events.skipped == {"no code": 1}


def test_static_rows_are_counted_and_stop_nothing(tmp_path: Path) -> None:
    folder_of(tmp_path, rows("a", "b"))
    folder_of(tmp_path, rows("GENDER//F", "x", "y", time=None), "static")
    events = read(tmp_path)
    assert events.skipped == {STATIC: 3}
    assert events.codes == ("LOCAL:a", "LOCAL:b")


def test_descriptions_are_the_sites_own(tmp_path: Path) -> None:
    folder_of(tmp_path, rows("LAB//1", "b"))
    (tmp_path / "metadata").mkdir()
    codes = {"code": ["LAB//1", "b", "c"], "description": ["one", None, "see"]}
    pq.write_table(pa.table(codes), tmp_path / "metadata" / "codes.parquet")
    events = read(tmp_path, systems={"LAB": "LAB"})
    assert events.descriptions == {"LAB:1": Description("one")}
    before = MedsFolder(tmp_path, Data(kind="meds", events=".", system="L")).fingerprint()
    pq.write_table(pa.table({"code": ["b"]}), tmp_path / "metadata" / "codes.parquet")
    assert read(tmp_path).descriptions == {}
    assert MedsFolder(tmp_path, Data(kind="meds", events=".", system="L")).fingerprint() != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"time": None}, "no column 'time'"),
        ({"subject_id": None}, "no column 'subject_id'"),
        ({"code": None}, "no column 'code'"),
        ({"subject_id": pa.array(["1"])}, "Column 'subject_id' .* is string.*an integer"),
        ({"time": pa.array(["2020-01-01"])}, "Column 'time' .* is string.*a timestamp"),
        ({"code": pa.array([5])}, "Column 'code' .* is int64.*text"),
    ],
)
def test_columns_that_are_not_of_the_standard(
    tmp_path: Path, change: dict[str, pa.Array | None], reason: str
) -> None:
    folder_of(tmp_path, {k: v for k, v in (rows("a") | change).items() if v is not None})
    with pytest.raises(DataError, match=reason):
        read(tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no MEDS data .* there is no folder"):
        read(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data/\*\*/\*\.parquet"):
        read(tmp_path)
    (tmp_path / "data" / "0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        read(tmp_path)
    folder_of(tmp_path, rows(), "0")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path)
    folder_of(tmp_path, rows("a"), "0")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "codes.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match=r"codes\.parquet cannot be read"):
        read(tmp_path)


@pytest.mark.skipif(not MIMIC.exists(), reason="the MIMIC-IV demo is not on this machine")
def test_mimic_demo(tmp_path: Path) -> None:
    table = pq.read_table(MIMIC, columns=["subject_id", "time", "code"])
    middle = int(np.median(table["subject_id"].to_numpy()))
    for name, test in {
        "train/0": pc.less(table["subject_id"], middle),
        "tuning/0": pc.greater_equal(table["subject_id"], middle),
    }.items():
        folder_of(tmp_path, table.filter(test), name)
    systems = {"DIAGNOSIS//ICD//9": "ICD9CM", "DIAGNOSIS//ICD//10": "ICD10CM", "LAB": "LAB"}
    # De-identification moved these patients into the 22nd century.
    events = read(tmp_path, today=date(2300, 1, 1), systems=systems)
    static = table["time"].null_count
    assert events.skipped == {STATIC: static}
    assert static == 100
    assert len(events.code) + static == table.num_rows == 916_166
    assert len(np.unique(events.patient)) == 100
    texts = table.filter(pc.is_valid(table["time"]))["code"].to_pylist()
    split = {"DIAGNOSIS//ICD//9//": "ICD9CM:", "DIAGNOSIS//ICD//10//": "ICD10CM:", "LAB//": "LAB:"}

    def named(text: str) -> str:
        for start, prefix in split.items():
            if text.startswith(start):
                return prefix + text.removeprefix(start).strip()
        return f"LOCAL:{text.strip()}"

    assert events.codes == tuple(sorted({named(t) for t in set(texts)}))
    assert sum(c.startswith(("ICD9CM:", "ICD10CM:")) for c in events.codes) > 1000
    data = Data(kind="meds", events=".", system="LOCAL", systems=systems)
    reading = Reading()
    assert sum(len(b) for b in MedsFolder(tmp_path, data).batches(reading)) == len(events.code)
    with pytest.raises(DataError, match=r"date in the future"):
        read(tmp_path)
