"""What doctor says of events: numbers as counted by hand, each problem found, and nothing of a patient on the page."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from protocol.errors import StudyError, UsageError
from protocol.messages import Policy
from protocol.study import StudySpec
from site_agent.cli import app
from site_agent.config import Home
from site_agent.cooccurrence import count_pairs
from site_agent.doctor import Check, Examination, Profile, examine, profile
from site_agent.doctor.findings import findings
from site_agent.doctor.numbers import EXACT, Numbers, percent
from site_agent.doctor.page import page
from site_agent.doctor.picture import events_by_year, patients_by_events
from site_agent.doctor.profiling import BUSY_DAY
from site_agent.doctor.terminal import as_json, out, show
from site_agent.enrolment import init_home
from site_agent.prepare import prepare_release
from site_agent.sections import Data
from site_agent.staging import Staged, stage
from site_agent.working import work_lock
from tests import synthetic
from tests.unit.test_agent import Bench
from tests.unit.test_staging import Source

COARSE = Numbers(11, 5)
POLICY = Policy(min_code_patients=20, min_pair_patients=11, margin_rounding=5, max_dim=128)
EXAMINE = "site_agent.doctor.examination"

Row = tuple[int, date, str]


def a_study(**counting: Any) -> StudySpec:
    return synthetic.study(counting=counting) if counting else synthetic.study()


def staged(folder: Path, rows: list[Row]) -> Staged:
    """Rows of (patient, date, CURIE)."""
    table = pa.table(
        {
            "patient": pa.array([r[0] for r in rows], pa.int64()),
            "date": pa.array([r[1] for r in rows], pa.date32()),
            "code": [r[2].partition(":")[2] for r in rows],
            "system": [r[2].partition(":")[0] for r in rows],
        }
    )
    data = Data(events="x", system="ICD10CM", bad_rows="skip")
    return stage(Source([table]), data, folder, memory=1 << 20, today=date(2026, 1, 1))


def looked_at(
    folder: Path, rows: list[Row], *, anchors: dict[str, str] | None = None, study: StudySpec | None = None
) -> Profile:
    return profile(staged(folder, rows), POLICY, study or a_study(), anchors or {})


def check(found: Profile, name: str, numbers: Numbers = EXACT) -> Check:
    return next(c for c in findings(found, a_study(), numbers) if c.name == name)


def plain(n: int = 3_000, patients: int = 120) -> list[Row]:
    """Sound events: 30 codes, ten years, sorted."""
    rng = np.random.default_rng(0)
    days = rng.integers(0, 3_650, n).tolist()
    codes, who = rng.integers(0, 30, n).tolist(), rng.integers(0, patients, n).tolist()
    rows = [
        (p, date(2010, 1, 2) + timedelta(days=d), f"ICD10CM:{c}")
        for p, d, c in zip(who, days, codes, strict=True)
    ]
    return sorted(set(rows))


# --- The profile ---------------------------------------------------------------------------------------

PREFIXES = ("ICD10CM", "ICD9CM", "SOUTH")
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(-100, 500).map(lambda d: date(1969, 12, 1) + timedelta(days=d)),
        st.builds("{}:{}".format, st.sampled_from(PREFIXES), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(rows=EVENTS, window=st.sampled_from([None, 0, 30, 900]), cap=st.sampled_from([2, 5, 20_000]))
def test_a_profile_is_what_counting_by_hand_gives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], window: int | None, cap: int
) -> None:
    rule: dict[str, Any] = {"max_events_per_patient": cap}
    rule |= {"rule": "whole-history"} if window is None else {"window_days": window}
    here = staged(tmp_path_factory.mktemp("events"), rows)
    found = profile(here, POLICY, a_study(**rule), {"SOUTH:1": "ICD10CM:1", "SOUTH:77": "ICD10CM:1"})

    events = set(rows)
    sizes = Counter(Counter(p for p, _, _ in events).values())
    assert (found.rows, found.events, found.repeated) == (len(rows), len(events), len(rows) - len(events))
    assert found.patients == len({p for p, _, _ in events})
    assert found.codes == len({c for _, _, c in events})
    assert found.sizes == sizes
    assert found.capped_patients == sum(n for size, n in sizes.items() if size > cap)
    assert found.capped_events == sum((size - cap) * n for size, n in sizes.items() if size > cap)
    assert found.largest_day == max(Counter((p, d) for p, d, _ in events).values())
    years = {y: [p for p, d, _ in events if d.year == y] for y in sorted({d.year for _, d, _ in events})}
    assert [tuple(y) for y in found.years] == [(y, len(ps), len(set(ps))) for y, ps in years.items()]
    assert (found.first, found.last) == (min(d for _, d, _ in events), max(d for _, d, _ in events))
    assert found.days == len({d for _, d, _ in events})
    assert found.new_year == sum((d.month, d.day) == (1, 1) for _, d, _ in events)
    assert found.top_day_events == max(Counter(d for _, d, _ in events).values())
    assert found.top_day_patients == len({p for p, d, _ in events if d == found.top_day})
    for system in found.systems:
        own = [c for _, _, c in events if c.startswith(f"{system.prefix}:")]
        assert (system.codes, system.events) == (len(set(own)), len(own))
        assert (system.codes_below, system.events_below) == (len(set(own)), len(own)), "six patients at most"
        anchored = own.count("SOUTH:1") if system.prefix == "SOUTH" else 0
        assert (system.anchored_codes, system.anchored_events) == (int(anchored > 0), anchored)
    assert found.anchors_without_events == 2 - any(c == "SOUTH:1" for _, _, c in events)

    columns = ([p for p, _, _ in rows], [d.toordinal() for _, d, _ in rows])
    codes = [here.codes.index(c) for _, _, c in rows]
    counts = count_pairs(
        *columns, codes, len(here.codes), window_days=window, max_events_per_patient=cap, threads=1
    )
    assert found.pairs == counts.events.sum() == sum(found.partition_pairs)


@settings(max_examples=20, deadline=None)
@given(rows=EVENTS, order=st.randoms(use_true_random=False))
def test_order_threads_and_memory_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], order: Any
) -> None:
    mixed = order.sample(rows, len(rows))
    first, second = (staged(tmp_path_factory.mktemp("events"), r) for r in (sorted(rows), mixed))
    one = profile(first, POLICY, a_study(), {}, threads=1, memory=1)
    other = profile(second, POLICY, a_study(), {}, threads=3)
    for name, value in vars(one).items():
        if name not in {"runs", "backwards"}:
            assert getattr(other, name) == value, name
    assert (one.runs, one.backwards) == (one.patients, 0)


def test_quantiles_are_those_of_the_sorted_sizes(tmp_path: Path) -> None:
    rows = [(p, date(2020, 1, 1) + timedelta(days=i), "ICD10CM:1") for p in range(1, 101) for i in range(p)]
    found = looked_at(tmp_path, rows)
    assert [found.quantile(q) for q in (0.01, 0.05, 0.5, 0.95, 1.0)] == [1, 5, 50, 95, 100]


def test_a_system_that_the_study_does_not_list(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="'ELSE' is not in study"):
        looked_at(tmp_path, [(1, date(2020, 1, 1), "ELSE:1")])


# --- Findings ------------------------------------------------------------------------------------------


def test_sound_events_are_only_ok(tmp_path: Path) -> None:
    study = synthetic.study(embedding={"codes_per_dim": 10})
    found = findings(looked_at(tmp_path, plain()), study, EXACT)
    assert {c.result for c in found} == {"ok"}, found


NEW_YEARS_DAY, ONE_DAY = date(2012, 1, 1), date(2015, 6, 1)
PROBLEMS = {
    "a date of birth": ([(p, date(1911, 3, 4), "ICD10CM:1") for p in range(40)], "dates", "40 (1.3 %) events before 1950"),
    "years as dates": (
        [(p, date(2010 + i, 1, 1), "ICD10CM:3") for p in range(120) for i in range(2)],
        "dates",
        "events on a 1 January",
    ),
    "a default date": (
        [(p, ONE_DAY, f"ICD10CM:{i}") for p in range(60) for i in range(20)],
        "dates",
        "events of 62 patients on the one day 2015-06-01",
    ),
    "a machine": (
        [(7, ONE_DAY, f"ICD9CM:{i}") for i in range(BUSY_DAY + 1)],
        "patients",
        f"with more than 1,000 on one day: 1 (at most {BUSY_DAY + 1:,})",
    ),
    "a joined table": (plain() * 2, "repeated rows", "(66.7 %) repeat"),
    "rare codes": ([(1, ONE_DAY, f"ICD10CM:r{i}") for i in range(900)], "codes below the floor", "900 (96.8 %) of the codes"),
    "local codes": (
        [(p, date(2011, 2, i + 1), f"SOUTH:{i}") for p in range(100) for i in range(20)],
        "code systems",
        "2,000 (40.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "name", "text"), PROBLEMS.values(), ids=list(PROBLEMS))
def test_a_problem_is_found_with_its_number(tmp_path: Path, rows: list[Row], name: str, text: str) -> None:
    found = check(looked_at(tmp_path, plain() + rows), name)
    assert found.result == "look"
    assert text in found.finding


def test_the_most_frequent_local_codes_are_named(tmp_path: Path) -> None:
    rows = [
        (p, date(2011, 2, d + 1), f"SOUTH:{i}") for p in range(100) for i in range(9) for d in range(i + 1)
    ]
    anchors = {"SOUTH:8": "ICD10CM:1"}
    found = check(looked_at(tmp_path, rows, anchors=anchors), "code systems")
    assert "Anchors cover 1 (11.1 %) of the own codes, and 900 (20.0 %) of their events" in found.finding
    assert found.finding.endswith("SOUTH:7, SOUTH:6, SOUTH:5, SOUTH:4, SOUTH:3")
    assert "translate them in data.systems" in found.finding


def test_anchors_that_are_spelled_otherwise(tmp_path: Path) -> None:
    anchors = {f"SOUTH:0{i}": "ICD10CM:1" for i in range(10)}
    found = check(looked_at(tmp_path, plain(), anchors=anchors), "code systems")
    assert found.result == "look"
    assert "10 (100 %) anchors are of codes without events" in found.finding


def test_unsorted_rows_are_no_problem(tmp_path: Path) -> None:
    rows = plain()
    found = check(looked_at(tmp_path, rows[::-1]), "order of rows")
    assert found.result == "ok"
    assert "later date of the same patient" in found.finding
    assert "does no harm" in found.finding
    scattered = sorted(rows, key=lambda r: r[1])
    assert "not together" in check(looked_at(tmp_path / "b", scattered), "order of rows").finding


def test_too_few_patients(tmp_path: Path) -> None:
    found = looked_at(tmp_path, [(1, ONE_DAY, "ICD10CM:1")])
    assert check(found, "data").result == check(found, "codes below the floor").result == "look"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 9, "0 %"), (9, 9, "100 %"), (1, 9999, "<0.1 %"), (9998, 9999, ">99.9 %"), (1, 3, "33.3 %"), (0, 0, "0 %")],
)  # fmt: skip
def test_shares(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_coarse_numbers() -> None:
    assert [COARSE.count(n) for n in (0, 1, 10, 11, 12, 13, 1234)] == [
        "0",
        "<11",
        "<11",
        "10",
        "10",
        "15",
        "1,235",
    ]
    assert COARSE.part(3, 100) == "<11"
    assert EXACT.part(3, 100) == "3 (3.0 %)"


# --- Pictures ------------------------------------------------------------------------------------------


def test_bars_hold_all_patients_and_all_events(tmp_path: Path) -> None:
    rows = [*plain(), *((p, date(1901, 1, 1), "ICD10CM:1") for p in range(3))]
    found = looked_at(tmp_path, rows)
    assert sum(b.number for b in patients_by_events(found)) == found.patients
    years = events_by_year(found)
    assert sum(b.number for b in years) == found.events
    assert len(years) <= 40
    assert (years[0].number, years[0].patients) == (3, 3)


# --- The page ------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Checks that elements nest; collects attributes and text."""

    VOID = frozenset({"meta", "link", "line", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, k, v) for k, v in attrs]

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data + "\n"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("site"))


