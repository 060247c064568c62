"""Tests of association pooled over three sites by secure sum, against pooling the same gated inputs in the clear."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

pytest.importorskip("flwr")

from coordinator.cli import app
from coordinator.flower import post
from coordinator.graph import pooled
from coordinator.graph.pooled import pooled_graph
from coordinator.graph.structure import read_structure, structure_table
from coordinator.graph.tested import SCHEMA, read_tests
from coordinator.sums.asking import asked_for, basis_of
from coordinator.sums.drive import run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.record import SumStore
from protocol.console import out
from protocol.errors import DataError, GateError, ProtocolError, RoundError, StudyError, UsageError
from protocol.sums import KINDS, Statistic, SumProposal, pack_basis
from site_agent.cli import app as site_app
from site_agent.sums import basis
from site_agent.sums.approval import check_terms, preview_sum
from site_agent.sums.folder import SumFolder
from site_agent.sums.kinds import COUNTERS
from tests.sum_federation import CODES, SITES, STUDY, Consortium, make_events
from tests.sum_graph import (
    Clear,
    check_integers,
    check_smoothed,
    more_events,
    pooled_in_the_clear,
)
from tests.unit.test_sum_federation import NODES, Line, enrolled, status

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    monkeypatch.setattr(post, "DISK_RESERVE", 0)


def ask(consortium: Consortium, name: str, statistic: Statistic, **options: str) -> None:
    asked = asked_for(consortium.hub, statistic, **options)
    open_sum(consortium.hub, name, asked, enrolled=enrolled(consortium), nodes=NODES)


def summed(consortium: Consortium, line: Line, name: str) -> None:
    """Propose, approve at every site, and sum."""
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, name, line)
    for site in SITES:
        if "no roster" in status(consortium, name)[site]:
            consortium.trust(site)
        consortium.approve(site, name)
    assert run_sum(consortium.hub, name, line).sites == SITES


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """All four sums, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
        patch.setattr(post, "DISK_RESERVE", 0)
        patch.setattr("tests.sum_federation.make_events", more_events)
        consortium = Consortium(tmp_path_factory.mktemp("graph") / "all")
        line = Line(consortium)
        ask(consortium, "margins", "graph-margins", codes=str(consortium.codes))
        summed(consortium, line, "margins")
        ask(consortium, "alone", "graph-alone", margins="margins")
        summed(consortium, line, "alone")
        ask(consortium, "halves", "graph-halves", margins="margins")
        summed(consortium, line, "halves")
        ask(consortium, "blocks", "graph-blocks", halves="halves")
        summed(consortium, line, "blocks")
    return consortium


@pytest.fixture(scope="module")
def clear(finished: Consortium) -> Clear:
    return pooled_in_the_clear(finished)


def test_sums_of_whole_numbers_are_exactly_those_of_the_gated_inputs(
    finished: Consortium, clear: Clear
) -> None:
    check_integers(finished, clear)


def test_the_smoothed_test_is_that_of_the_clear_sums(finished: Consortium, clear: Clear) -> None:
    check_smoothed(finished, clear)


def test_related_codes_are_found_and_few_others(finished: Consortium) -> None:
    """Codes of one ten, or of two neighbouring ones, share a topic."""
    found = pooled_graph(finished.hub, "alone", "blocks")
    hit = np.flatnonzero(found.q <= found.rules.fdr)
    tens = np.array([int(code[-2]) for code in found.codes])
    apart = (tens[found.alone.row[hit]] - tens[found.alone.column[hit]]) % 4
    assert len(hit) > 50
    assert (apart == 2).mean() < 0.1


# --- What a site refuses -------------------------------------------------------------------------------


@pytest.fixture
def copy(finished: Consortium, tmp_path: Path) -> Consortium:
    found = Consortium.copied(finished.folder, tmp_path / "all")
    found.rows = dict(finished.rows)
    return found


def proposed(consortium: Consortium, name: str, statistic: Statistic, **options: str) -> SumProposal:
    """A sum that was brought to the sites."""
    ask(consortium, name, statistic, **options)
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, name, Line(consortium))
    return SumStore(consortium.hub.folder / "sums" / name).load().proposal


def folder(consortium: Consortium, site: str = "north") -> SumFolder:
    return SumFolder(consortium.homes[site].folder / "sums")


def test_blocks_must_be_of_the_patients_of_the_halves(copy: Consortium) -> None:
    proposed(copy, "again", "graph-blocks", halves="halves")
    copy.write_events("north", more_events("north", 77))
    with pytest.raises(GateError, match="the patients' events are others"):
        preview_sum(copy.homes["north"], "again")


