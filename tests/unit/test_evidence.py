"""What a release says in favour of each candidate: clues, sources, known pairs, names, and who may see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sssom_pydantic
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from coordinator import estimate as estimating
from coordinator.background import Background
from coordinator.candidates import Ranking, rank_linked
from coordinator.explain import COVERAGE, by_clues
from coordinator.exports.reading import read_map
from coordinator.exports.tables import CLUE_STEP, shown_share
from coordinator.harmonize import Harmonized, fit_releases, load_fit, save_fit
from coordinator.knowledge.ancestry import kinship
from coordinator.knowledge.build import Build
from coordinator.knowledge.merge import LINKS, PAIRS
from coordinator.library import Library
from coordinator.linking import NEVER, Linked, gather, self_train
from coordinator.mapping import Candidate
from coordinator.model.factor import Source
from coordinator.naming import name_codes, one_line
from coordinator.ranking import default_fusion
from coordinator.reasons import Reasons
from coordinator.weak_pairs import meaning_by_source, same_meaning
from protocol.published import verify_folder
from protocol.release import VerifiedRelease
from tests.hub import STUDY, Hub, releases
from tests.synthetic import release, study, verified

N, DIM = 24, 3


def weighed(seed: int, *, silent: bool = False, kinds: int = 1) -> tuple[Linked, Ranking, Reasons]:
    """Three sites with two views at one; `far` has codes of its own, and of some rows two sites hold the candidate."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((N, DIM))
    n_rows, local = N + 8, np.arange(N, N + 8)
    held = [np.arange(N), np.sort(rng.permutation(N)[: N - 5]), np.r_[np.arange(6), local]]
    meaning = np.vstack([truth, truth[6:14]])

    def view(name: str, rows: np.ndarray) -> Source:
        matrix = meaning[rows] @ rng.standard_normal((DIM, 8)) + 0.3 * rng.standard_normal((len(rows), 8))
        return Source(name, rows, matrix)

    data = [
        view("near/cooccurrence", held[0]),
        view("mid/cooccurrence", held[1]),
        view("mid/ontology", held[1]),
        view("far/cooccurrence", held[2]),
    ]
    heard = [np.ones(len(s.codes), dtype=bool) for s in data]
    if silent:
        heard[1][:4] = False
    kind = np.zeros(n_rows, dtype=np.intp)
    kind[: N // 2 : kinds] = kinds - 1
    share = [rng.uniform(0.01, 0.3, len(s.codes)) for s in data]
    standard = np.arange(N)
    clues = gather(data, n_rows, standard, share, sites=[0, 1, 1, 2], categories=kind, speaks=heard)
    linked = self_train(data, n_rows, clues, DIM, default_fusion(clues.names), rounds=2, speaks=heard)
    ranking = rank_linked(linked, linked.latent.vectors(), standard, kind)
    return linked, ranking, by_clues(linked, ranking.rows, [s.name for s in data], {})


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 2))
def test_contributions_add_up_to_the_score_less_the_rows_mean(seed: int, silent: bool, kinds: int) -> None:
    linked, ranking, reasons = weighed(seed, silent=silent, kinds=kinds)
    for i, row in enumerate(linked.clues.local):
        score = linked.score[i]
        allowed = score > NEVER / 2
        share = softmax(score)
        for rank, target in enumerate(ranking.rows[row]):
            if target < 0:
                assert not reasons.clue[row, rank].any()
                assert reasons.share[row, rank] == 0.0
                continue
            j = int(np.flatnonzero(linked.clues.standard == target)[0])
            want = score[j] - score[allowed].mean()
            assert sum(reasons.clues_of(int(row), rank).values()) == pytest.approx(want, abs=1e-9)
            assert reasons.share[row, rank] == pytest.approx(share[j])
            latent = reasons.clues_of(int(row), rank)["latent"]
            assert sum(reasons.sources_of(int(row), rank).values()) == pytest.approx(latent, abs=1e-8)
    assert not reasons.clues_of(0, 0)  # a standard code's own row: nothing was weighed


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_parts_of_the_sources_add_up_to_same_meaning(seed: int) -> None:
    linked, _, _ = weighed(seed, silent=True)
    one, other = linked.clues.local, linked.clues.standard
    at = np.tile(np.arange(len(other)), (len(one), 1))
    parts, mean = meaning_by_source(linked.latent, one, other, at, np.ones(at.shape, dtype=bool))
    whole = same_meaning(linked.latent, one, other)
    np.testing.assert_allclose(parts.sum(axis=2), whole, atol=1e-8)
    np.testing.assert_allclose(mean, parts.mean(axis=1), atol=1e-8)
    silent = np.isin(other, np.setdiff1d(np.arange(len(linked.latent.pattern)), linked.latent.parts[1][0]))
    assert silent.any()
    assert not parts[:, silent, 1].any()  # a source says nothing of what it does not hold