def new_home(bench: Bench, folder: Path, **changes: Any) -> Home:
    files = {"invitation": bench.invitation, "study": bench.study_path}
    return init_home(folder, site="north", system="ICD10CM", **(files | changes))


def with_events(bench: Bench, folder: Path, rows: list[Row], **bad: Any) -> Home:
    """A home folder whose file holds these rows, and `bad` ones to be skipped."""
    path = folder / "events.parquet"
    columns = {"patient": [r[0] for r in rows], "date": [str(r[1]) for r in rows]}
    columns["code"] = [r[2].partition(":")[2] for r in rows]
    for name, values in bad.items():
        columns[name] = [*columns[name], *values]
    longest = max(map(len, columns.values()))
    pq.write_table(pa.table({k: v + [v[0]] * (longest - len(v)) for k, v in columns.items()}), path)
    home = new_home(bench, folder / "home", events=path)
    text = (home.folder / "site.toml").read_text().replace('bad_rows = "stop"', 'bad_rows = "skip"')
    (home.folder / "site.toml").write_text(text)
    return Home(home.folder)


@pytest.fixture
def small_cells(bench: Bench, tmp_path: Path) -> Examination:
    """A site with cells of few patients, of every sort."""
    rows = [
        *plain(),
        *((4_711, date(1931, 5, 6), f"ICD10CM:m{i}") for i in range(1_234)),
        *((p, date(1944, 7, 8), "ICD10CM:few") for p in (8_150, 8_151, 8_152)),
    ]
    return examine(with_events(bench, tmp_path, rows, date=["2999-01-01", "soon", "soon"]))