def test_blocks_must_be_of_the_coding_of_the_halves(copy: Consortium) -> None:
    """The patients' days are the same, and no digest of them tells."""
    proposed(copy, "again", "graph-blocks", halves="halves")
    lines = [f"L{c:02d},C{c:02d}" for c in range(1, 40)]
    anchors = next(copy.homes["south"].folder.parent.glob("south.anchors.csv"))
    anchors.write_text("\n".join(["local_code,standard_code", "L00,C05", *lines]) + "\n")
    with pytest.raises(GateError, match="the coding, the floors or the counting are others"):
        preview_sum(copy.homes["south"], "again")
    assert preview_sum(copy.homes["lake"], "again").values == folder(copy, "lake").preview("blocks").values  # type: ignore[union-attr]


def test_a_smoother_must_follow_from_the_halves_that_the_site_knows(copy: Consortium) -> None:
    proposal = proposed(copy, "again", "graph-blocks", halves="halves")
    assert proposal.graph is not None
    assert proposal.graph.halves is not None
    sums, text = folder(copy), basis_of(copy.hub, proposal)
    (sums.root / "again" / "basis.safetensors").unlink()

    def check(text: str = text, site: str = "north", **changes: Any) -> None:
        halves = proposal.graph.halves.model_copy(update=changes)  # type: ignore[union-attr]
        graph = proposal.graph.model_copy(update={"halves": halves})  # type: ignore[union-attr]
        basis.check(sums, proposal.model_copy(update={"graph": graph}), site, text)

    for reason, arguments in (
        ("are not those with which halves ended", {"text": pack_basis(b"other")}),
        ("ended with another outcome here", {"result": "0" * 64}),
        ("ended with another outcome here", {"name": "alone"}),
        ("knows no outcome of sum never", {"name": "never"}),
        ("halves are not in sum halves", {"site": "west"}),
    ):
        with pytest.raises(GateError, match=reason):
            check(**arguments)  # type: ignore[arg-type]
    for text_ in ("", "?", text[:-8], pack_basis(bytes(1 << 22))):
        with pytest.raises(ProtocolError, match="damaged"):
            check(text_)
    others = proposal.graph.model_copy(update={"rows": proposal.graph.rows[::-1]})
    with pytest.raises(GateError, match="other pairs of codes"):
        basis.check(sums, proposal.model_copy(update={"graph": others}), "north", text)
    with pytest.raises(GateError, match="are not here"):
        preview_sum(copy.homes["north"], "again")
    check()
    assert sums.basis("again") == (copy.hub.folder / "pooled" / "halves" / "counts.safetensors").read_bytes()


def test_a_smoother_of_another_rank_is_refused(copy: Consortium) -> None:
    proposal = proposed(copy, "again", "graph-blocks", halves="halves")
    halves = proposal.graph.halves  # type: ignore[union-attr]
    other = halves.model_copy(update={"rank": halves.rank + 1})  # type: ignore[union-attr]
    sums, data = folder(copy), folder(copy).basis("again")
    graph = proposal.graph.model_copy(update={"halves": other})  # type: ignore[union-attr]
    sums.keep("again", proposal.model_copy(update={"graph": graph}))
    assert sums.basis("again") is None  # a new proposal brings its own
    sums.keep_basis("again", data)  # type: ignore[arg-type]
    with pytest.raises(GateError, match="eigenpairs here and"):
        preview_sum(copy.homes["north"], "again")


def test_too_few_patients_make_no_blocks(copy: Consortium) -> None:
    proposed(copy, "again", "graph-halves", margins="margins")
    copy.write_events("north", make_events("north", 1, 90))
    with pytest.raises(DataError, match="random blocks of patients, and the smoothed test needs 100"):
        preview_sum(copy.homes["north"], "again")


@pytest.mark.parametrize(
    ("statistic", "options", "reveals", "floors"),
    [
        (
            "graph-margins",
            {"codes": "codes.csv"},
            "what all pairs below the floors",
            "all pairs of the others count",
        ),
        ("graph-alone", {"margins": "margins"}, "how they vary", "pairs below 25"),
    ],
)
def test_a_person_sees_what_the_total_reveals(
    copy: Consortium,
    monkeypatch: pytest.MonkeyPatch,
    statistic: Statistic,
    options: dict[str, str],
    reveals: str,
    floors: str,
) -> None:
    monkeypatch.setattr(out, "_width", 400)  # a table must not break its lines
    given = {k: str(copy.folder / v) if k == "codes" else v for k, v in options.items()}
    proposed(copy, "again", statistic, **given)
    call = ["sums", "preview", "again", "--home", str(copy.homes["north"].folder)]
    shown = " ".join(CliRunner().invoke(site_app, call).stdout.split())
    assert KINDS[statistic].what in shown
    assert reveals in shown
    assert floors in shown


