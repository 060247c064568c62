"""Views beside co-occurrence: the ontology and a study's own, from a site's files to the coordinator's fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from coordinator.cli_study import app as study_app
from coordinator.intake import Expected, verify_release
from coordinator.setup import init_home as init_coordinator
from protocol.errors import DataError, GateError, ProtocolError, StudyError, UsageError
from protocol.keep.files import FILE
from protocol.release import Release, VerifiedRelease, decode_release, describe, encode_release
from protocol.study import StudySpec, load_study
from site_agent.cli_views import show_made, show_views
from site_agent.config import Home
from site_agent.doctor import examine
from site_agent.enrolment import init_home
from site_agent.gate import allowed_columns, make_release
from site_agent.prepare import Prepared, prepare_release
from tests.synthetic import header, keys, release, study, unit_rows, verified
from tests.unit import test_text_view
from tests.unit.test_second_release import STUDY, Site, patients

ONTOLOGY = "code,parent\n" + "".join(
    f"ICD10CM:C{c:02d},ICD10CM:topic{c // 15}\nICD10CM:topic{c // 15},\n" for c in range(60)
)
DIGEST = hashlib.sha256(ONTOLOGY.encode()).hexdigest()
VIEW = """\
import numpy as np

def view(counts, dim, seed):
    whole = (counts.events + counts.events.T).toarray().astype(float)
    topic = np.array([int(code[9:]) // 5 for code in counts.codes])
    shares = np.stack([whole[:, topic == t].sum(axis=1) for t in range(12)], axis=1)
    return shares / shares.sum(axis=1, keepdims=True) - shares.sum(axis=0) / shares.sum()
"""


def ontology_section(digest: str = DIGEST) -> str:
    return f'[ontology]\ndigest = "{digest}"\ndim = 5\n'


def views_section(text: str = VIEW, dim: int = 6) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'[[views]]\nname = "shares"\ndigest = "{digest}"\ndim = {dim}\n'


def site(folder: Path, study_text: str, ontology: str = ONTOLOGY) -> Site:
    (folder / FILE).write_text(ontology)
    return Site(folder, study_text)


def with_view(folder: Path, text: str = VIEW, study_text: str = "") -> Site:
    """A site whose configuration names the file of the study's own view."""
    found = Site(folder, study_text or STUDY + views_section(text))
    (found.home.folder / "shares.py").write_text(text)
    found.configure(lambda config: config + '\n[views]\nshares = "shares.py"\n')
    return found


def names(prepared: Prepared) -> list[str]:
    return [v.name for v in prepared.release.views()]


# --- The ontology view ---------------------------------------------------------------------------------


def test_a_release_has_the_ontology_view_beside_the_other(tmp_path: Path) -> None:
    prepared = site(tmp_path, STUDY + ontology_section()).prepare(patients())
    found = decode_release(encode_release(prepared.release))
    cooccurrence, ontology = found.views()
    assert (cooccurrence.name, ontology.name) == ("cooccurrence", "ontology")
    assert len(ontology.rows) == len(found.manifest.codes) == 60
    assert 2 <= ontology.matrix.shape[1] <= 5
    topic = np.array([int(c[9:]) // 15 for c in found.manifest.codes])
    cosine = ontology.matrix @ ontology.matrix.T
    same = topic[:, None] == topic
    assert cosine[same].mean() > cosine[~same].mean() + 0.5
    assert prepared.notes == ()


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        made.append(site(tmp_path / name, STUDY + ontology_section()).prepare(patients()).release)
    assert made[0].manifest.arrays == made[1].manifest.arrays


def test_no_more_columns_leave_than_the_codes_of_the_view_allow(tmp_path: Path) -> None:
    few = "".join(line + "\n" for line in ONTOLOGY.splitlines() if not line.startswith("ICD10CM:C3"))
    few = "".join(line + "\n" for line in few.splitlines() if not line.startswith("ICD10CM:C4"))
    section = ontology_section(hashlib.sha256(few.encode()).hexdigest())
    prepared = site(tmp_path, STUDY + section, few).prepare(patients())
    (view,) = (v for v in prepared.release.views() if v.name == "ontology")
    assert len(view.rows) == 40
    assert view.matrix.shape[1] <= 4


def test_a_site_may_leave_the_ontology_view_out(tmp_path: Path) -> None:
    found = site(tmp_path, STUDY + ontology_section())
    (found.home.folder / FILE).unlink()
    found.configure(lambda text: text.replace("[policy]", "[policy]\nontology = false"))
    assert names(found.prepare(patients())) == ["cooccurrence"]


def test_codes_that_the_ontology_does_not_know_make_no_view(tmp_path: Path) -> None:
    other = "code,parent\nSNOMED:1,\nICD10CM:C01,SNOMED:1\n"
    section = ontology_section(hashlib.sha256(other.encode()).hexdigest())
    prepared = site(tmp_path, STUDY + section, other).prepare(patients())
    assert names(prepared) == ["cooccurrence"]
    assert prepared.notes == (
        "The view ontology is left out: it says something of fewer than 20 released codes, too few for two dimensions",
    )


def test_a_missing_or_altered_ontology_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    found = site(tmp_path, STUDY + ontology_section())
    found.events.unlink()
    path = found.home.folder / FILE
    path.write_text(ONTOLOGY + "ICD10CM:C99,\n")
    with pytest.raises(StudyError, match="is not the one that the study names"):
        prepare_release(Home(found.home.folder), sequence=1, previous="")
    path.unlink()
    with pytest.raises(DataError, match="There is no ontology file"):
        prepare_release(Home(found.home.folder), sequence=1, previous="")


def test_a_home_folder_is_made_with_the_studys_ontology_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("code,parent\nX:1,\n")
    with pytest.raises(StudyError, match="is not the one that the study names"):
        Site(tmp_path, STUDY + ontology_section())
    assert not (tmp_path / "home").exists()
    hub = tmp_path / "hub"
    with pytest.raises(StudyError, match="is not the one that the study names"):
        init_coordinator(hub, study=tmp_path / "study.toml", address="localhost:9", listen="127.0.0.1")
    assert not hub.exists()
    (tmp_path / FILE).write_text(ONTOLOGY)
    init_home(
        tmp_path / "home",
        site="north",
        invitation=tmp_path / "invitation.json",
        study=tmp_path / "study.toml",
        events=tmp_path / "events.parquet",
        anchors=None,
        system="ICD10CM",
    )
    assert (tmp_path / "home" / FILE).read_text() == ONTOLOGY


# --- A study's own views -------------------------------------------------------------------------------


def test_a_view_of_the_studys_own_leaves_in_unit_rows_and_few_columns(tmp_path: Path) -> None:
    prepared = with_view(tmp_path, study_text=STUDY + views_section(dim=3)).prepare(patients())
    (view,) = (v for v in prepared.release.views() if v.name == "shares")
    assert view.matrix.shape == (60, 3)
    np.testing.assert_allclose(np.linalg.norm(view.matrix, axis=1), 1, rtol=1e-5)


def test_nothing_runs_that_the_site_does_not_name(tmp_path: Path) -> None:
    found = Site(tmp_path, STUDY + views_section())
    (found.home.folder / "shares.py").write_text(VIEW)
    assert names(found.prepare(patients())) == ["cooccurrence"]


MARK = "import pathlib\npathlib.Path({!r}).touch()\n"


def test_another_file_than_the_studys_is_refused_and_not_run(tmp_path: Path) -> None:
    found, ran = with_view(tmp_path), tmp_path / "ran"
    (found.home.folder / "shares.py").write_text(MARK.format(str(ran)) + VIEW)
    found.events.unlink()
    with pytest.raises(StudyError, match="is not the view shares of the study"):
        prepare_release(Home(found.home.folder), sequence=1, previous="")
    assert not ran.exists()


def test_a_view_that_the_study_does_not_have_is_refused(tmp_path: Path) -> None:
    found = Site(tmp_path)
    found.configure(lambda config: config + '\n[views]\nshares = "shares.py"\n')
    with pytest.raises(StudyError, match=r"site\.toml names the view shares"):
        prepare_release(Home(found.home.folder), sequence=1, previous="")


@pytest.mark.parametrize(
    ("text", "error", "what"),
    [
        ("def view(:\n", UsageError, "cannot be run"),
        ("import no_such_module_at_all\n", UsageError, "cannot be run"),
        ("raise SystemExit(0)\n", UsageError, "cannot be run"),
        ("def other(): ...\n", UsageError, "has no function view"),
        ("def view(counts, dim, seed):\n    return 1 / 0\n", DataError, "could not be made"),
        ("def view(counts, dim, seed):\n    return [[1.0]]\n", DataError, "is not a table of finite numbers"),
        (
            "def view(counts, dim, seed):\n    return [[float('nan')] * 4 for _ in counts.codes]\n",
            DataError,
            "is not a table of finite numbers",
        ),
        ("def view(counts, dim, seed):\n    return None\n", DataError, "is not a table of finite numbers"),
    ],
)
def test_a_mistake_in_a_view_is_told_in_a_sentence(
    tmp_path: Path, text: str, error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        with_view(tmp_path, text).prepare(patients())


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    found = with_view(tmp_path)
    (found.home.folder / "shares.py").unlink()
    with pytest.raises(UsageError, match="of the view shares cannot be read"):
        found.prepare(patients())


def test_a_view_can_change_nothing_but_itself(tmp_path: Path) -> None:
    spoil = VIEW.replace(
        "    whole", "    counts.patients[:] = 7\n    counts.events.data[:] = 1\n    whole", 1
    )
    (tmp_path / "plain").mkdir()
    plain = Site(tmp_path / "plain").prepare(patients()).release
    spoilt = with_view(tmp_path, spoil).prepare(patients()).release
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(array, spoilt.arrays[name])


def test_a_view_of_too_few_codes_is_left_out(tmp_path: Path) -> None:
    text = (
        VIEW
        + "    \nwhole_view = view\n\ndef view(counts, dim, seed):\n    found = whole_view(counts, dim, seed)\n"
    )
    text += "    found[19:] = 0\n    return found\n"
    prepared = with_view(tmp_path, text).prepare(patients())
    assert names(prepared) == ["cooccurrence"]
    assert "fewer than 20 released codes" in prepared.notes[0]


@pytest.mark.parametrize("name", ["cooccurrence", "text", "ontology", "Shares", "a/b", ""])
def test_a_view_cannot_take_another_ones_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(STUDY + views_section().replace("shares", name))
    with pytest.raises(StudyError):
        load_study(path)


# --- The gate and the coordinator's intake --------------------------------------------------------------


def test_the_gate_refuses_what_the_study_does_not_have(tmp_path: Path) -> None:
    prepared = with_view(tmp_path).prepare(patients())
    views, kept = prepared.release.views(), prepared.kept
    home = Home(tmp_path / "home")
    identity = {
        "site": "north",
        "sequence": 1,
        "previous": "",
        "agent_version": "0",
        "agent_digest": "0" * 64,
    }

    def again(spec: StudySpec) -> Release:
        return make_release(
            kept, views, prepared.codes, {}, policy=home.policy(), study=spec, identity=identity
        )

    assert again(home.study).manifest.arrays == prepared.release.manifest.arrays
    with pytest.raises(GateError, match="the study has no view shares"):
        again(home.study.model_copy(update={"views": ()}))
    narrow = home.study.views[0].model_copy(update={"dim": 4})
    with pytest.raises(GateError, match="view shares has 6 dimensions, 4 are allowed"):
        again(home.study.model_copy(update={"views": (narrow,)}))


def test_every_view_of_counts_is_held_to_a_dimension_for_so_many_codes() -> None:
    spec = study(
        ontology={"digest": "1" * 64, "dim": 100}, views=[{"name": "x", "digest": "1" * 64, "dim": 9}]
    )
    policy = verified(release("north", ["ICD10CM:A"], np.ones((1, 1)))).manifest.policy
    assert [allowed_columns(name, 399, policy, spec) for name in ("cooccurrence", "ontology", "x")] == [
        19,
        19,
        9,
    ]
    assert [allowed_columns(name, 10**6, policy, spec) for name in ("cooccurrence", "ontology")] == [128, 100]
    assert allowed_columns("text", 10**6, policy, spec) == allowed_columns("y", 10**6, policy, spec) == 0


def take_in(spec: StudySpec, change: Callable[[dict[str, Any]], None]) -> VerifiedRelease:
    """What intake makes of a release whose arrays were changed."""
    found = release(
        "north", ["ICD10CM:A00", "ICD10CM:B00"], unit_rows(np.random.default_rng(0), 2, 2), spec=spec
    )
    arrays = dict(found.arrays)
    change(arrays)
    manifest = found.manifest.model_copy(update={"arrays": describe(arrays)})
    found = Release(manifest, MappingProxyType(arrays))
    signer = keys("north").public().digest
    told = header(
        keys("north"),
        keys("hub"),
        study_digest=spec.digest,
        content=manifest.digest,
        policy_digest=manifest.policy.digest,
    )
    return verify_release(told, found, study=spec, expected=Expected("north", "r1", 0, "", signer))


def test_intake_takes_the_studys_views_and_no_others() -> None:
    spec = study(ontology={"digest": "1" * 64, "dim": 3})

    def add(name: str, dim: int) -> Callable[[dict[str, Any]], None]:
        def change(arrays: dict[str, Any]) -> None:
            arrays[f"view/{name}/rows"] = np.array([0, 1], np.int32)
            arrays[f"view/{name}/matrix"] = np.ones((2, dim), np.float32)

        return change

    def rename(arrays: dict[str, Any]) -> None:
        for part in ("rows", "matrix"):
            arrays[f"view/ontology/{part}"] = arrays.pop(f"view/cooccurrence/{part}")

    assert len(take_in(spec, add("ontology", 3)).views()) == 2
    with pytest.raises(ProtocolError, match="released the view 'shares', which the study does not have"):
        take_in(spec, add("shares", 3))
    with pytest.raises(ProtocolError, match="has 4 dimensions, the study allows 3"):
        take_in(spec, add("ontology", 4))
    with pytest.raises(ProtocolError, match="has no view of what its codes occur with"):
        take_in(spec, rename)


# --- What people see -----------------------------------------------------------------------------------


def test_preview_says_what_each_view_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = with_view(tmp_path).prepare(patients())
    show_views(prepared.release.manifest)
    show_made(prepared, all_names=False)
    told = capsys.readouterr().out
    assert "counts that passed the floors" in told
    assert "site.toml" in told
    assert "names leave as vectors" not in told


def test_preview_lists_the_names_that_leave_as_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Site(tmp_path, test_text_view.STUDY + test_text_view.text_section())
    test_text_view.allow(found)
    prepared = found.prepare(test_text_view.named_patients())
    show_views(prepared.release.manifest)
    show_made(prepared, all_names=True)
    told = " ".join(capsys.readouterr().out.split())
    assert f"{len(prepared.encoded)} names leave as vectors" in told
    assert "whoever guesses a name can tell" in told
    assert all(f"{code} (Acute asthma)" in told for code in prepared.encoded)
    assert "Dr Smith" not in told


def test_the_study_commands_print_what_a_study_file_takes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    (tmp_path / FILE).write_text(ONTOLOGY)
    (tmp_path / "shares.py").write_text(VIEW)
    calls = (
        ["ontology", str(tmp_path / FILE)],
        ["encoder", "lexical", "--dim", "64"],
        ["view", "shares", str(tmp_path / "shares.py"), "--dim", "6"],
    )
    told = [run(study_app, call, catch_exceptions=False).stdout for call in calls]
    path = tmp_path / "study.toml"
    path.write_text(STUDY + "\n".join(told))
    spec = load_study(path)
    assert (spec.ontology.digest, spec.text.dim, spec.views[0].name) == (DIGEST, 64, "shares")
    found = json.loads(run(study_app, [*calls[0], "--json"], catch_exceptions=False).stdout)
    assert (found["codes"], found["roots"], found["deeper"]) == (64, 4, 0)
    for wrong in (
        ["encoder", "lexical", "--folder", "x"],
        ["encoder", "directory"],
        ["view", "X", str(path)],
    ):
        assert isinstance(run(study_app, wrong).exception, UsageError)
    with pytest.raises(StudyError, match=r"text\.dim is 1000"):
        run(study_app, ["encoder", "minilm", "--dim", "1000"], catch_exceptions=False)


# --- Doctor ---------------------------------------------------------------------------------------------


def looked_at(home: Home) -> tuple[str, str]:
    check = next(c for c in examine(home).checks() if c.name == "views")
    return check.result, check.finding


def test_doctor_opens_the_files_of_views_before_the_data(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(ONTOLOGY)
    found = with_view(tmp_path, study_text=STUDY + ontology_section() + views_section())
    (found.home.folder / FILE).unlink()
    result, said = looked_at(found.home)
    assert result == "failed"
    assert FILE in said
    (found.home.folder / FILE).write_text(ONTOLOGY)
    assert looked_at(Home(found.home.folder)) == ("ok", "cooccurrence, ontology, shares")
    (found.home.folder / "shares.py").write_text(VIEW + "# another\n")
    result, said = looked_at(Home(found.home.folder))
    assert result == "failed"
    assert "is not the view shares of the study" in said


def test_doctor_names_views_that_the_site_does_not_let_leave(tmp_path: Path) -> None:
    found = Site(tmp_path, STUDY + views_section())
    result, said = looked_at(found.home)
    assert result == "ok"
    assert "shares too, which site.toml does not let leave" in said
