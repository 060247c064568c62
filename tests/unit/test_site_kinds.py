"""From a hospital's database to its release: the same bytes whichever kind of database the events lie in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from site_agent.cli import app
from site_agent.config import Home
from tests import postgres as pg
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.source_contract import Row
from tests.spark import spark  # noqa: F401 (a fixture)
from tests.unit.test_agent import Bench
from tests.unit.test_omop import BACKENDS, Load, _loader, contract_tables


@pytest.fixture(params=BACKENDS)
def load(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    monkeypatch.setenv("SMILE_DATABASE_PASSWORD", pg.PASSWORD)
    yield from _loader(request, request.param, tmp_path)


def test_a_database_gives_the_release_of_the_file(load: Load, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    expected = bench.agent.preview()
    rows = [
        Row(row["patient"], row["date"], row["code"], "ICD10CM", f"name of {row['code']}", "condition")
        for row in pq.read_table(bench.events).to_pylist()
    ]
    url = load(contract_tables(rows))
    home = bench.init("lake", kind="omop", database=url, schema="cdm", events=None)
    shown = CliRunner().invoke(app, ["preview", "--home", str(home.folder), "--json"])
    assert shown.exit_code == 0, shown.output
    manifest = json.loads(shown.stdout)["manifest"]
    assert manifest["codes"] == list(expected.release.manifest.codes)
    ours = expected.release.manifest.model_dump(mode="json")
    assert manifest["arrays"] == ours["arrays"]  # each with its SHA-256
    assert manifest["statistics"] == ours["statistics"]
    assert not any(p for p in Home(home.folder).work.rglob("*") if p.is_file() and p.name != ".lock")
    kept = pq.read_table(home.folder / "local" / "codes.parquet").to_pylist()
    assert all(row["public"] and row["description"] == f"name of {row['code'][8:]}" for row in kept)
