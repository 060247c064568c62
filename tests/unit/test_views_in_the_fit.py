"""All views of three sites in the coordinator's checks and fit."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from coordinator.harmonize import fit_dim, fit_releases
from coordinator.linking import gather
from coordinator.model import Source
from coordinator.poisoning.screen import screen
from coordinator.union import build_union, sources
from protocol.release import SourceView, VerifiedRelease, describe, view_arrays
from protocol.study import StudySpec, load_study
from tests.synthetic import release, study, unit_rows, verified
from tests.unit.test_second_release import STUDY, patients
from tests.unit.test_site_views import VIEW, ontology_section, site, views_section


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySpec, list[VerifiedRelease]]:
    """What three sites with patients of their own release under one study."""
    folder, found = tmp_path_factory.mktemp("sites"), []
    for seed, name in enumerate(("north", "lake", "south")):
        (folder / name).mkdir()
        one = site(folder / name, STUDY + ontology_section() + views_section(dim=2))
        (one.home.folder / "shares.py").write_text(VIEW)
        one.configure(
            lambda text, name=name: text.replace('"north"', f'"{name}"') + '\n[views]\nshares = "shares.py"\n'
        )
        found.append(verified(one.prepare(patients(1500 + 500 * seed, seed)).release))
    return load_study(folder / "north" / "study.toml"), found


def with_view(found: VerifiedRelease, view: SourceView) -> VerifiedRelease:
    """The release with one more view, or with another one in its place."""
    arrays = MappingProxyType(dict(found.arrays) | view_arrays(view))
    manifest = found.manifest.model_copy(update={"arrays": describe(arrays)})
    return replace(found, manifest=manifest, arrays=arrays)


def test_the_coordinator_fits_all_views_of_all_sites(made: tuple[StudySpec, list[VerifiedRelease]]) -> None:
    spec, releases = made
    assert [len(r.views()) for r in releases] == [3, 3, 3]
    assert len(sources(releases, build_union(releases, standard=spec.standard))) == 9
    found = fit_releases(releases, spec)
    assert [v.state for v in found.screening.sites] == ["ok"] * 3
    assert len(found.mappings.rows) == 60


def test_sites_with_one_ontology_are_no_copies_of_each_other(
    made: tuple[StudySpec, list[VerifiedRelease]],
) -> None:
    spec, releases = made
    views = [{v.name: v for v in r.views()} for r in releases]
    same = [with_view(r, views[0]["ontology"]) for r in releases]
    assert [v.reasons for v in screen(same, standard=spec.standard).sites] == [()] * 3
    # Vectors of co-occurrence that are another site's are still found.
    copied = [releases[0], with_view(releases[1], views[0]["cooccurrence"]), releases[2]]
    states = {v.site: v.state for v in screen(copied, standard=spec.standard).sites}
    assert states == {"north": "rejected", "lake": "rejected", "south": "ok"}


def test_a_code_that_one_view_misplaces_is_found_once(
    made: tuple[StudySpec, list[VerifiedRelease]],
) -> None:
    spec, releases = made
    view = {v.name: v for v in releases[0].views()}["shares"]
    matrix = view.matrix.copy()
    matrix[[3, 40]] = matrix[[40, 3]]
    spoilt = with_view(releases[0], SourceView("shares", view.rows, matrix))
    (north, *_) = screen([spoilt, *releases[1:]], standard=spec.standard).sites
    moved = [spoilt.manifest.codes[view.rows[i]] for i in (3, 40)]
    assert sorted(d.code for d in north.doubtful) == moved


def test_a_narrow_view_does_not_narrow_the_fit() -> None:
    rng = np.random.default_rng(0)
    codes = [f"ICD10CM:C{i:02d}" for i in range(30)]
    wide = [verified(release(name, codes, unit_rows(rng, 30, 10))) for name in ("north", "lake")]
    narrow = SourceView("shares", np.arange(30), unit_rows(rng, 30, 3).astype(np.float32))
    both = [with_view(r, narrow) for r in wide]
    assert [len(r.views()) for r in both] == [2, 2]
    assert fit_dim(both, study()) == fit_dim(wide, study()) == 6


def test_profiles_are_those_of_co_occurrence_alone() -> None:
    rng = np.random.default_rng(0)
    data = [Source(f"{s}/cooccurrence", np.arange(s, s + 30), unit_rows(rng, 30, 5)) for s in range(2)]
    more = [Source("0/ontology", np.arange(30), unit_rows(rng, 30, 3))]
    share = [np.full(30, 0.1)] * 3
    alone = gather(data, 31, np.arange(10), share[:2], sites=[0, 1])
    both = gather([*data, *more], 31, np.arange(10), share, sites=[0, 1, 0])
    np.testing.assert_array_equal(alone.fixed["profile"], both.fixed["profile"])