def test_the_page_stands_alone_and_can_be_read_aloud(small_cells: Examination) -> None:
    text = page(small_cells, version="1.2.3")
    outline = Outline(text)
    assert not re.search(r"https?:|//|url\(|<script|@import", text)
    assert {k for _, k, _ in outline.attributes}.isdisjoint({"src", "srcset", "onload", "onclick"})
    assert {v for t, k, v in outline.attributes if t == "link" and k == "href"} == {"data:,"}
    drawings = [v for t, k, v in outline.attributes if (t, k) == ("svg", "aria-label")]
    assert len(drawings) == 2
    assert all(drawings)
    assert text.count("<svg") == text.count('role="img"') == 2
    assert "prefers-color-scheme: dark" in text
    assert re.search(r"<title>Data of site north</title>", text)
    assert ("html", "lang", "en") in outline.attributes


def test_the_page_tells_nothing_of_few_patients(small_cells: Examination) -> None:
    exact = small_cells.profile
    assert exact is not None
    text = Outline(page(small_cells, version="0")).text
    terminal = " ".join(c.finding for c in small_cells.checks())
    for secret in ("4711", "4,711", "8150", "8,150", "1,234", "1234", "1931", "m7", "soon", "2999"):
        assert secret not in text, secret
    assert "(at most 1,234)" in terminal
    assert "on one day: <11" in text
    assert text.count("<11 patients") >= 3, "one large patient, and the years 1931 and 1944"
    assert "not a date (YYYY-MM-DD)\n<11" in text
    assert f"{exact.rows:,}" not in text, "totals are rounded, or they would tell what is left out of them"


