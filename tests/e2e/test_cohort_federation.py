"""A question about a cohort over the real stack: asked, looked at, approved and answered by commands.

Three to five minutes, so by `SMILE_BATTERY=full` only; tests/unit/test_cohort_watched.py has the same without Flower, and reads
every byte that a site sends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

pytest.importorskip("flwr")

from coordinator.store import Store
from coordinator.sums.opening import open_sum
from tests.cohort_federation import PATIENTS, CohortConsortium, patient_id
from tests.sum_federation import SITES
from tests.sum_stack import Stack, command, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.environ.get("SMILE_BATTERY") != "full", reason="long: SMILE_BATTERY=full runs it"),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("asked") / "all", CohortConsortium) as stack:
        yield stack


def test_a_question_comes_back_as_one_number(stack: Stack) -> None:
    hub, consortium = stack.hub, stack.consortium
    assert isinstance(consortium, CohortConsortium)
    enrolled = {s.name: s.public_keys for s in Store(hub.database_url).members()}
    open_sum(hub, "hf", consortium.asked(), enrolled=enrolled, nodes=stack.nodes)
    # The question reaches the sites, which have looked at nothing yet.
    assert "0 of 3" in stack.run("hf", code=1, wait=25)
    for site in SITES:
        home = ("--home", consortium.homes[site].folder)
        offered = command("roster", "show", *home)["fingerprint"]
        command("roster", "trust", offered, *home)
        listed = command("site", "cohort", "questions", "list", *home)
        assert [q["question"] for q in listed] == ["hf"]
        shown = command("site", "cohort", "questions", "preview", "hf", *home)
        assert shown["answer"]["patients"] == PATIENTS[site][0]
        yes = ("--yes", "--digest", shown["digest"][:16], "--passphrase-file", stack.secret)
        command("sums", "approve", "hf", *yes, *home)
    stack.run("hf")
    answer = command("coordinator", "cohort", "answer", "hf", "--home", hub.folder)
    # Rounded to hundreds at each site; that of the 17 is under the floor.
    assert answer["total"] == 300 + 400
    # Nothing that the coordinator received, stored or logged names a patient.
    for path in hub.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [s for s in SITES if patient_id(s, 0)[:-4].encode() in data], path