def known(*said: tuple[str, str, str, bool, float], links: pa.Table | None = None) -> Build:
    rows = [
        {"code_1": min(a, b), "code_2": max(a, b), "kind": k, "label": label, "weight": w, "sources": ["experts", "x"]}
        for a, b, k, label, w in said
    ]  # fmt: skip
    return Build(pa.Table.from_pylist(rows, schema=PAIRS), {}, links or LINKS.empty_table())


def fitted(background: Background, method: str = "two-stage", **changes: Any) -> Harmonized:
    return fit_releases(given_releases(), spec(method=method, **changes), background=background)


def spec(method: str = "two-stage", **changes: Any) -> Any:
    return study(
        sites=("lake", "north", "south", "west"),
        code_systems=[{"prefix": "ICD10CM"}, {"prefix": "WEST", "local_to": "west"}],
        fit={"method": method, "dim": 5, "iterations": 3, "clusters": 30},
        **changes,
    )


def given_releases(names: Mapping[str, Mapping[str, str]] | None = None) -> list[VerifiedRelease]:
    found = []
    for site, (codes, matrix, anchors) in releases().items():
        made = release(site, codes, matrix, spec=spec(), anchors=anchors)
        texts = tuple((names or {}).get(site, {}).get(code, "") for code in codes)
        manifest = made.manifest.model_copy(update={"descriptions": texts if any(texts) else ()})
        found.append(verified(replace(made, manifest=manifest)))
    return found


def candidates(found: Harmonized, code: str) -> dict[str, Candidate]:
    row = next(r for r in found.mappings.rows if r.code == code)
    return {c.code: c for c in row.candidates}


def test_pairs_that_the_fit_used_stand_with_their_candidate() -> None:
    build = known(
        ("WEST:9", "ICD10CM:C09", "similar", True, 0.75),
        ("WEST:9", "ICD10CM:C10", "similar", False, 0.5),
        ("WEST:9", "ICD10CM:C09", "related:treats", True, 1.0),
        ("WEST:10", "ICD10CM:C59", "similar", True, 0.01),
    )
    found = fitted(Background(build, "a" * 64))
    near = candidates(found, "WEST:9")
    (pair,) = near["ICD10CM:C09"].pairs
    assert (pair.left, pair.right, pair.relation, pair.weight, pair.source) == (
        "ICD10CM:C09", "WEST:9", "similar", 0.75, "experts; x",
    )  # fmt: skip
    assert (
        near["ICD10CM:C09"].clues["known"]
        > 0
        > candidates(found, "WEST:9").get("ICD10CM:C10", _BELOW).clues["known"]
    )
    assert all(not c.pairs for code, c in candidates(found, "WEST:11").items())
    joint = fitted(Background(build, "a" * 64), "variational")
    kinds = {p.relation for p in candidates(joint, "WEST:9")["ICD10CM:C09"].pairs}
    assert kinds == {"similar", "related:treats"}


_BELOW = Candidate("", "", 0.0, 0.0, {"known": -1.0}, (), {})


