"""Questions about cohorts: the rule, what a site says, and that it says it to nobody but as part of a total."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("flwr")

from coordinator import cli_sum
from coordinator.cli import app as coordinator_app
from coordinator.cohort import told
from coordinator.library import Library
from coordinator.sums.drive import run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.outcome import read_outcome
from coordinator.sums.record import SumStore
from protocol.codeindex import CodeIndex
from protocol.errors import GateError, RoundError, UsageError
from protocol.sections import DifferentialPrivacy
from protocol.sums import KINDS, SumProposal
from site_agent.cli import app as site_app
from site_agent.cohort import CohortStore, Window, build_cohort
from site_agent.cohort.asked import preview_question
from site_agent.cohort.questions import cosines, like, release_index
from site_agent.config import Home
from site_agent.ledger import Ledger
from site_agent.sums.approval import approve_sum, preview_sum
from site_agent.sums.folder import SumPreview
from tests.cohort_federation import MACHINE, PATIENTS, PROFILE, SITES, CohortConsortium, write_patients
from tests.sum_federation import PASSPHRASE
from tests.unit.test_sum_federation import NODES, Line, enrolled, quick  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes with patient vectors, in which the roster is trusted and one question was asked."""
    folder = tmp_path_factory.mktemp("asked") / "all"
    consortium = CohortConsortium(folder)
    ask(consortium, "q1")
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        with pytest.raises(RoundError, match="0 of 3 sites take part"):
            run_sum(consortium.hub, "q1", Line(consortium))
    for site in SITES:
        consortium.trust(site)
    return folder


def quicken(patch: pytest.MonkeyPatch) -> None:
    import time

    from coordinator.flower import post

    patch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    patch.setattr(post, "DISK_RESERVE", 0)


@pytest.fixture
def consortium(prepared: Path, tmp_path: Path) -> Iterator[CohortConsortium]:
    """A copy of the prepared homes, at another place."""
    found = CohortConsortium.copied(prepared, tmp_path / "all")
    assert isinstance(found, CohortConsortium)
    yield found


def ask(consortium: CohortConsortium, name: str, **given: Any) -> None:
    open_sum(consortium.hub, name, consortium.asked(**given), enrolled=enrolled(consortium), nodes=NODES)


def brought(consortium: CohortConsortium, name: str, **given: Any) -> Line:
    """Ask, and let the question reach the sites."""
    ask(consortium, name, **given)
    line = Line(consortium)
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, name, line)
    return line


# --- The rule --------------------------------------------------------------------------------------------


def test_a_patients_cosine_depends_on_the_own_record_and_the_release_alone(
    consortium: CohortConsortium,
) -> None:
    home, question = consortium.homes["south"], consortium.question()
    store = CohortStore.open(home)
    index = release_index(home, store, question)
    found = cosines(store, question, index)
    vector = dict(zip(index.codes, index.vectors.astype(float), strict=True))
    query = sum(w * vector[c] for c, w in PROFILE.items())
    # Patient 1: three codes of the heart, the second one local, and R05; once each within less than a year.
    mine = sum(
        np.log(2.0) * vector[c] for c in ("ICD10CM:I50.1", "SOUTH:LI50.9", "ICD10CM:I25.1", "ICD10CM:R05")
    )
    row = next(i for i in range(store.manifest.patients) if store.label(i) == "PATIENT-south-0001")
    assert found[row] == pytest.approx(mine @ query / np.linalg.norm(mine) / np.linalg.norm(query), abs=1e-9)
    # The same record has the same cosine at another site, where other codes are common.
    other = CohortStore.open(consortium.homes["north"])
    theirs = cosines(other, question, index)
    same = next(i for i in range(other.manifest.patients) if other.label(i) == "PATIENT-north-0001")
    assert theirs[same] == pytest.approx(found[row], abs=0.05)
    assert theirs[same] != found[row]  # I50.9 is not quite South's code for it