def test_the_page_of_data_that_cannot_be_used_does_not_quote_them(bench: Bench, tmp_path: Path) -> None:
    home = with_events(bench, tmp_path, plain(), date=["Jane Doe"])
    path = home.folder / "site.toml"
    path.write_text(path.read_text().replace('bad_rows = "skip"', 'bad_rows = "stop"'))
    found = examine(Home(home.folder))
    assert any("Jane Doe" in c.finding for c in found.checks() if c.result == "failed")
    assert "Jane Doe" not in page(found, version="0")
    Outline(page(found, version="0"))


def test_names_on_the_page_are_escaped(bench: Bench, tmp_path: Path) -> None:
    rows = [(p, date(2020, 1, 1 + i), f"ICD10CM:<b>{i}") for p in range(30) for i in range(25)]
    found = examine(with_events(bench, tmp_path, rows))
    found.after.append(Check("<script>", "look", "a & b <img src=x>"))
    text = page(found, version="<i>")
    Outline(text)
    assert "<script" not in text
    assert "<img" not in text
    assert "a &amp; b" in text


# --- The examination -----------------------------------------------------------------------------------


def test_events_are_read_once_for_doctor_and_preview(bench: Bench, tmp_path: Path) -> None:
    home = new_home(bench, tmp_path / "home", events=bench.events)
    found = examine(home)
    assert found.profile is not None
    said: list[str] = []
    prepared = prepare_release(home, sequence=1, previous="", progress=lambda s, _: said.append(s))
    assert "the events are read already" in said
    assert prepared.n_rows == found.profile.rows
    assert not list(home.work.rglob("rows-*"))