@pytest.mark.parametrize("why", ["variational", "too many cells", "given"])
def test_where_nothing_was_weighed_no_clue_is_made_up(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "too many cells":
        monkeypatch.setattr(estimating, "MOST_CELLS", 0)
    found = fitted(Background(), "variational" if why == "variational" else "two-stage")
    rows = [r for r in found.mappings.rows if r.given == (why == "given") and r.candidates]
    assert rows
    for row in rows:
        assert all((c.share, dict(c.clues), dict(c.sources)) == (0.0, {}, {}) for c in row.candidates)
    if why == "given":
        assert any(c.clues for r in found.mappings.rows if not r.given for c in r.candidates)


def test_names_are_titles_first_and_then_what_most_sites_say() -> None:
    said = {
        "lake": {"ICD10CM:C01": "bbb", "ICD10CM:C02": "one"},
        "north": {"ICD10CM:C01": "aaa", "ICD10CM:C02": "one"},
        "south": {"ICD10CM:C01": "aaa\u2028b", "ICD10CM:C02": "other", "ICD10CM:C03": "site's"},
    }
    given_ = given_releases(said)
    held = {c for r in given_ for c in r.manifest.codes}
    allowed = spec().model_copy(update={"privacy": spec().privacy.model_copy(update={"names": True})})
    found = name_codes(given_, allowed, {"ICD10CM:C03": "=title\n\u202e", "ICD10CM:Z99": "of no code"})
    assert {"ICD10CM:C01", "ICD10CM:C02", "ICD10CM:C03"} <= held
    assert found == {"ICD10CM:C01": _tie(given_), "ICD10CM:C02": "one", "ICD10CM:C03": "=title"}
    assert name_codes(given_, spec(), {}) == {}


def _tie(given_: list[VerifiedRelease]) -> str:
    """Of names as frequent as each other the first one."""
    there = {
        r.manifest.site: one_line(dict(zip(r.manifest.codes, r.manifest.descriptions, strict=True))["ICD10CM:C01"])
        for r in given_
        if r.manifest.descriptions and "ICD10CM:C01" in r.manifest.codes
    }  # fmt: skip
    return min(there.values())


@given(st.text())
def test_one_line_is_one_line_and_stays_as_it_is(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert one_line(line) == line == line.strip()


LINES = [
    ("A:leaf", "A:branch", "is-a", "tree"),
    ("A:branch", "A:root", "is-a", "tree"),
    ("A:root", "A:above", "is-a", "other tree"),
    ("B:x", "A:leaf", "same-as", "tree"),
    ("C:1", "C:2", "is-a", "circle"),
    ("C:2", "C:1", "is-a", "circle"),
    ("ICD10CM:E11.9", "ICD10CM:E11", "is-a", "icd"),
]


def test_kinship_is_read_from_hierarchies() -> None:
    links = pa.Table.from_pylist([dict(zip(LINKS.names, line, strict=True)) for line in LINES], schema=LINKS)
    asked = {
        ("A:leaf", "A:root"): "ancestor",
        ("A:root", "A:leaf"): "descendant",
        ("B:x", "A:branch"): "ancestor",
        ("B:x", "A:leaf"): None,  # the same
        ("A:leaf", "A:above"): None,  # two sources together
        ("C:1", "C:2"): None,  # says both
        ("ICD10CM:E119", "ICD10CM:E11"): "ancestor",
        ("D:1", "A:root"): None,
    }
    assert kinship(links, asked) == {pair: kin for pair, kin in asked.items() if kin}
    assert kinship(LINKS.empty_table(), asked) == {}


OWN_STUDY = STUDY.replace("minimum_sites", 'publish_local_codes = "own-site"\nminimum_sites')


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub with knowledge that names west's codes and a hierarchy, titles, and local codes for their own site only."""
    from coordinator.knowledge.build import build
    from coordinator.knowledge.config import load_knowledge_file

    folder = tmp_path_factory.mktemp("evidence")
    hub = Hub(folder, OWN_STUDY)
    hub.enrol(*releases())
    lines = ["code_1,code_2,relation,label"]
    lines += ["WEST:9,ICD10CM:C09,similar,1"]
    # These are the same as C00 to C07 by west's word, so public codes that have them for candidates have these pairs.
    lines += [f"WEST:{i},ICD10CM:C{j:02d},similar,1" for i in range(8) for j in range(10, 60)]
    lines += [f"WEST:{i},ICD10CM:C{j:02d},is-a,1" for i in (9, 12) for j in range(60)]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    (folder / "k.toml").write_text('[[source]]\nkind = "pairs"\nname = "experts"\npath = "pairs.csv"\n')
    build(load_knowledge_file(folder / "k.toml"), hub.home.study, hub.home.folder / "knowledge")
    titles = [
        'ICD10CM,C09,"=Gout, <b>chronic</b> ""x"""',
        "WEST,9,Gout of the west",
        f"ICD10CM,C10,{'n' * 100_000}",
    ]
    (hub.home.folder / "titles.csv").write_text("system,code,title\n" + "\n".join(titles) + "\n")
    with (hub.home.folder / "coordinator.toml").open("a") as stream:
        stream.write('knowledge = "knowledge"\ntitles = "titles.csv"\n')
    hub.fresh()
    hub.run_round(releases())
    return hub


def copies(hub: Hub) -> dict[str, Path]:
    own = hub.home.folder / "releases" / "v1-sites"
    return {"consortium": hub.home.release_folder(1)} | {p.name: p for p in sorted(own.iterdir())}


def test_a_release_holds_candidates_clues_pairs_and_names(published: Hub) -> None:
    folder = copies(published)["west"]
    found = read_map(folder, verify_folder(folder, published.home.keys.public()))
    entries = {e.code: e for e in found.entries}
    e = entries["WEST:9"]
    assert (e.name, e.category, e.kinship) == ("Gout of the west", "condition", "ancestor")
    assert e.predicate == "skos:broadMatch"
    assert e.candidates[0].code == e.standard_code
    assert e.alternatives == tuple(c.code for c in e.candidates[1:])
    assert 0.1 < sum(c.share for c in e.candidates) <= 1.15
    assert [c.share for c in e.candidates] == sorted((c.share for c in e.candidates), reverse=True)
    first = next(c for c in e.candidates if c.code == "ICD10CM:C09")
    assert first.name == '=Gout, <b>chronic</b> "x"'
    assert {p.source.partition(";")[0] for p in first.pairs} == {"experts"}
    assert set(first.clues) == {"latent", "support", "profile", "known"}
    assert set(first.sources) <= {f"{s}/cooccurrence" for s in ("lake", "north", "south", "west")} | {
        COVERAGE
    }
    rows = [row for row in pq.read_table(folder / "evidence.parquet").to_pylist() if row["code"] == "WEST:9"]
    assert [row["rank"] for row in rows] == list(range(1, len(e.candidates) + 1))
    values = [v for row in rows for _, v in [*row["clues"], *row["sources"]]]
    assert all(v / CLUE_STEP == round(v / CLUE_STEP) for v in values)
    assert any(values)
    assert all(shown_share(c.share) == pytest.approx(c.share) for c in e.candidates)


def test_what_names_a_code_goes_where_the_code_goes(published: Hub) -> None:
    for audience, folder in copies(published).items():
        data = b"".join(p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file())
        tables = [str(pq.read_table(folder / f"{n}.parquet").to_pylist()) for n in ("clusters", "evidence")]
        seen = data.decode(errors="replace") + "".join(tables)
        assert ("WEST:" in seen.replace("codesystem:WEST", "")) == (audience == "west"), audience
        assert ("Gout of the west" in seen) == (audience == "west")
        rows = pq.read_table(folder / "evidence.parquet").to_pylist()
        named = {p["left"] for row in rows for p in row["pairs"] if row["code"].startswith("ICD10CM:")} | {
            p["right"] for row in rows for p in row["pairs"] if row["code"].startswith("ICD10CM:")
        }
        assert any(code.startswith("WEST:") for code in named) == (audience == "west")


def test_the_sssom_has_labels_sources_and_broad_matches(published: Hub) -> None:
    found = sssom_pydantic.read(copies(published)["west"] / "mappings.sssom.tsv").mappings
    rows = {m.subject.curie: m for m in found}
    assert rows["WEST:9"].subject.name == "Gout of the west"
    assert rows["WEST:9"].predicate.curie == "skos:broadMatch"
    sources = rows["WEST:9"].subject_source, rows["WEST:9"].object_source
    assert [s.curie for s in sources if s is not None] == ["codesystem:WEST", "codesystem:ICD10CM"]
    labels = {m.object.curie: m.object.name for m in found}
    assert labels.get("ICD10CM:C09") in {None, '\'=Gout, <b>chronic</b> "x"'}
    assert rows["WEST:10"].predicate.curie != "skos:broadMatch"


def test_a_fit_comes_back_with_its_reasons(tmp_path: Path) -> None:
    given_ = given_releases()
    build = known(("WEST:9", "ICD10CM:C09", "similar", True, 0.75))
    found = fit_releases(given_, spec(), background=Background(build, "a" * 64, None, {"WEST:9": "Gout"}))
    save_fit(tmp_path / "fit.safetensors", found, given_)
    again = load_fit(tmp_path / "fit.safetensors", given_, spec())
    assert again.mappings.rows == found.mappings.rows
    assert (again.names, again.kinship, again.reasons.pairs) == (
        found.names,
        found.kinship,
        found.reasons.pairs,
    )
    assert {r.code: r.name for r in again.mappings.rows}["WEST:9"] == "Gout"


def test_an_open_release_has_them_too(published: Hub) -> None:
    library = Library(published.home)
    release_ = library.open(1)
    assert release_.entry("ICD10CM:C09").name.startswith("=Gout")
    assert not release_.entry("ICD10CM:C09").candidates[0].clues