def test_conditions_mean_the_same_at_sites_that_write_them_differently(consortium: CohortConsortium) -> None:
    for site, (heart, kidney) in PATIENTS.items():
        home = consortium.homes[site]
        store = CohortStore.open(home)

        def number(home: Home = home, store: CohortStore = store, **given: Any) -> int:
            return int(like(home, store, consortium.question(**given)).sum())

        alone: dict[str, Any] = {"weights": {}, "least": None}
        assert number() == heart
        assert number(least=1.0) == 0
        assert number(least=-1.0) == heart + kidney
        assert number(**alone, having=("ICD10CM:I50.9",)) == heart, "South writes it as SOUTH:LI50.9"
        assert number(**alone, having=("ICD10CM:N18.3", "ICD10CM:I50.1")) == -(-heart // 10)
        assert number(lacking=("ICD10CM:N18.3",)) == heart - -(-heart // 10)
        assert number(sexes=("female",)) == -(-heart // 2)
        assert number(sexes=("female", "male")) == heart
        assert number(age=(65, None)) == -(-heart // 5)
        assert number(**alone, having=("ICD10CM:X99",)) == 0
        assert number(seen=("2021-01-01", None)) == 0
        assert number(seen=(None, "2020-02-01")) == heart


def test_a_build_of_another_release_or_window_is_refused(consortium: CohortConsortium) -> None:
    home = consortium.homes["north"]
    store = CohortStore.open(home)
    for given, why in (
        ({"release": 2}, "about release v2"),
        ({"window": ("2020-01-01", None)}, "site-agent cohort build --from 2020-01-01"),
        ({"space": "0" * 64}, "other vectors than those of release v1"),
        ({"weights": {"ICD10CM:X99": 1}}, "no vector in release v1"),
    ):
        with pytest.raises(UsageError, match=why):
            like(home, store, consortium.question(**given))


def test_a_site_says_what_its_values_of_sex_mean(consortium: CohortConsortium) -> None:
    home = consortium.homes["south"]
    people = consortium.folder / "south.people.csv"
    people.write_text(people.read_text().replace("8532", "2").replace("8507", "1"))
    build_cohort(home, Window(None, None), machine=MACHINE)
    store, women = CohortStore.open(home), consortium.question(sexes=("female",))
    with pytest.raises(UsageError, match=r'has 1, 2\. Say in site.toml .* sexes = \{ "2" = "female" \}'):
        like(home, store, women)
    with (home.folder / "site.toml").open("a") as stream:
        stream.write('sexes = { "2" = "female" }\n')
    assert like(Home(home.folder), store, women).sum() == 9


def test_questions_that_contradict_themselves_are_none(consortium: CohortConsortium) -> None:
    for given in (
        {"weights": {}, "least": None},
        {"least": None},
        {"weights": {"ICD10CM:I50.9": 0.0}},
        {"weights": {"ICD10CM:I50.9": float("nan")}},
        {"having": ("ICD10CM:R05",), "lacking": ("ICD10CM:R05",)},
        {"age": (70, 60)},
        {"vector": [1.0, 0.0]},
    ):
        with pytest.raises(ValueError, match="validation error"):
            consortium.question(**given)


def test_a_question_means_the_same_whatever_its_title_and_order(consortium: CohortConsortium) -> None:
    one = consortium.question(having=("ICD10CM:R05", "ICD10CM:I50.9"))
    two = consortium.question(
        having=("ICD10CM:I50.9", "ICD10CM:R05"), title="", weights=dict(reversed(PROFILE.items()))
    )
    assert one.meaning == two.meaning
    assert one.meaning != consortium.question().meaning
    assert dict(one.said)["cosine 0.6 or more with"] == "ICD10CM:I50.9, 0.5 x ICD10CM:I25.1"


def test_a_proposal_asks_exactly_its_question_and_a_study_with_noise_asks_none(
    consortium: CohortConsortium,
) -> None:
    proposal = SumStore(consortium.hub.folder / "sums" / "q1").load().proposal
    stated = proposal.model_dump(mode="json")
    assert SumProposal.model_validate(stated) == proposal
    for changed, why in (
        ({"vocabulary": ["ICD10CM:I50.9"]}, "the vocabulary of a question is the codes that it names"),
        ({"cohort": None}, "cohort follows from cohort, and from nothing else"),
        ({"statistic": "margins"}, "margins follows from none of its own"),
    ):
        with pytest.raises(ValueError, match=why):
            SumProposal.model_validate(stated | changed)
    noisy = consortium.study.model_copy(update={"differential_privacy": DifferentialPrivacy(enabled=True)})
    assert KINDS["cohort"].unfit(consortium.study) == ()
    assert "the study asks for noise" in KINDS["cohort"].unfit(noisy)[0]


# --- At a site -------------------------------------------------------------------------------------------


def test_a_person_sees_the_true_number_and_what_would_leave(consortium: CohortConsortium) -> None:
    found = {s: preview_question(consortium.homes[s], "q1").answer for s in SITES}
    # 25, not 20: these are small sites, where a pair needs 25.
    assert {s: (a.patients, a.answer, a.floor, a.step) for s, a in found.items() if a is not None} == {
        "lake": (262, 300, 25, 100),
        "north": (437, 400, 25, 100),
        "south": (17, 0, 25, 100),
    }
    with pytest.raises(UsageError, match="site-agent cohort questions preview q1"):
        preview_sum(consortium.homes["north"], "q1")


def test_nothing_is_answered_without_a_yes_and_the_ledger_names_it(consortium: CohortConsortium) -> None:
    for site in SITES:
        preview_question(consortium.homes[site], "q1")
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, "q1", Line(consortium))
    for site in SITES:
        consortium.say_yes(site, "q1")
    run_sum(consortium.hub, "q1", Line(consortium))
    events = [e.event for e in Ledger(consortium.homes["lake"].folder / "ledger.jsonl").verify()]
    assert events[-8:] == [
        "sum-prepared",
        "sum-prepared",
        "sum-approved",
        "sum-offered",
        "sum-joined",
        "sum-masked",
        "sum-closed",
        "sum-received",
    ]


def test_the_answer_is_the_sum_of_the_rounded_counts(consortium: CohortConsortium) -> None:
    for site in SITES:
        consortium.say_yes(site, "q1")
    assert run_sum(consortium.hub, "q1", Line(consortium)).sites == SITES
    assert read_outcome(consortium.hub, "q1")[1]["values"].tolist() == [700]
    found = told(consortium.hub, "q1")
    assert (found.total, found.sites, found.question.title) == (700, SITES, "heart failure")
    assert abs(found.total - sum(heart for heart, _ in PATIENTS.values())) <= found.off == 3 * (50 + 24)


def test_the_same_question_has_the_same_answer_though_patients_came(consortium: CohortConsortium) -> None:
    """North's 437 become 455, which alone would round to 500."""
    for site in SITES:
        consortium.say_yes(site, "q1")
    run_sum(consortium.hub, "q1", Line(consortium))
    north = consortium.homes["north"]
    for heart, answer, sticks in ((455, 400, "q1"), (462, 500, "")):
        write_patients(consortium.folder / "north.parquet", "north", heart, 100)
        build_cohort(north, Window(None, None), machine=MACHINE)
        name = f"again-{heart}"
        line = brought(consortium, name)
        found = {site: said(consortium.say_yes(site, name)) for site in SITES}
        assert found == {"lake": (262, 300, "q1"), "north": (heart, answer, sticks), "south": (17, 0, "q1")}
        run_sum(consortium.hub, name, line)
        assert told(consortium.hub, name).total == 300 + answer


def test_a_question_that_differs_by_few_patients_gets_the_earlier_answer(
    consortium: CohortConsortium,
) -> None:
    """Lake's 262 are 300. Without those with N18.3 they are 235, which is far enough; seen in time, 244, which is not."""
    for name, given in (
        ("women", {"sexes": ("female",), "having": ("ICD10CM:N18.3",)}),
        ("far", {"lacking": ("ICD10CM:N18.3",)}),
        ("near", {"seen": (None, "2020-01-26")}),
    ):
        brought(consortium, name, **given)
    lake = consortium.homes["lake"]
    assert said(preview_question(lake, "near")) == (244, 200, "")
    consortium.say_yes("lake", "q1")
    assert said(preview_question(lake, "women")) == (27, 0, "")
    assert said(preview_question(lake, "far")) == (235, 200, "")
    assert said(preview_question(lake, "near")) == (244, 300, "q1")


def said(preview: SumPreview) -> tuple[int, int, str]:
    answer = preview.answer
    assert answer is not None
    return answer.patients, answer.answer, answer.sticks_to


def test_two_answers_that_were_previewed_side_by_side_are_not_both_approved(
    consortium: CohortConsortium,
) -> None:
    """Else who asks both at once would get round the first one's protection."""
    brought(consortium, "q2", least=0.61)
    north = consortium.homes["north"]
    first, second = (preview_question(north, name) for name in ("q1", "q2"))
    assert said(second) == (437, 400, "")
    approve_sum(north, "q1", first.digest[:16], "officer", lambda: PASSPHRASE)
    with pytest.raises(GateError, match="not the one that may be given now"):
        approve_sum(north, "q2", second.digest[:16], "officer", lambda: PASSPHRASE)
    assert said(consortium.say_yes("north", "q2")) == (437, 400, "q1")


def test_a_site_answers_so_many_questions_in_so_many_days(consortium: CohortConsortium) -> None:
    north = consortium.homes["north"]
    toml = north.folder / "site.toml"
    toml.write_text(toml.read_text() + "questions = 1\n")
    north = consortium.homes["north"] = Home(north.folder)
    brought(consortium, "q2", having=("ICD10CM:R05",))
    before = preview_question(north, "q2")
    consortium.say_yes("north", "q1")
    with pytest.raises(GateError, match="1 were answered in 30 days, and 1 are allowed"):
        preview_question(north, "q2")
    with pytest.raises(GateError, match="1 were answered in 30 days"):
        approve_sum(north, "q2", before.digest[:16], "officer", lambda: PASSPHRASE)
    consortium.say_yes("north", "q1")  # which is no second one


def test_a_site_that_lost_its_memory_of_answers_answers_nothing(consortium: CohortConsortium) -> None:
    brought(consortium, "q2", having=("ICD10CM:R05",))
    consortium.say_yes("north", "q1")
    (consortium.homes["north"].folder / "sums" / "q1" / "cohort.safetensors").unlink()
    with pytest.raises(GateError, match="What this site remembers of question q1 is gone"):
        preview_question(consortium.homes["north"], "q2")
    shutil.rmtree(consortium.homes["lake"].folder / "cohort")
    with pytest.raises(UsageError, match="site-agent cohort build"):
        preview_question(consortium.homes["lake"], "q2")


# --- Commands --------------------------------------------------------------------------------------------


def command(app: Any, *words: str | Path, code: int = 0, **given: Any) -> str:
    found = CliRunner().invoke(app, [str(w) for w in words], **given)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        assert code, found.exception
        return str(found.exception)
    assert found.exit_code == code, found.output
    return found.output


def test_people_ask_look_and_approve_by_commands(
    consortium: CohortConsortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, secret, profile = consortium.hub.folder, tmp_path / "passphrase", tmp_path / "profile.json"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    profile.write_text(json.dumps({"name": "hearts", "codes": {"I50.9": 1, "ICD10CM:I25.1": 0.5}}))
    folder = consortium.homes["north"].folder / "results" / "v1"
    published = SimpleNamespace(
        manifest=SimpleNamespace(version=1), index=CodeIndex.load(folder, trust=consortium.hub.keys.public())
    )
    monkeypatch.setattr(Library, "open", lambda self, number=None: published)
    monkeypatch.setattr(
        cli_sum,
        "open_for_members",
        lambda home, name, asked, days: open_sum(
            home, name, asked, enrolled=enrolled(consortium), nodes=NODES, days=days
        ),
    )
    ask_ = ("cohort", "ask", "women", "--home", hub)
    wrong = (
        (("--profile", profile), "a profile needs a smallest cosine"),
        (("--with", "SOUTH:LI50.9"), "no code of the standard system ICD10CM"),
        (("--with", "R05", "--sex", "F"), "Write female or male"),
        (("--with", "R05", "--age", "old"), "Write 50-70, 65- or -40"),
        (("--with", "R05", "--seen-from", "1.1.2020"), "Write YYYY-MM-DD"),
    )
    for options, why in wrong:
        assert why in command(coordinator_app, *ask_, *options, code=2)
    words = ("--profile", profile, "--least", "0.6", "--sex", "female", "--without", "N18.3", "--age", "-80")
    shown = command(coordinator_app, *ask_, *words)
    for text in (
        "I50.9, 0.5 x ICD10CM:I25.1",
        "has none of",
        "female",
        "80 at most",
        "coordinator sum run women",
    ):
        assert text in shown
    tried = command(
        site_app, "cohort", "questions", "try", profile, "--json", "--home", consortium.homes["lake"].folder
    )
    at = {row["least"]: row["patients"] for row in json.loads(tried)}
    assert (at[0.2], at[0.6]) == (262 + 80 - 80, 262)
    assert list(at.values()) == sorted(at.values(), reverse=True)
    line = Line(consortium)
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, "women", line)
    for site in SITES:
        home = ("--home", consortium.homes[site].folder)
        listed = json.loads(command(site_app, "cohort", "questions", "list", "--json", *home))
        assert [(q["question"], q["title"], q["state"]) for q in listed] == [
            ("q1", "heart failure", "to be counted"),
            ("women", "hearts", "to be counted"),
        ]
        told_ = json.loads(command(site_app, "cohort", "questions", "preview", "women", "--json", *home))
        seen = command(site_app, "cohort", "questions", "preview", "women", *home)
        assert f"{told_['answer']['patients']:,} of" in seen
        assert "Decide by the question, not by the number" in seen
        digest = json.loads(command(site_app, "cohort", "questions", "preview", "women", "--json", *home))
        yes = ("--digest", digest["digest"][:16], "--passphrase-file", secret)
        asked = command(site_app, "sums", "approve", "women", *yes, *home, input="y\n")
        assert "What this site would say" in asked
        assert "Approved by officer" in asked
    run_sum(consortium.hub, "women", line)
    answer = json.loads(command(coordinator_app, "cohort", "answer", "women", "--json", "--home", hub))
    women = [-(-heart // 2) - -(-heart // 10) for heart, _ in PATIENTS.values()]
    assert women == [104, 175, 7], "every tenth, an even one, has N18.3"
    assert (answer["total"], answer["sites"], answer["title"]) == (300, list(SITES), "hearts")
    seen = command(coordinator_app, "cohort", "answer", "women", "--home", hub)
    assert "300 patients at lake, north, south together" in seen
    states = json.loads(command(coordinator_app, "cohort", "status", "--json", "--home", hub))
    assert {s["question"]: s["step"] for s in states} == {"q1": "offer", "women": "finished"}
    refused = command(site_app, "cohort", "questions", "preview", "women", *home, code=2)
    assert "has begun with counts that were approved" in refused
    assert "no sum 'other'" in command(coordinator_app, "cohort", "answer", "other", "--home", hub, code=1)
