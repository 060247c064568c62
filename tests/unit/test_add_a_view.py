"""The how-to of a new view and a new term is run as it stands on the page."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from coordinator.simulation.generate import simulate_paper
from coordinator.union import build_union, sources
from protocol.release import decode_release, encode_release
from tests.synthetic import verified
from tests.unit.test_docs import DOCS, fences
from tests.unit.test_second_release import STUDY, Site, patients

PAGE = DOCS / "how-to" / "add-a-view.md"
BLOCKS = fences(PAGE)


def block(language: str, number: int) -> str:
    return [text for found, text in BLOCKS if found == language][number]


def test_the_whole_code_is_under_60_lines() -> None:
    assert 20 < sum(len(text.splitlines()) for _, text in BLOCKS) < 60


def test_the_digest_on_the_page_is_that_of_the_file_on_the_page() -> None:
    assert hashlib.sha256(block("python", 0).encode()).hexdigest() in block("toml", 0)


def test_the_view_of_the_page_leaves_a_site_and_is_a_source_of_the_fit(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + block("toml", 0))
    (site.home.folder / "chapters.py").write_text(block("python", 0))
    site.configure(lambda text: text + "\n" + block("toml", 1))
    events = patients()
    # Topics of the generated patients become chapters, A to D.
    letter = np.array(list("ABCD"))[np.array([int(c[1:]) // 15 for c in events["code"]])]
    events["code"] = np.char.add(letter, np.char.lstrip(events["code"], "C"))
    found = decode_release(encode_release(site.prepare(events).release))
    (view,) = (v for v in found.views() if v.name == "chapters")
    assert view.matrix.shape == (60, 4)
    cosine = view.matrix @ view.matrix.T
    chapter = np.array([code[8] for code in found.manifest.codes])
    same = chapter[:, None] == chapter
    assert cosine[same].mean() > cosine[~same].mean() + 0.5
    releases = [verified(found)]
    union = build_union(releases, standard="ICD10CM")
    assert [s.name for s in sources(releases, union)] == ["north/chapters", "north/cooccurrence"]


def test_the_term_of_the_page_draws_its_codes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = simulate_paper(0, n_codes=80, n_clusters=10, columns=20)
    space: dict[str, object] = {"sources": paper.sources, "__name__": "page"}
    exec(compile(block("python", 1), str(PAGE), "exec", dont_inherit=True), space)  # noqa: S102
    from coordinator.model import fit_smile

    plain = fit_smile(paper.sources, n_codes=80, n_clusters=10, dim=6)
    pairs = np.array([[0, 1], [2, 3]])
    drawn = space["fit"].similarity(pairs)  # type: ignore[attr-defined]
    assert drawn.mean() > plain.similarity(pairs).mean() + 0.1
