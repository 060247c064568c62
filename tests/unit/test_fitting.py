"""What `coordinator.toml` adds to every fit of a home folder, a refit too."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import numpy as np

from coordinator import rounds
from coordinator.fitting import fit_round
from coordinator.harmonize import load_fit
from coordinator.knowledge.build import build
from coordinator.knowledge.config import load_knowledge_file
from protocol.text import LexicalEncoder
from tests.hub import STUDY, Hub, releases

TEXT = f"""
[text]
encoder = "lexical"
digest = "{LexicalEncoder().digest}"
dim = 32
"""


def configured(hub: Hub, folder: Path) -> None:
    """Knowledge and titles beside the hub, named in its configuration."""
    codes = [c for parts in releases().values() for c in parts[0]]
    local, standard = (next(c for c in codes if c.startswith(p)) for p in ("WEST:", "ICD10CM:"))
    (folder / "pairs.csv").write_text(f"code_1,code_2,relation,label\n{local},{standard},similar,1\n")
    (folder / "knowledge.toml").write_text(
        '[[source]]\nkind = "pairs"\nname = "experts"\npath = "pairs.csv"\n'
    )
    build(load_knowledge_file(folder / "knowledge.toml"), hub.home.study, hub.home.folder / "knowledge")
    rows = [f"{c.partition(':')[0]},{c.partition(':')[2]},name of {c}" for c in sorted(set(codes))]
    (hub.home.folder / "titles.csv").write_text("system,code,title\n" + "\n".join(rows) + "\n")
    with (hub.home.folder / "coordinator.toml").open("a") as stream:
        stream.write('knowledge = "knowledge"\ntitles = "titles.csv"\n')
    hub.fresh()


def test_a_round_is_fitted_with_what_the_configuration_names(tmp_path: Path) -> None:
    hub = Hub(tmp_path, STUDY + TEXT)
    hub.enrol(*releases())
    configured(hub, tmp_path)
    hub.run_round(releases())
    found = rounds.accepted_releases(hub.home, hub.store, "r1")
    path = hub.home.fit_path("r1")
    fitted = load_fit(path, found, hub.home.study)
    assert [source.kind for source in fitted.background] == ["knowledge", "encoder", "titles"]
    report = (hub.home.release_folder(1) / "report.html").read_text()
    assert all(source.detail in unescape(report) for source in fitted.background)
    again = fit_round(hub.home, hub.store, "r1")
    np.testing.assert_array_equal(again.ranking.rows, fitted.ranking.rows)