def test_large_data_are_counted_only_when_asked(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{EXAMINE}.SMALL", 100)
    home = with_events(bench, tmp_path, plain(9_000, 300))
    found = examine(home)
    assert found.profile is not None
    assert found.estimate is not None
    assert found.estimate.pairs == found.profile.pairs > 0
    assert found.estimate.seconds > 0
    assert 0 < found.estimate.sample <= 1
    floors = next(c for c in found.checks() if c.name == "floors")
    assert f"{found.profile.pairs:,} pairs" in floors.finding
    assert "--count" in floors.finding
    assert {p.name for p in home.work.iterdir()} == {".lock", "events"}, "the sample's counts are gone"
    counted = examine(home, count=True)
    assert counted.estimate is None
    assert "pass the floors" in next(c for c in counted.checks() if c.name == "floors").finding


def test_the_sample_is_a_part_of_large_data(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{EXAMINE}.SMALL", 100)
    monkeypatch.setattr("site_agent.doctor.estimate._SAMPLE_ROWS", 1_000)
    found = examine(with_events(bench, tmp_path, plain(9_000, 300)))
    assert found.estimate is not None
    assert 0.05 < found.estimate.sample < 0.5


def test_whoever_works_there_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    home = with_events(bench, tmp_path, plain())
    with work_lock(home):
        found = examine(home)
    assert [c.result for c in found.checks() if c.name == "data"] == ["failed"]
    assert "Another command" in " ".join(c.finding for c in found.checks())
    assert found.checks()[-1].name == "connection"


def test_what_no_reader_foresaw_is_a_finding(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a decoder gave up\nat byte 7")

    home = with_events(bench, tmp_path, plain())
    monkeypatch.setattr(f"{EXAMINE}.stage_events", broken)
    found = examine(home)
    (data,) = [c for c in found.checks() if c.name == "data"]
    assert data.result == "failed"
    assert "RuntimeError: a decoder gave up. The agent did not expect this" in data.finding


def test_wrong_anchors_do_not_hide_the_data(bench: Bench, tmp_path: Path) -> None:
    home = with_events(bench, tmp_path, plain())
    path = home.folder / "site.toml"
    path.write_text(path.read_text().replace('anchors = ""', 'anchors = "none.csv"'))
    found = examine(Home(home.folder))
    results = {c.name: c.result for c in found.checks()}
    assert results["anchors"] == "failed"
    assert results["dates"] == "ok"


def test_an_empty_folder_is_no_site(tmp_path: Path) -> None:
    found = examine(Home(tmp_path))
    assert [(c.name, c.result) for c in found.checks()] == [("configuration", "failed")]
    Outline(page(found, version="0"))


def test_memory_that_is_none(bench: Bench) -> None:
    with pytest.raises(UsageError, match="no size of memory"):
        examine(bench.agent.home, memory="much")


# --- The command ---------------------------------------------------------------------------------------


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def test_the_command_writes_json_and_a_page(bench: Bench, tmp_path: Path) -> None:
    home, html = with_events(bench, tmp_path, plain()), tmp_path / "out" / "doctor.html"
    done = call("doctor", "--home", home.folder, "--json", "--html", html)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    found = examine(home)
    assert told == json.loads(json.dumps(as_json(found), default=str))
    assert told["profile"]["rows"] == len(plain())
    assert sum(told["profile"]["patients_by_events"].values()) == told["profile"]["patients"]
    assert {"name", "result", "finding"} == set(told["checks"][0])
    assert html.stat().st_mode & 0o777 == 0o600
    Outline(html.read_text())


def test_the_command_draws_and_says_where_the_events_are(bench: Bench, tmp_path: Path) -> None:
    home = with_events(bench, tmp_path, plain())
    done = call("doctor", "--home", home.folder)
    assert done.exit_code == 0, done.output
    assert str(home.work) in done.stdout
    assert "Events by year" in done.stdout
    assert re.search(r"2012 +[█▏▎▍▌▋▊▉]+ +\d+ ", done.stdout)


def test_a_terminal_without_block_characters(
    small_cells: Examination, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(out), "encoding", property(lambda _: "ascii"))
    show(small_cells)
    assert re.search(r"2010-2014 +#+ ", capsys.readouterr().out)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "patient,date,code\n",
        "patient,when,code\n1,2020-01-01,x\n",
        "patient,date,code\n1,yesterday,x\n",
        "patient,date,code\n1,2020-01-01\n",
        "\x00\x01\x02",
        "patient,date,code\n1,2020-01-01," + "x" * 5_000 + "\n",
        'patient,date,code\n1,2020-01-01,"x\n',
        "patient,date,code,date\n1,2020-01-01,x,y\n",
        "patient,date,code,system\n1,2020-01-01,x,NONE\n",
        "patient,date,code\n1,2020-01-01,x\n",
    ],
)
def test_bad_data_give_a_finding_and_no_traceback(bench: Bench, tmp_path: Path, text: str) -> None:
    events = tmp_path / "events.csv"
    events.write_text(text)
    home = new_home(bench, tmp_path / "home", events=events)
    done = call("doctor", "--home", home.folder, "--html", tmp_path / "doctor.html")
    assert done.exit_code in {0, 1}
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert (done.exit_code == 1) == ("failed" in done.stdout)
    Outline((tmp_path / "doctor.html").read_text())


def test_a_page_that_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    home = with_events(bench, tmp_path, plain())
    for target in (tmp_path, tmp_path / "events.parquet" / "x.html"):
        done = call("doctor", "--home", home.folder, "--html", target)
        assert isinstance(done.exception, UsageError), done.output


# --- init, for every kind of data ----------------------------------------------------------------------

KINDS = {
    "triplets": {"events": "events.parquet"},
    "meds": {"events": "."},
    "fhir": {"events": "."},
    "omop": {"database": "postgresql://agent@db.example:5432/warehouse", "schema": "cdm"},
    "i2b2": {"database": "duckdb:///data/i2b2.duckdb"},
    "pcornet": {"database": "spark://local", "schema": "pcornet"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_init_writes_a_configuration_for_each_kind(bench: Bench, tmp_path: Path, kind: str) -> None:
    given = KINDS[kind]
    words: list[object] = [
        "init",
        tmp_path / "home",
        "--site",
        "north",
        "--system",
        "ICD10CM",
        "--kind",
        kind,
    ]
    words += ["--study", bench.study_path, "--invitation", bench.invitation]
    for name, value in given.items():
        words += [f"--{name}", bench.folder / value if name == "events" else value]
    done = call(*words)
    assert done.exit_code == 0, done.output
    data = Home(tmp_path / "home").config.data
    assert (data.kind, data.database, data.schema_) == (
        kind,
        given.get("database", ""),
        given.get("schema", ""),
    )
    if "events" in given:
        assert data.events == str((bench.folder / given["events"]).resolve())

    # What is commented out is there to be used: it is right too.
    text = (tmp_path / "home" / "site.toml").read_text()
    shown = re.sub(r'^# (?=[\w".:/-]+ = |\[)', "", text, flags=re.MULTILINE)
    (tmp_path / "home" / "site.toml").write_text(shown)
    data = Home(tmp_path / "home").config.data
    assert data.latest_date is not None
    assert (
        bool(data.systems) == bool(data.rollup.file or data.rollup.concept_ancestor) == (kind != "triplets")
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "omop"}, "are in a database"),
        ({"kind": "omop", "database": "mysql://x/y"}, "not the URL of a database"),
        ({"kind": "omop", "database": "postgresql://a:geheim@h/d"}, "holds a password"),
        ({"kind": "omop", "database": "duckdb:///x", "events": "events.parquet"}, "are in a database"),
        ({"kind": "meds", "events": "events.parquet"}, "There is no folder"),
        ({"kind": "triplets", "events": "."}, "There is no file"),
        ({"kind": "triplets"}, "are in files"),
        ({"kind": "fhir", "events": ".", "schema": "x"}, "are in files"),
    ],
)
def test_init_refuses_a_place_that_is_none(
    bench: Bench, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    given = {k: bench.folder / v if k == "events" else v for k, v in options.items()}
    with pytest.raises(UsageError, match=text) as raised:
        new_home(bench, tmp_path / "home", **given)
    assert "geheim" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
