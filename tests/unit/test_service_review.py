"""Review through the service: verdicts, blindness, conflicts, undo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.config import Home
from tests.web import Web, small_home, web

TARGET = "ICD10CM:A00000"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"), codes=200)


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[Web]:
    with web(home) as made:
        yield made


def review(service: Web, code: str, by: str) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/releases/2/mappings/{code}", by=by).json()["review"]
    alone = service.get(f"/reviews/codes/{code}", by=by).json()
    assert {k: v for k, v in alone.items() if k != "code"} == found
    return found


def decide(service: Web, code: str, verdict: str, by: str, target: str = TARGET, comment: str = "") -> Any:
    body = {"code": code, "target": target, "verdict": verdict, "comment": comment}
    return service.post("/reviews/decisions", body, by=by)


def test_a_verdict_is_seen_at_once_and_taken_back(service: Web) -> None:
    code = "NORTH:000003"
    made = decide(service, code, "accept", "ada", comment="<b>sure</b>")
    assert made.status_code == 201
    assert made.json()["version"] == 2
    assert "previous" not in made.json()
    found = review(service, code, "ann")
    assert (found["state"], found["target"]) == ("accepted", TARGET)
    assert found["history"][0]["comment"] == "<b>sure</b>"
    number = made.json()["number"]
    assert service.post("/reviews/undo", {"number": number}, by="ben").status_code == 409
    assert service.post("/reviews/undo", {"number": number}, by="ada").status_code == 201
    assert review(service, code, "ann")["state"] == "open"


def test_a_blind_verdict_is_hidden_until_all_have_decided(service: Web) -> None:
    code = "NORTH:000006"
    assigned = service.post("/reviews/assignments", {"codes": [code], "reviewers": ["ada", "ben"]}, by="cyd")
    assert assigned.status_code == 201
    decide(service, code, "accept", "ada", comment="because of A00")
    # Not to the other reviewer, nor to anybody whom they could ask, or as whom they could read.
    for name in ("ben", "ann"):
        hidden = review(service, code, name)
        assert hidden["hidden"]
        assert "A00" not in str(hidden)
        assert hidden["state"] == "open"
    assert "because" in str(review(service, code, "ada"))
    assert "because" in str(review(service, code, "cyd"))
    queued = service.get("/releases/2/reviews/queue?limit=200", by="ben").json()["items"]
    (task,) = [t for t in queued if t["mapping"]["code"] == code]
    assert "A00000" not in str({k: v for k, v in task.items() if k != "mapping"})
    decide(service, code, "reject", "ben")
    for name in ("ada", "ben", "ann", "cyd"):
        found = review(service, code, name)
        assert not found["hidden"]
        assert found["state"] == "conflict"
    ended = service.post(
        "/reviews/adjudications", {"code": code, "target": TARGET, "verdict": "accept"}, by="cyd"
    )
    assert ended.status_code == 201
    assert review(service, code, "ann")["state"] == "accepted"
    assert service.get("/releases/2/reviews/progress").json()["counts"]["accepted"] == 1


def test_what_does_not_fit_is_a_conflict_and_what_is_not_there_is_not_found(service: Web) -> None:
    code = "NORTH:000009"
    assert decide(service, "NORTH:none", "accept", "ada").status_code == 404
    assert decide(service, TARGET, "accept", "ada").status_code == 422
    assert decide(service, code, "accept", "ada", target="LOINC:1").status_code == 422
    assert decide(service, code, "reject", "ada", target="").status_code == 422
    assert decide(service, code, "maybe", "ada").status_code == 422
    assert decide(service, code, "accept", "ada", comment="x" * 3000).status_code == 422
    body = {"code": code, "target": TARGET, "verdict": "accept"}
    assert service.post("/reviews/decisions", body | {"version": 9}).status_code == 404
    assert service.post("/reviews/adjudications", body, by="cyd").status_code == 409
    assert service.post("/reviews/undo", {"number": 10_000}).status_code == 409
    service.post("/reviews/assignments", {"codes": [code], "reviewers": ["ben"]}, by="cyd")
    assert decide(service, code, "accept", "ada").status_code == 409
    both = {"codes": [code, "NORTH:none"], "reviewers": ["ada"]}
    assert service.post("/reviews/assignments", both, by="cyd").status_code == 404


def test_analysts_do_not_learn_who_decided(home: Home, service: Web) -> None:
    code = "NORTH:000018"
    for name in ("ada", "ben"):
        decide(service, code, "accept", name, comment=f"said by {name[0]}")
    by_name = {r["by"] for r in review(service, code, "cyd")["history"]}
    assert by_name == {"ada", "ben"}
    seen = review(service, code, "ann")
    assert [(r["by"], r["comment"]) for r in seen["history"]] == [
        ("person 1", "said by a"),
        ("person 2", "said by b"),
    ]
    with web(home, anonymous="analyst") as public:
        found = public.client.get(f"/api/v1/reviews/codes/{code}").json()
    assert (found["state"], [r["comment"] for r in found["history"]]) == ("accepted", ["", ""])
    assert "ada" not in str(found)


def test_lists_are_filtered_by_state(service: Web) -> None:
    decide(service, "NORTH:000015", "reject", "ada")
    rejected = service.get("/releases/2/mappings?state=rejected")
    assert [i["code"] for i in rejected.json()["items"]] == ["NORTH:000015"]
    assert "etag" not in rejected.headers
    counts = service.get("/releases/2/reviews/progress").json()["counts"]
    for state in ("open", "accepted", "rejected", "unsure", "conflict"):
        assert service.get(f"/releases/2/mappings?state={state}").json()["total"] == counts[state]


def test_the_queue_can_be_walked(service: Web) -> None:
    first = service.get("/releases/1/reviews/queue?limit=20", by="ada").json()["items"]
    second = service.get("/releases/1/reviews/queue?limit=20&offset=20", by="ada").json()["items"]
    codes = [t["mapping"]["code"] for t in first + second]
    assert len(codes) == len(set(codes)) == 40
    doubt = [t["doubt"] for t in first + second if t["state"] == "open"]
    assert doubt == sorted(doubt, reverse=True)
    only = service.get("/releases/1/reviews/queue?system=LOINC", by="ada").json()["items"]
    assert {t["mapping"]["system"] for t in only} == {"LOINC"}