def test_events_in_spark_are_refused(copy: Consortium) -> None:
    proposed(copy, "again", "graph-margins", codes=str(copy.codes))
    path = copy.homes["north"].folder / "site.toml"
    text = path.read_text().replace('kind = "triplets"', 'kind = "omop"\ndatabase = "spark://local"')
    path.write_text("\n".join(x for x in text.splitlines() if not x.startswith("events")))
    with pytest.raises(GateError, match="cannot be counted in Spark"):
        preview_sum(copy.homes["north"].__class__(copy.homes["north"].folder), "again")


def test_a_sum_is_run_once_over_the_same_data(copy: Consortium) -> None:
    """Halves are fixed by the staging: two sums of them would be the same, and a third one no difference."""
    proposed(copy, "again", "graph-halves", margins="margins")
    for site in SITES:
        found = copy.approve(site, "again")
        assert found.values == folder(copy, site).preview("halves").values  # type: ignore[union-attr]
    line = Line(copy)
    with pytest.raises(RoundError):
        run_sum(copy.hub, "again", line)
    assert any("has been summed over the same data and sites" in n for n in line.news)


@pytest.mark.parametrize("extra", ['small_cells = "include"\n', "[differential_privacy]\nenabled = true\n"])
def test_a_study_with_small_cells_or_noise_is_refused(
    finished: Consortium, tmp_path: Path, extra: str
) -> None:
    other = Consortium(tmp_path / "other", study=STUDY + extra)
    with pytest.raises(StudyError, match="cannot have graph-margins summed"):
        ask(other, "g1", "graph-margins", codes=str(other.codes))
    # A coordinator that proposes it all the same.
    proposal = SumStore(finished.hub.folder / "sums" / "margins").load().proposal
    with pytest.raises(GateError, match=r"the study asks for noise|few patients' counts"):
        check_terms(other.homes["north"], proposal.model_copy(update={"study_digest": other.study.digest}))


# --- What the coordinator makes of it ------------------------------------------------------------------


