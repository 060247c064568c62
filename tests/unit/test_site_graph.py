"""`site-agent graph` on a generated site: what is found, what the floors take, and that the files say what the tests say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from protocol.errors import DataError, StudyError, UsageError
from protocol.inference import EntrySums, HalfCounts, entrywise, fit_margins, smooth
from protocol.pair_index import PairIndex, index_pairs
from protocol.study import parse_study
from site_agent.cli import app
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.graph import SiteGraph, site_graph
from site_agent.graph_table import SCHEMA, graph_table
from site_agent.inference import code_rows, entry_sums, half_counts, shown
from site_agent.resources import Resources
from tests.synthetic import study
from tests.unit.test_second_release import STUDY, Site

MACHINE = Resources(memory=1 << 28, threads=2)
FAMILIES, SIZE = 5, 6
RARE = "=R"  # a spreadsheet would take it for a formula
PUBLIC = (
    "\n[privacy]\npublic_data = true\nmin_code_patients = 2\nmin_pair_patients = 2\nsmall_site_patients = 0\n"
)


def made(n: int = 4000, seed: int = 0, *, related: bool = True) -> dict[str, Any]:
    """Patients whose days lean to one family of codes each; nineteen share two rare codes every day."""
    rng = np.random.default_rng(seed)
    days, events, rare = 4, 3, 19
    who = np.repeat(np.arange(n), days * events)
    today = np.repeat(rng.integers(0, FAMILIES, n * days), events)
    family = rng.integers(0, FAMILIES, len(who))
    if related:
        family = np.where(rng.random(len(who)) < 0.4, today, family)
    weight = np.linspace(1.0, 2.0, SIZE)
    number = rng.choice(SIZE, len(who), p=weight / weight.sum())
    code = [f"F{f}{c}" for f, c in zip(family, number, strict=True)]
    day = np.repeat(np.tile(np.arange(days) * 60, n), events)
    ill = np.repeat(np.arange(rare), 2 * days)
    who = np.concatenate([who, ill])
    day = np.concatenate([day, np.tile(np.repeat(np.arange(days) * 60, 2), rare)])
    date = (np.datetime64("2020-01-01") + day).astype("datetime64[D]")
    return {"patient": who, "date": date, "code": [*code, *[f"{RARE}0", f"{RARE}1"] * (rare * days)]}


def site(folder: Path, table: dict[str, Any], extra: str = "") -> Home:
    made_site = Site(folder, STUDY + extra)
    pq.write_table(pa.table(table), made_site.events)
    return Home(made_site.home.folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return site(tmp_path_factory.mktemp("site"), made())


@pytest.fixture(scope="module")
def graph(home: Home) -> SiteGraph:
    return site_graph(home, MACHINE)


def kin(left: str, right: str) -> bool:
    return left[:-1] == right[:-1]


def test_related_codes_are_found_and_few_others(graph: SiteGraph) -> None:
    rows = graph_table(graph, fdr=graph.rules.fdr).to_pylist()
    true = [r for r in rows if kin(r["left"], r["right"])]
    assert graph.test == "smoothed"
    assert len(true) == FAMILIES * SIZE * (SIZE - 1) // 2
    assert len(rows) - len(true) <= 2 * graph.rules.fdr * len(rows)
    assert all(r["log_ratio"] > 0 for r in true)
    assert [r["q"] for r in rows] == sorted(r["q"] for r in rows)


def test_nothing_is_left_of_events_and_counts(home: Home, graph: SiteGraph) -> None:
    assert len(graph.q) > 0
    assert [p for p in home.work.rglob("*") if p.is_file() and p.name != ".lock"] == []


def test_rare_codes_are_not_even_named(graph: SiteGraph) -> None:
    """Nineteen patients, and a code needs twenty."""
    assert not any(RARE in code for code in named(graph))


def named(graph: SiteGraph) -> set[str]:
    return {graph.codes[i] for i in (*graph.alone.row, *graph.alone.column)}


def test_low_floors_show_the_rare_codes(tmp_path: Path) -> None:
    found = site_graph(site(tmp_path, made(), PUBLIC), MACHINE)
    assert any(RARE in code for code in named(found))


def test_pairs_under_the_floor_are_not_found(tmp_path: Path, graph: SiteGraph) -> None:
    found = site_graph(site(tmp_path, made(), "\n[privacy]\nmin_pair_patients = 60\n"), MACHINE)
    rows = graph_table(found, fdr=1.0).to_pylist()
    hidden = [r for r in rows if r["count"] == 0]
    assert 0 < len(hidden) == found.withheld < len(rows)
    assert {(r["p"], r["q"], r["alone_p"], r["alone_q"], r["error"]) for r in hidden} == {(1, 1, 1, 1, None)}
    assert all(r["p"] < 1 for r in rows if r["count"])
    assert len(rows) == len(graph.q)  # they keep their place in the family


def test_floors_above_every_pair_are_an_error(tmp_path: Path) -> None:
    home = site(tmp_path, made(1200), "\n[privacy]\nmin_pair_patients = 500\n")
    with pytest.raises(DataError, match="No pair of codes reaches"):
        site_graph(home, MACHINE)


def test_the_command_writes_what_it_says(home: Home, graph: SiteGraph, tmp_path: Path) -> None:
    target = tmp_path / "out"
    call = ["graph", "--home", str(home.folder), "--output", str(target), "--fdr", "1", "--json"]
    said = json.loads(CliRunner().invoke(app, call, catch_exceptions=False).stdout)
    table = pq.read_table(target / "edges.parquet")
    assert table.schema.equals(SCHEMA)
    assert said["tested"] == said["found"] == table.num_rows == len(graph.q)
    again = graph_table(graph, fdr=1.0)
    np.testing.assert_array_equal(table["q"], again["q"])
    with (target / "edges.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["left"] for r in rows] == table["left"].to_pylist()
    np.testing.assert_allclose([float(r["p"]) for r in rows], table["p"])
    assert all(
        left < right for left, right in zip(*(table[c].to_pylist() for c in ("left", "right")), strict=True)
    )
    assert {p.stat().st_mode & 0o077 for p in target.iterdir()} == {0}


def test_the_command_says_what_it_found(home: Home, graph: SiteGraph, tmp_path: Path) -> None:
    call = ["graph", "--home", str(home.folder), "--output", str(tmp_path / "out")]
    said = CliRunner().invoke(app, call, catch_exceptions=False).stdout
    found = int((graph.q <= graph.rules.fdr).sum())
    assert f"{found:,} of {len(graph.q):,} tested pairs" in said
    assert pq.read_table(tmp_path / "out" / "edges.parquet").num_rows == found


def test_without_structure_each_pair_is_tested_by_itself(tmp_path: Path) -> None:
    found = site_graph(site(tmp_path, made(related=False)), MACHINE)
    assert (found.q <= found.rules.fdr).mean() < 0.05
    if found.test == "alone":
        assert "stands out" in found.notes[0]
        assert found.rank == 0


def test_a_least_effect_and_the_other_method_find_less(tmp_path: Path, graph: SiteGraph) -> None:
    other = site_graph(site(tmp_path, made(), '\n[graph]\ndelta = 0.5\nmethod = "by"\n'), MACHINE)
    assert (other.decisive.p >= graph.decisive.p).all()
    assert (other.q >= graph.q).all()
    assert (other.q > graph.q).any()


def test_too_few_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="random blocks of patients"):
        site_graph(site(tmp_path, made(30)), MACHINE)


def test_events_in_spark_are_refused(home: Home) -> None:
    path = home.folder / "site.toml"
    before = path.read_text(encoding="utf-8")
    text = before.replace('kind = "triplets"', 'kind = "omop"\ndatabase = "spark://local"')
    path.write_text("\n".join(x for x in text.splitlines() if not x.startswith("events")), encoding="utf-8")
    try:
        with pytest.raises(UsageError, match="Spark"):
            site_graph(Home(home.folder), MACHINE)
    finally:
        path.write_text(before, encoding="utf-8")


def test_the_output_must_be_a_folder(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    call = ["graph", "--home", str(home.folder), "--output", str(tmp_path / "file")]
    found = CliRunner().invoke(app, call)
    assert isinstance(found.exception, UsageError)
    assert "is a file" in str(found.exception)


def test_the_study_says_how_relations_are_tested() -> None:
    assert study(graph={"delta": 0.1}).graph.delta == 0.1
    assert study().digest != study(graph={"fdr": 0.1}).digest
    for wrong in ({"fdr": 0}, {"method": "holm"}, {"minimum_expected": 1}, {"delta": -1}):
        with pytest.raises(StudyError):
            parse_study(study().model_dump() | {"graph": wrong}, "of the test")


def pooled(
    tables: list[tuple[np.ndarray, ...]], n: int
) -> tuple[PairIndex, list[EntrySums], list[HalfCounts]]:
    """What each of some sites would send, over the pairs that their margins together agree on."""
    rule = study().counting

    def count(events: tuple[np.ndarray, ...], keep: Any) -> PairCounts:
        return count_pairs(*(c[keep] for c in events), n, window_days=rule.window, threads=1)

    totals = [count(t, slice(None)) for t in tables]
    pairs = index_pairs(fit_margins(sum(code_rows(t) for t in totals)).level, 10.0)
    sums, halves = [], []
    for events, total in zip(tables, totals, strict=True):
        show = shown(total, pairs)
        margins = fit_margins(code_rows(total))
        sums.append(entry_sums([events], rule, pairs, margins, show, threads=1))
        odd = events[0] % 2 == 1
        halves.append(half_counts([count(events, ~odd), count(events, odd)], pairs, show))
    return pairs, sums, halves


def test_integer_moments_of_three_sites_are_those_of_their_patients_together() -> None:
    """As a secure sum adds them: vectors of int64, modulo 2^64."""
    rng = np.random.default_rng(4)
    n, tables = 12, []
    for place, size in enumerate((200, 300, 500)):
        who = np.repeat(np.arange(size), 12) + 1000 * place
        day = np.sort(rng.integers(0, 200, (size, 12)), axis=1).ravel().astype(np.int32)
        code = (who % 3 * 4 + rng.integers(0, 6, len(who))) % n
        tables.append((who, day, code.astype(np.int32)))
    pairs, sums, halves = pooled(tables, n)
    with np.errstate(over="ignore"):
        entry = EntrySums.of(
            sum((s.vector(sites=3).astype(np.uint64) for s in sums), np.uint64(0)).astype(np.int64)
        )
        half = HalfCounts.of(
            sum((h.vector(sites=3).astype(np.uint64) for h in halves), np.uint64(0)).astype(np.int64)
        )
    together = tuple(np.concatenate(c) for c in zip(*tables, strict=True))
    rule = study().counting
    whole = count_pairs(*together, n, window_days=rule.window, threads=1)
    margins = fit_margins(code_rows(whole))
    one = entry_sums([together], rule, pairs, margins, shown(whole, pairs), threads=1)
    np.testing.assert_array_equal(entry.counts, one.counts)
    np.testing.assert_array_equal(entry.squares, one.squares)
    np.testing.assert_array_equal(half.counts.sum(axis=0), one.counts)
    exact = EntrySums(*(np.sum([getattr(s, name) for s in sums], axis=0) for name in EntrySums._fields))
    np.testing.assert_allclose(entrywise(entry, pairs).z, entrywise(exact, pairs).z, atol=1e-3)
    plain = HalfCounts(*(np.sum([getattr(h, name) for h in halves], axis=0) for name in HalfCounts._fields))
    np.testing.assert_allclose(smooth(half, pairs).values, smooth(plain, pairs).values, rtol=1e-6)
