"""The graph as people get it: in a release, as files, in a notebook, by the API, and as a page."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from coordinator import publish
from coordinator.cli import app
from coordinator.client import load_release
from coordinator.config import Home
from coordinator.exports.cells import unguarded
from coordinator.exports.formats import RELATED
from coordinator.exports.writing import export_release
from coordinator.graph import Edges, Graph, building, edges_table, read_edges
from coordinator.graph.building import build_edges
from coordinator.graph.published import has_graph
from coordinator.graph.structure import STRUCTURE, structure_table
from coordinator.graph.tables import EDGES
from coordinator.graph.tested import SCHEMA as TESTS
from coordinator.library import Library, OpenRelease
from coordinator.model.selection import Rule, select_neighbours
from coordinator.web.pages.drawing import draw_cloud, draw_graph
from protocol.errors import ProtocolError, UsageError
from protocol.published import verify_folder
from tests.big_release import big_home
from tests.hub import STUDY, Hub, releases
from tests.synthetic import unit_rows
from tests.web import HOSTILE, Web, copy_home, web

OWN_SITE = STUDY.replace("minimum_sites", 'publish_local_codes = "own-site"\nminimum_sites')
SVG = "{http://www.w3.org/2000/svg}"
LAX = partial(select_neighbours, rule=Rule(degrees=0.0))
"""In eight dimensions the criterion finds that nothing is related."""
EVIL = (
    "</text><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "=1+1",
    "a\x00\x1b\u202eb",
    "&lt;&#60;",
    "]]>",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "select_neighbours", LAX)
        return big_home(tmp_path_factory.mktemp("related"), 300, dim=8, graph=True)


@pytest.fixture(scope="module")
def opened(home: Home) -> OpenRelease:
    return Library(home).open(1)


@pytest.fixture(scope="module")
def pages(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(copy_home(home, tmp_path_factory.mktemp("running"))) as running:
        yield running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Version 1 without a graph, version 2 with one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "select_neighbours", LAX)
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        made = Hub(tmp_path_factory.mktemp("graph"), OWN_SITE)
        made.enrol("lake", "north", "south", "west")
        made.run_round(releases(), "r1")
        config = made.home.folder / "coordinator.toml"
        config.write_text("graph = true\n" + config.read_text())
        made.fresh()
        made.run_round(releases(), "r2")
    return made


def busiest(graph: Graph) -> str:
    ends = np.concatenate([graph.edges.left, graph.edges.right])
    return graph.edges.codes[int(np.bincount(ends).argmax())]


# --- In a release --------------------------------------------------------------------------------------


def test_a_version_has_a_graph_only_where_the_coordinator_asks_for_it(hub: Hub) -> None:
    trust = hub.home.keys.public()
    assert not has_graph(verify_folder(hub.home.release_folder(1), trust))
    assert has_graph(verify_folder(hub.home.release_folder(2), trust))
    with pytest.raises(UsageError, match="Version 1 has no graph"):
        _ = Library(hub.home).open(1).graph


def table_of(pairs: list[tuple[str, str, float]], study: str) -> pa.Table:
    """What `coordinator graph build` writes, of pairs with a p each; q is twice that."""
    left, right, p = (list(column) for column in zip(*pairs, strict=True))
    ends, n = {"left": left, "right": right}, len(pairs)
    columns = [
        ends.get(field.name)
        or ([2 * x if field.name.endswith("q") else x for x in p] if field.name[-1] in "pq" else [1] * n)
        for field in TESTS
    ]
    about = json.dumps({"study": study}).encode()
    return pa.table(columns, schema=TESTS.with_metadata({b"smile-federation": about}))


def test_a_version_has_the_p_and_q_of_pooled_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "select_neighbours", LAX)
    monkeypatch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
    made = Hub(tmp_path)
    made.enrol("lake", "north", "south", "west")
    config = made.home.folder / "coordinator.toml"
    config.write_text('graph = true\ngraph_tests = "graph/related.parquet"\n' + config.read_text())
    made.fresh()
    codes = [f"ICD10CM:C{c:02d}" for c in range(60)]
    pairs = [(a, b, 0.001 if b == codes[59] else 0.4) for i, a in enumerate(codes) for b in codes[i + 1 :]]
    pairs.append((codes[0], "ICD10CM:OTHER", 0.0001))
    with pytest.raises(UsageError, match="cannot be read"):
        made.run_round(releases(), "r1")
    (made.home.folder / "graph").mkdir()
    pq.write_table(table_of(pairs, "0" * 64), made.home.folder / "graph" / "related.parquet")
    with pytest.raises(UsageError, match="of another study"):
        made.publish("r1", None)
    pq.write_table(table_of(pairs, made.home.study.digest), made.home.folder / "graph" / "related.parquet")
    made.publish("r1", None)
    edges = pq.read_table(made.home.release_folder(1) / EDGES).to_pylist()
    assert {codes[59]} <= {r["right"] for r in edges if r["relation"] != "direct"}
    assert {r["left"] for r in edges if r["right"] == codes[59]} == set(codes[:59])
    assert all((r["p"], r["q"]) == (0.001, 0.002) for r in edges if r["right"] == codes[59])
    assert all((r["p"], r["q"]) == (0.4, 0.8) for r in edges if r["right"] in codes[:59])
    assert all(r["p"] is None for r in edges if "WEST:" in r["left"] + r["right"])
    assert not (made.home.release_folder(1) / STRUCTURE).exists()
    rank_by_structure(made, codes)


def rank_by_structure(made: Hub, codes: list[str]) -> None:
    """Version 2 has places of the first thirty codes, in which the first two are alike."""
    rng = np.random.default_rng(7)
    points = np.vstack([unit_rows(rng, 30, 5), np.zeros((30, 5))])
    points[1] = points[0]
    tests = made.home.folder / "graph" / "related.parquet"
    about = json.loads(pq.read_schema(tests).metadata[b"smile-federation"])
    pq.write_table(structure_table(codes, points, about), tests.with_name("structure.parquet"))
    made.run_round(releases(), "r2")
    folder = made.home.release_folder(2)
    assert pq.read_table(folder / STRUCTURE)["code"].to_pylist() == codes[:30]
    graph = Library(made.home).open(2).graph
    category = graph.categories[codes[0]]
    vectors = np.eye(len(graph.edges.codes))
    ranked = graph.ranking(codes[0], category, vectors)
    structure = {g.code: g.structure for g in ranked}
    assert structure[codes[1]] == pytest.approx(1.0)
    assert {c for c, value in structure.items() if value is not None} == set(codes[1:30])
    for guess in ranked:
        assert guess.score == pytest.approx(guess.cosine + 3 * guess.weight + 0.5 * (guess.structure or 0.0))
    assert [g.score for g in ranked] == sorted((g.score for g in ranked), reverse=True)


def test_no_site_sees_what_another_s_local_code_is_related_to(hub: Hub) -> None:
    folder = hub.home.release_folder(2)
    own, all_ = (
        read_edges(pq.read_table(path / EDGES)) for path in (publish.site_copies(folder) / "west", folder)
    )
    assert any(code.startswith("WEST:") for code in own.codes)
    assert not any(code.startswith("WEST:") for code in all_.codes)
    for site in ("lake", "north", "south"):
        assert (publish.site_copies(folder) / site / EDGES).read_bytes() == (folder / EDGES).read_bytes()
    # What both see is the same.
    assert edges_table(own.among(set(all_.codes))).equals(edges_table(all_))


def test_nothing_was_tested_and_synonyms_are_no_relation(hub: Hub) -> None:
    opened = Library(hub.home).open(2)
    edges = opened.graph.edges
    assert len(edges) and np.isnan(edges.p).all() and np.isnan(edges.q).all()
    cluster = {e.code: e.cluster for e in opened.map.entries}
    assert all(
        cluster[edges.codes[a]] != cluster[edges.codes[b]]
        for a, b in zip(edges.left, edges.right, strict=True)
    )


def test_progress_of_the_graph_is_told(hub: Hub) -> None:
    opened, told = Library(hub.home).open(2), list[float]()

    class Fitted:
        rows = opened.map.entries
        embedding = opened.index.vectors

    found = build_edges(Fitted(), progress=told.append)  # type: ignore[arg-type]
    assert told == sorted(told) and told[-1] == 1.0
    assert edges_table(found.among(set(opened.entries))).num_rows == len(found)


# --- As files ------------------------------------------------------------------------------------------


def test_graphml_holds_every_edge_for_networkx(home: Home, opened: OpenRelease, tmp_path: Path) -> None:
    out = tmp_path / "map.graphml"
    export_release(home.release_folder(1), out, "graphml", trust=home.keys.public())
    read, edges = networkx.read_graphml(out), opened.graph.edges
    assert set(read.nodes) == set(opened.entries) and read.number_of_edges() == len(edges)
    left, right = edges.codes[edges.left[0]], edges.codes[edges.right[0]]
    assert read.edges[left, right]["weight"] == pytest.approx(edges.weight[0])
    assert "q" not in read.edges[left, right]


def test_csv_holds_every_edge_and_no_formula(home: Home, opened: OpenRelease, tmp_path: Path) -> None:
    out = tmp_path / "edges.csv"
    result = CliRunner().invoke(
        app,
        ["export", "1", "--format", "edges-csv", "--output", str(out), "--home", str(home.folder), "--json"],
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {"version": 1, "format": "edges-csv", "file": str(out)}
    rows = list(csv.DictReader(io.StringIO(out.read_text(), newline="")))
    edges = opened.graph.edges
    want = [(edges.codes[a], edges.codes[b]) for a, b in zip(edges.left, edges.right, strict=True)]
    assert [(r["left"], r["right"]) for r in rows] == want
    assert {r["q"] for r in rows} == {""}
    names = {r[side] for r in rows for side in ("left_name", "right_name")}
    assert not any(n.lstrip()[:1] in {*"=+-@"} for n in names)
    assert {opened.entries[r["left"]].name for r in rows} >= {unguarded(r["left_name"]) for r in rows}


@pytest.mark.parametrize("form", RELATED)
def test_a_graph_that_is_not_there_cannot_be_exported(form: str, hub: Hub, tmp_path: Path) -> None:
    trust = hub.home.keys.public()
    with pytest.raises(UsageError, match="Version 1 has no graph"):
        export_release(hub.home.release_folder(1), tmp_path / "out", form, trust=trust)
    with pytest.raises(UsageError, match=f"The format {form} is of related codes"):
        export_release(hub.home.release_folder(2), tmp_path / "out", form, trust=trust, at_least=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", RELATED)
def test_an_altered_graph_is_not_exported(form: str, home: Home, tmp_path: Path) -> None:
    spoilt = copy_home(home, tmp_path)
    path = spoilt.release_folder(1) / EDGES
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ProtocolError, match="altered"):
        export_release(spoilt.release_folder(1), tmp_path / "out", form, trust=home.keys.public())


# --- In a notebook -------------------------------------------------------------------------------------


def test_the_client_answers_as_the_graph(home: Home, opened: OpenRelease) -> None:
    release = load_release(home.release_folder(1), trust=home.folder / "invitation.json")
    code = busiest(opened.graph)
    found = release.related(code, k=5)
    assert found == opened.graph.neighbours(code, k=5) and len(found) == 5
    assert release.related(code, q_most=0.05) == []
    wanted = found[0].category
    assert {n.category for n in release.related(code, k=None, categories=(wanted,))} == {wanted}
    assert all(n.sign > 0 for group in release.features(code).values() for n in group)
    ranked = release.ranking(code, wanted)
    assert len(ranked) == sum(e.category == wanted and e.code != code for e in opened.map.entries)
    assert [g.score for g in ranked] == sorted((g.score for g in ranked), reverse=True)
    assert ranked[0].score == pytest.approx(ranked[0].cosine + 3 * ranked[0].weight)
    assert {g.structure for g in ranked} == {None}
    points = {c: release.vector(c) for c in (code, ranked[0].code)}
    assert ranked[0].cosine == pytest.approx(float(points[code] @ points[ranked[0].code]), abs=1e-5)
    for asked in (lambda: release.related("ICD10CM:none"), lambda: release.ranking(code, "nothing")):
        with pytest.raises(UsageError):
            asked()


# --- The API and the pages -----------------------------------------------------------------------------


def test_the_api_says_what_is_related(pages: Web, opened: OpenRelease) -> None:
    code = busiest(opened.graph)
    answer = pages.get("/releases/1/related", params={"code": code, "k": 3})
    assert answer.status_code == 200
    want = [(n.code, n.weight, n.q) for n in opened.graph.neighbours(code, k=3)]
    assert [(i["code"], i["weight"], i["q"]) for i in answer.json()["items"]] == want
    again = pages.get(
        "/releases/1/related",
        params={"code": code, "k": 3},
        headers={"if-none-match": answer.headers["etag"]},
    )
    assert again.status_code == 304
    assert pages.get("/releases/1/related", params={"code": code, "q_most": 0.05}).json()["items"] == []
    assert pages.get("/releases/1/related", params={"code": "ICD10CM:none"}).status_code == 404
    assert pages.get("/releases/1/related", params={"code": code, "category": "x"}).status_code >= 400
    exports = {f["format"]: f for f in pages.get("/releases/1/exports").json()["formats"]}
    for form in RELATED:
        assert exports[form]["available"]
        assert pages.get(f"/releases/1/exports/{form}").status_code == 200


def test_a_version_without_a_graph_says_so(hub: Hub) -> None:
    with web(hub.home) as running:
        code = Library(hub.home).open(1).map.entries[0].code
        answer = running.get("/releases/1/related", params={"code": code})
        assert answer.status_code == 404 and "has no graph" in answer.text
        formats = running.get("/releases/1/exports").json()["formats"]
        assert {f["format"] for f in formats if f["why"] == "this version was published without a graph"} == {
            *RELATED
        }
        headers = running.headers("ann") | {"accept": "text/html"}
        page = running.client.get(f"/v/1/concept/{code}", headers=headers)
        assert page.status_code == 200 and "/related?" not in page.text
        assert "/related?" in running.client.get(f"/v/2/concept/{code}", headers=headers).text
        missing = running.client.get("/v/1/related", params={"code": code}, headers=headers)
        assert missing.status_code == 404 and "has no graph" in missing.text


def see(pages: Web, path: str, **query: Any) -> Any:
    headers = pages.headers("ann") | {"accept": "text/html"}
    return pages.client.get(f"/v/1/related{path}", params=query, headers=headers)


def test_the_page_draws_and_offers_files(pages: Web, opened: OpenRelease) -> None:
    graph = opened.graph
    code = busiest(graph)
    page = see(pages, "", code=code, k=6)
    assert page.status_code == 200
    near = graph.neighbours(code, k=6)
    for file in ("graph.svg", "cloud.svg"):
        answer = see(pages, f"/{file}", code=code, k=6)
        assert (
            answer.headers["content-type"] == "image/svg+xml"
            and "attachment" in answer.headers["content-disposition"]
        )
        drawn = ET.fromstring(answer.text)  # noqa: S314 - our own
        labels = list(drawn.iter(f"{SVG}text"))
        assert len(labels) == len(near) + (file == "graph.svg")
    lines = see(pages, "/related.csv", code=code, k=6).text.splitlines()
    assert len(lines) == 1 + len(graph.neighbourhood(code, k=6))
    other = near[0].category
    assert see(pages, "", code=code, category=other).status_code == 200
    assert see(pages, "", code=code, q_most="0.05").text.count("No code is related") == 1
    for bad in ({"k": 0}, {"k": 101}, {"q_most": "2"}, {"category": "nowhere"}):
        assert 400 <= see(pages, "", **({"code": code} | bad)).status_code < 500
    assert see(pages, "/else.svg", code=code).status_code in {404, 422}


def test_hostile_names_stay_text(pages: Web, opened: OpenRelease) -> None:
    found = [HOSTILE, *(n.code for n in opened.graph.neighbours(HOSTILE, k=3))]
    for code in found:
        for path in ("", "/graph.svg", "/cloud.svg"):
            text = see(pages, path, code=code, k=100).text
            assert "<script>alert" not in text and "<img" not in text


def hostile_graph() -> Graph:
    codes = tuple(sorted(f"X:{i}{name}" for i, name in enumerate(EVIL)))
    n = len(codes) - 1
    ones = np.ones(n)
    edges = Edges(
        codes,
        np.zeros(n, dtype=np.intp),
        np.arange(1, n + 1),
        ones * np.array([0.5, -0.25, 0.0, np.nan, 1.5])[:n],
        np.array([1, -1, 1, 1, 1], dtype=np.int8),
        ones,
        ones * np.nan,
        ones * np.nan,
        np.array([2, 1, 0, 0, 2], dtype=np.int8),
        np.array([False, False, False, True, False]),
    )
    return Graph(edges, dict(zip(codes, EVIL, strict=True)), dict.fromkeys(codes, EVIL[1]))


@pytest.mark.parametrize("linked", [False, True])
def test_drawings_of_hostile_text_are_sound_svg(linked: bool) -> None:
    graph = hostile_graph()
    code = graph.edges.codes[0]
    near = graph.neighbours(code)
    link = (lambda other: f"/v/1/related?code={quote(other)}") if linked else None
    for text in (
        draw_graph(code, graph.names[code], near, graph.neighbourhood(code), link=link),
        draw_cloud(near, link=link),
    ):
        tree = ET.fromstring(text)  # noqa: S314 - our own
        assert {e.tag for e in tree.iter()} <= {
            f"{SVG}{tag}" for tag in ("svg", "title", "g", "a", "line", "circle", "text")
        }
        assert not any(name.startswith("on") for e in tree.iter() for name in e.attrib)
        assert (tree.find(f".//{SVG}a") is not None) == linked


def test_labels_do_not_lie_on_each_other() -> None:
    graph = hostile_graph()
    code = graph.edges.codes[0]
    tree = ET.fromstring(draw_graph(code, "", graph.neighbours(code), graph.edges))  # noqa: S314 - our own
    places = [(t.get("text-anchor"), float(t.get("y", "0"))) for t in tree.iter(f"{SVG}text")]
    for side in ("start", "end"):
        heights = sorted(y for anchor, y in places if anchor == side)
        assert all(b - a > 14 for a, b in pairwise(heights))


def test_a_code_without_relations_has_a_page(pages: Web, opened: OpenRelease) -> None:
    graph = opened.graph
    ends = np.bincount(
        np.concatenate([graph.edges.left, graph.edges.right]), minlength=len(graph.edges.codes)
    )
    for place in np.flatnonzero(ends == 0)[:1]:
        page = see(pages, "", code=graph.edges.codes[place])
        assert page.status_code == 200 and "No code is related" in page.text