def test_sums_of_other_statistics_or_sites_are_refused(
    finished: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    for alone, blocks in (("halves", ""), ("alone", "halves")):
        with pytest.raises(UsageError, match="The sum halves is of graph-halves, not of"):
            pooled_graph(finished.hub, alone, blocks)
    with pytest.raises(UsageError, match="needs --halves, and no other source"):
        asked_for(finished.hub, "graph-blocks", margins="margins")
    real = pooled.finished

    def fewer(home: Any, name: str, statistic: Statistic) -> Any:
        result, *rest = real(home, name, statistic)
        if name == "blocks":
            result = result.model_copy(update={"sites": (*SITES[:2], "west")})
        return (result, *rest)

    # The proposal is found by the result's name and digest, which stay.
    monkeypatch.setattr(pooled, "finished", fewer)
    with pytest.raises(UsageError, match="south, west is in one of them only"):
        pooled_graph(finished.hub, "alone", "blocks")


def test_a_spoiled_sum_is_no_result(finished: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site can give what it likes; what comes of it is said, and no traceback."""
    real = pooled.finished

    def spoil(sum_: str, place: int, value: int) -> None:
        def spoiled(home: Any, name: str, statistic: Statistic) -> Any:
            result, found, codes = real(home, name, statistic)
            if name == sum_:
                found = found.copy()
                found[place] = value
            return result, found, codes

        monkeypatch.setattr(pooled, "finished", spoiled)

    spoil("halves", 3, -1)
    with pytest.raises(ProtocolError, match="The pooled halves hold negative counts"):
        pooled_graph(finished.hub, "alone", "blocks")
    spoil("blocks", -1, 0)
    with pytest.raises(ProtocolError, match="holds 0 degrees of freedom"):
        pooled_graph(finished.hub, "alone", "blocks")
    asked = asked_for(finished.hub, "graph-alone", margins="margins")
    graph = asked.graph.model_copy(update={"rows": (-1, *asked.graph.rows[1:])})  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="a pooled row sum is negative"):
        open_sum(finished.hub, "g9", replace(asked, graph=graph), enrolled=enrolled(finished), nodes=NODES)


def test_the_command_writes_all_tested_pairs(finished: Consortium, tmp_path: Path) -> None:
    home = str(finished.hub.folder)
    said = json.loads(
        CliRunner().invoke(app, ["graph", "build", "alone", "blocks", "--home", home, "--json"]).stdout
    )
    found = pooled_graph(finished.hub, "alone", "blocks")
    table = pq.read_table(finished.hub.folder / "graph" / "related.parquet")
    assert table.schema.equals(SCHEMA)
    assert said["tested"] == table.num_rows == len(found.q)
    assert said["found"] == int((found.q <= found.rules.fdr).sum())
    assert (said["test"], said["sums"], said["sites"]) == (
        "smoothed",
        ["alone", "halves", "blocks"],
        list(SITES),
    )
    np.testing.assert_array_equal(table["q"], np.sort(found.q))
    np.testing.assert_array_equal(np.sort(table["alone_p"]), np.sort(found.alone.p))
    text = (
        CliRunner().invoke(app, ["graph", "build", "alone", "--home", home, "--output", str(tmp_path)]).stdout
    )
    assert f"{int((found.alone_q <= found.rules.fdr).sum()):,} of {len(found.q):,} tested pairs" in text
    alone = pq.read_table(tmp_path / "related.parquet")
    np.testing.assert_array_equal(alone["p"], alone["alone_p"])


def test_the_structure_is_that_of_the_smoothed_test(finished: Consortium, tmp_path: Path) -> None:
    def build(*sums: str) -> None:
        command = ["graph", "build", *sums, "--home", str(finished.hub.folder), "--output", str(tmp_path)]
        assert CliRunner().invoke(app, command).exit_code == 0

    build("alone", "blocks")
    found = pooled_graph(finished.hub, "alone", "blocks")
    codes = ["SOUTH:L01", *found.codes[::-1]]
    read = read_structure(tmp_path / "related.parquet", codes)
    assert read is not None and read.shape == (len(codes), found.rank) and not read[0].any()
    smooth, structure = found.smooth, found.structure
    assert smooth is not None and structure is not None
    np.testing.assert_allclose(read[:0:-1], structure, atol=1e-6)
    lengths = np.linalg.norm(structure, axis=1)
    assert np.all((np.abs(lengths - 1.0) < 1e-9) | (lengths == 0.0)) and (lengths > 0).sum() > 10
    # Codes that stand alike relate to the same codes: their smoothed log ratios agree.
    seen = np.isfinite(smooth.error)
    value = np.einsum("ij,ij->i", structure[smooth.row], structure[smooth.column])[seen]
    assert np.corrcoef(value, np.sign(smooth.log_ratio[seen]))[0, 1] > 0.5
    # Tests that were not smoothed leave none behind, not even an older one.
    build("alone")
    assert not (tmp_path / "structure.parquet").exists()
    assert read_structure(tmp_path / "related.parquet", codes) is None


def test_structure_of_other_sums_or_of_another_form_is_refused(finished: Consortium, tmp_path: Path) -> None:
    home, tests = str(finished.hub.folder), tmp_path / "related.parquet"
    CliRunner().invoke(app, ["graph", "build", "alone", "blocks", "--home", home, "--output", str(tmp_path)])
    path = tmp_path / "structure.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"smile-federation": "{}"}), path)
    with pytest.raises(UsageError, match="is from other sums than related"):
        read_structure(tests, CODES)
    path.write_text("no table")
    with pytest.raises(UsageError, match="cannot be read"):
        read_structure(tests, CODES)
    about = pq.read_schema(tests).metadata
    for columns in ({"code": ["A"]}, {"code": ["A"], "vector": ["text"]}):
        pq.write_table(pa.table(columns).replace_schema_metadata(about), path)
        with pytest.raises(ProtocolError, match="has another form"):
            read_structure(tests, CODES)
    broken = structure_table([CODES[0]], np.array([[np.nan, 1.0]])).replace_schema_metadata(about)
    pq.write_table(broken, path)
    with pytest.raises(ProtocolError, match="a number that is none"):
        read_structure(tests, CODES)


def test_a_release_takes_the_tests_of_its_codes(finished: Consortium, tmp_path: Path) -> None:
    home = str(finished.hub.folder)
    CliRunner().invoke(app, ["graph", "build", "alone", "blocks", "--home", home, "--output", str(tmp_path)])
    path, codes = tmp_path / "related.parquet", ["SOUTH:L01", *CODES[20::-1]]
    found = read_tests(path, codes, finished.study.digest)
    rows = {(r["left"], r["right"]): r for r in pq.read_table(path).to_pylist()}
    inside = [pair for pair in rows if set(pair) <= set(codes)]
    assert 0 < len(inside) == len(found.p) < len(rows)
    for (left, right), p, q in zip(found.pairs, found.p, found.q, strict=True):
        row = rows[codes[left], codes[right]]
        assert (row["p"], row["q"]) == (p, q)
    with pytest.raises(UsageError, match="of another study"):
        read_tests(path, codes, "0" * 64)
    with pytest.raises(UsageError, match="cannot be read"):
        read_tests(tmp_path / "none.parquet", codes, finished.study.digest)


def test_every_statistic_has_its_counter() -> None:
    assert {s for s in KINDS if s.startswith("graph")} <= set(COUNTERS)
