"""/metrics, and what readiness means: who may read, what stands there, and what does not."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from coordinator.flower.desk import SiteProgress
from coordinator.roundstates import STATES
from coordinator.store import Submission
from coordinator.web.tokens import Tokens
from tests.hub import Hub
from tests.web import Web, copy_home, small_home, web

PROMTOOL = shutil.which("promtool")
ALERTS = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
HEARD = "2026-11-02T10:00:00+00:00"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub(tmp_path_factory.mktemp("metrics"))
    hub.enrol("lake", "north", "south")
    hub.open_round("r1")
    hub.open_round("r2")
    hub.store.move_round("r2", "aborted", "Not wanted")
    desk = hub.desk("r1")
    desk.report(
        SiteProgress(site="north", state="receiving", bytes_done=5, bytes_total=20, heard=HEARD, detail="C50")
    )
    desk.report(SiteProgress(site="lake", state="offline"))
    store = hub.store
    store.record_submission(Submission(round="r1", site="south", envelope_digest="a" * 64, state="refused"))
    return hub


@pytest.fixture(scope="module")
def service(hub: Hub) -> Iterator[Web]:
    with web(hub.home) as made:
        made.token["prom"] = Tokens(made.client.app.state.library.store).add("prometheus", "monitor")  # type: ignore[attr-defined]
        yield made


def scraped(service: Web, by: str = "prom") -> str:
    answer = service.client.get("/metrics", headers=service.headers(by))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return str(answer.text)


def samples(service: Web) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(scraped(service)):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands there twice"
            found[key] = sample.value
    return found


def of(found: dict[Any, float], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(v for _, v in labels): value for (n, labels), value in found.items() if n == name}


def test_a_monitor_reads_metrics_and_nothing_else(service: Web) -> None:
    asked = {
        by: service.client.get("/metrics", headers=service.headers(by)).status_code for by in service.token
    }
    assert asked == {"ann": 403, "ada": 403, "ben": 403, "cyd": 200, "prom": 200}
    assert service.client.get("/metrics").status_code == 401
    forwarded = service.client.get("/metrics", headers={"x-forwarded-for": "127.0.0.1"})
    assert forwarded.status_code == 401
    described = service.client.get("/openapi.json").json()["paths"].items()
    asks = [(verb.upper(), path) for path, verbs in described for verb in verbs]
    assert ("GET", "/metrics") in asks and len(asks) > 30
    asks += [
        ("GET", path)
        for path in ("/", "/versions", "/latest/map", "/v/1", "/v/1/search", "/rounds", "/rounds/r1/now")
    ]
    still_open = {"/metrics", "/healthz", "/readyz", "/fhir/metadata"}
    for method, path in asks:
        if path not in still_open:
            filled = re.sub(r"{[a-z_]+}", "1", path)
            answer = service.client.request(method, filled, headers=service.headers("prom"))
            assert answer.status_code == 403, (method, path, answer.status_code)
            assert "monitor" in answer.text


def test_an_analyst_may_still_not_watch_by_rank(service: Web) -> None:
    said = service.client.get("/metrics", headers=service.headers("ann")).json()
    assert said["do"] == "Ask the coordinator: coordinator token add prometheus --role monitor"


def test_rounds_and_sites_as_they_are(service: Web, hub: Hub) -> None:
    found = samples(service)
    rounds = of(found, "smile_rounds")
    assert {s for (s,) in rounds} == set(STATES)
    assert (rounds[("open",)], rounds[("aborted",)], rounds[("planned",)]) == (1, 1, 0)
    assert of(found, "smile_round_state") == {("r1", "open"): 1}
    deadline = hub.store.round("r1").expires.replace(tzinfo=UTC).timestamp()
    assert of(found, "smile_round_deadline_timestamp_seconds") == {("r1",): pytest.approx(deadline)}
    assert of(found, "smile_round_sites") == {
        ("r1", "receiving"): 1,
        ("r1", "offline"): 1,
        ("r1", "refused"): 1,
        ("r1", "not enrolled"): 1,
    }
    assert of(found, "smile_round_releases") == {("r1", "refused"): 1}
    assert of(found, "smile_site_transfer_bytes") == {("r1", "north"): 5}
    assert of(found, "smile_site_transfer_size_bytes") == {("r1", "north"): 20}


def test_what_is_not_known_has_no_number(service: Web) -> None:
    found = samples(service)
    heard = of(found, "smile_site_heard_timestamp_seconds")
    assert heard == {("r1", "north"): datetime.fromisoformat(HEARD).timestamp()}
    about = [labels for (_, labels) in found if ("site", "lake") in labels or ("site", "west") in labels]
    assert about == []
    assert not of(found, "smile_newest_version")


def test_a_service_that_is_kept_out_of_the_rounds_says_so(
    service: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of(samples(service), "smile_sites_readable") == {(): 1}

    def closed(*_: Any) -> None:
        raise PermissionError(13, "closed")

    monkeypatch.setattr("coordinator.flower.desk.RoundDesk.progress", closed)
    found = samples(service)
    assert of(found, "smile_sites_readable") == {(): 0}
    assert not of(found, "smile_round_sites") and of(found, "smile_round_releases")
    answer = service.get("/rounds/r1", "cyd")
    assert answer.status_code == 503 and "rounds" in answer.json()["why"]


def test_labels_hold_names_and_nothing_of_people_or_data(service: Web) -> None:
    service.get("/releases/1/search?q=diabetes", "ann")
    service.client.get("/v/1/concept/NORTH:C50", headers=service.headers("ann"))
    service.client.request("BREW", "/nothing/here", headers=service.headers("ann"))
    service.client.get("/metrics", headers={"authorization": "Bearer smile_wrong"})
    shown = scraped(service)
    for secret in ("diabetes", "C50", "BREW", "smile_wrong", "/nothing", "it@", *service.token.values()):
        assert secret not in shown
    for person in ("ann", "cyd", "prometheus"):
        assert f'"{person}"' not in shown


def test_requests_are_counted_by_route_and_status(service: Web) -> None:
    def ask() -> tuple[float, float, float]:
        found = samples(service)
        labels = ("GET", "/api/v1/rounds/{round}", "404")
        timed = of(found, "smile_web_request_duration_seconds_count")
        other = of(found, "smile_web_requests_total").get(("other", "none", "404"), 0.0)
        return (
            of(found, "smile_web_requests_total").get(labels, 0.0),
            timed.get(("/api/v1/rounds/{round}",), 0.0),
            other,
        )

    before = ask()
    for _ in range(3):
        assert service.get("/rounds/none", "cyd").status_code == 404
    for word in ("BREW", "MAKE"):
        service.client.request(word, f"/{word}", headers=service.headers("cyd"))
    after = ask()
    assert (after[0] - before[0], after[1] - before[1], after[2] - before[2]) == (3, 3, 2)


def test_the_process_is_measured(service: Web) -> None:
    found = samples(service)
    assert of(found, "process_resident_memory_bytes")[()] > 10 << 20
    assert of(found, "process_cpu_seconds_total")[()] > 0


def test_versions_are_counted(tmp_path: Path) -> None:
    with web(small_home(tmp_path, codes=20, versions=2)) as service:
        service.token["prom"] = service.token["cyd"]
        found = samples(service)
    assert of(found, "smile_versions") == {(): 2}
    assert of(found, "smile_newest_version") == {(): 2}


@pytest.mark.skipif(not PROMTOOL, reason="promtool, of Debian's package prometheus, is not installed")
def test_prometheus_finds_nothing_to_complain_of(service: Web) -> None:
    told = subprocess.run(
        [str(PROMTOOL), "check", "metrics"],
        input=scraped(service),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr + told.stdout
    rules = subprocess.run(
        [str(PROMTOOL), "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False
    )
    assert rules.returncode == 0, rules.stderr
    tests = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(ALERTS.with_name("alerts_test.yml"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr


def test_alerts_speak_of_metrics_that_there_are(service: Web, tmp_path: Path) -> None:
    names = set(re.findall(r"^# TYPE (\S+)", scraped(service), re.MULTILINE)) | {"up", "probe_success"}
    with web(small_home(tmp_path, codes=20, versions=1)) as other:
        other.token["prom"] = other.token["cyd"]
        names |= set(re.findall(r"^# TYPE (\S+)", scraped(other), re.MULTILINE))
    rules = [r for g in yaml.safe_load(ALERTS.read_text())["groups"] for r in g["rules"]]
    assert len(rules) >= 6
    for rule in rules:
        used = set(re.findall(r"\b((?:smile|process)_[a-z_]+|up)\b", rule["expr"]))
        assert used and {re.sub("_(bucket|count|sum)$", "", u) for u in used} <= names, rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys()


# --- Readiness -----------------------------------------------------------------------------------------


def ready(service: Web) -> tuple[int, str]:
    service.client.app.state.readiness.forget()  # type: ignore[attr-defined]
    answer = service.client.get("/readyz")
    return answer.status_code, answer.json().get("why", "")


def test_a_database_of_another_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    with web(copy_home(hub.home, tmp_path)) as service:
        assert ready(service) == (200, "")
        store = service.client.app.state.library.store  # type: ignore[attr-defined]
        with store.begin() as session:
            session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        status, why = ready(service)
        assert status == 503 and "revision 9999" in why


def test_a_database_that_is_gone_is_named_and_the_process_still_answers(hub: Hub, tmp_path: Path) -> None:
    home = copy_home(hub.home, tmp_path)
    with web(home) as service:
        store = service.client.app.state.library.store  # type: ignore[attr-defined]
        store.engine.dispose()
        Path(store.engine.url.database).unlink()
        Path(store.engine.url.database).mkdir()
        status, why = ready(service)
        assert (status, why) == (503, "the database does not answer")
        assert service.client.get("/healthz").status_code == 200


def test_a_newest_version_that_does_not_verify_is_named_until_it_does(tmp_path: Path) -> None:
    home = small_home(tmp_path, codes=20, versions=2)
    path = home.release_folder(2) / "report.html"
    kept = path.read_bytes()
    path.write_bytes(kept + b" ")
    with web(home) as service:
        assert ready(service) == (503, "the newest version does not verify")
        path.write_bytes(kept)
        assert ready(service) == (200, "")
