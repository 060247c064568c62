"""Every byte that a site sends while a question about a cohort is asked, approved and answered.

What a site sends is what its ClientApp replies, taken as Flower's own serialisation of it. Each byte is accounted for: a
status of few words, and signed messages of the secure sum whose every leaf is a digest, a key, a share, a sealed box, the
site's name or the number of cells, with one masked cell behind one of them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from coordinator.sums.drive import run_sum
from coordinator.sums.outcome import read_outcome
from protocol.errors import RoundError
from protocol.secure_sum.messages import (
    Consent,
    KeyAdvert,
    MaskedVector,
    ReceivedSignature,
    Shares,
    Unmasking,
)
from protocol.signed import Signed, parse
from protocol.sums import STEPS, SumOffer, SumReceipt
from protocol.version import PROTOCOL, SOFTWARE
from site_agent.cohort import CohortStore
from site_agent.flower.app import BLOCK, CONFIG, DATA
from site_agent.released import site_salt
from site_agent.sums.approval import values_digest
from tests.cohort_federation import SITES, CohortConsortium, patient_id
from tests.unit.test_cohort_questions import ask, prepared  # noqa: F401
from tests.unit.test_sum_federation import NODES, Line, quick  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

KINDS = {
    "offer": SumOffer,
    "participants": Consent,
    "advertise": KeyAdvert,
    "share": Shares,
    "mask": MaskedVector,
    "received": ReceivedSignature,
    "unmask": Unmasking,
    "close": SumReceipt,
}
DETAILS = (
    "",
    "The answer is ready",
    "Nothing is counted yet: run site-agent cohort questions preview QUESTION",
    "The counts of this sum wait for approval. 0 of 1 signers have approved. "
    "Run site-agent sums preview and approve at the site.",
)
"""All that a site says in words; the question's name is the coordinator's own."""

QUESTIONS: dict[str, tuple[dict[str, Any], dict[str, int], dict[str, int]]] = {
    # Asked beside the profile of the heart; patients of each site, and what each says.
    "many": ({}, {"lake": 262, "north": 437, "south": 17}, {"lake": 300, "north": 400, "south": 0}),
    "some": (
        {"having": ("ICD10CM:N18.3",)},
        {"lake": 27, "north": 44, "south": 2},
        {"lake": 0, "north": 0, "south": 0},
    ),
    "none": ({"having": ("ICD10CM:X99",)}, dict.fromkeys(SITES, 0), dict.fromkeys(SITES, 0)),
}


class Sent(NamedTuple):
    """One reply of a site: as bytes, and what they mean."""

    raw: bytes
    config: dict[str, Any]
    data: bytes


class Watched(Line):
    """The grid, of which everything that comes from a site is kept."""

    def __init__(self, consortium: CohortConsortium) -> None:
        super().__init__(consortium)
        self.sent: dict[str, list[Sent]] = {site: [] for site in SITES}
        for site in SITES:
            self.grid.nodes[NODES[site]] = self._watch(site, self.grid.nodes[NODES[site]])

    def _watch(
        self, site: str, node: Callable[[Message, Context], Message]
    ) -> Callable[[Message, Context], Message]:
        def reply(message: Message, context: Context) -> Message:
            said = node(message, context)
            assert not said.has_error(), said
            raw = b"".join(part.deflate() for part in get_all_nested_objects(said).values())
            assert set(said.content) <= {CONFIG, BLOCK}
            config, block = said.content[CONFIG], said.content.get(BLOCK)
            assert isinstance(config, ConfigRecord)
            data = b""
            if block is not None:
                assert isinstance(block, ArrayRecord) and set(block) == {DATA}
                data = block[DATA].data
            self.sent[site].append(Sent(raw, dict(config), data))
            return said

        return reply


@pytest.fixture(scope="module")
def watched(
    prepared: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[CohortConsortium, dict[str, Watched]]]:
    """Three questions, each brought, counted, approved and answered; what the sites sent meanwhile."""
    from tests.unit.test_cohort_questions import quicken

    consortium = CohortConsortium.copied(prepared, tmp_path_factory.mktemp("watched") / "all")
    assert isinstance(consortium, CohortConsortium)
    lines = {}
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        for name, (conditions, _, _) in QUESTIONS.items():
            ask(consortium, name, **conditions)
            lines[name] = line = Watched(consortium)
            for _ in range(2):  # before it is counted, and before it is approved
                with pytest.raises(RoundError, match="0 of 3"):
                    run_sum(consortium.hub, name, line)
                for site in SITES:
                    consortium.preview(site, name)
            for site in SITES:
                consortium.say_yes(site, name)
            assert run_sum(consortium.hub, name, line).sites == SITES
    yield consortium, lines


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, (*path, "[]"))
    else:
        yield path, value


def answers(line: Watched, site: str) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Step -> what the site signed, and the bytes behind it."""
    found = {}
    for sent in line.sent[site]:
        if sent.data:
            (length,) = struct.unpack(">I", sent.data[:4])
            outer = Signed.model_validate_json(sent.data[4 : 4 + length])
            assert set(json.loads(sent.data[4 : 4 + length])) == {
                "protocol",
                "software",
                "payload",
                "signature",
            }
            assert (outer.protocol, outer.software) == (PROTOCOL, SOFTWARE)
            assert re.fullmatch(r"[A-Za-z0-9+/]{86}==", outer.signature)
            step = STEPS[int(str(sent.config["round"]).rpartition("-")[2])]
            parse(outer.payload.encode(), KINDS[step])  # closed to unknown fields
            found[step] = (json.loads(outer.payload), sent.data[4 + length :])
    return found


def test_each_site_says_its_status_and_the_messages_of_the_sum_and_nothing_else(
    watched: tuple[CohortConsortium, dict[str, Watched]],
) -> None:
    _, lines = watched
    said = set()
    for name, line in lines.items():
        for site in SITES:
            assert len(line.sent[site]) >= len(STEPS) + 2
            for sent in line.sent[site]:
                config = dict(sent.config)
                assert config.pop("protocol") == PROTOCOL
                assert config.pop("software") == SOFTWARE
                assert set(config) <= {"round", "state", "detail", "sha256", "size", "receipt"}, config
                assert re.fullmatch(rf"{name}-1-[0-7]", config["round"])
                assert config["state"] in {"unknown", "awaiting-approval", "sealed"}
                assert config["detail"].replace(name, "QUESTION") in DETAILS
                said.add(config["detail"].replace(name, "QUESTION"))
                assert config.get("receipt", "") == ""
                assert re.fullmatch("([0-9a-f]{64})?", config["sha256"])
                if config["state"] == "sealed":
                    assert config["size"] == len(sent.data)
                    assert config["sha256"] == sha256(sent.data).hexdigest()
                else:
                    assert config.get("size", 0) == 0
            messages = answers(line, site)
            assert set(messages) == set(STEPS)
            for step, (message, behind) in messages.items():
                assert len(behind) == (8 if step == "mask" else 0)
                for path, leaf in leaves(message):
                    if path[0] == "site":
                        assert leaf == site
                    elif path == ("cells",):
                        assert leaf == 1
                    else:  # digests, keys, shares, sealed boxes
                        assert re.fullmatch("[0-9a-f]{64}|[0-9a-f]{66}|[0-9a-f]{188}", leaf), (step, path)
                    assert set(path) - {"[]", *SITES} <= set(KINDS[step].model_fields)
    assert said == set(DETAILS) - ({""} - said)


def test_what_a_site_sends_looks_the_same_whether_it_has_many_few_or_none(
    watched: tuple[CohortConsortium, dict[str, Watched]],
) -> None:
    """So that nobody can tell zero from what is below the floor, by neither words, fields, sizes nor their order."""
    _, lines = watched
    for site in SITES:
        seen = {
            name: [
                (
                    sent.config["round"][len(name) :],
                    sent.config["state"],
                    sent.config["detail"].replace(name, "QUESTION"),
                    len(sent.data),
                    len(sent.raw),
                )
                for sent in line.sent[site]
            ]
            for name, line in lines.items()
        }
        # Who sends material in which look is the grid's affair; a step repeated is a step said twice.
        assert seen["many"] == seen["some"] == seen["none"]


def test_the_total_is_that_of_the_gated_counts_and_the_cells_are_masked(
    watched: tuple[CohortConsortium, dict[str, Watched]],
) -> None:
    consortium, lines = watched
    for name, line in lines.items():
        _, patients, said = QUESTIONS[name]
        assert read_outcome(consortium.hub, name)[1]["values"].tolist() == [sum(said.values())]
        for site in SITES:
            stored = consortium.memory(site, name)
            assert (stored.patients, stored.answer) == (patients[site], said[site])
            (cell,) = struct.unpack("<Q", answers(line, site)["mask"][1])
            # Uniform modulo 2^64: less than 2^40 from 0 on either side once in eight million.
            assert 1 << 40 < cell < (1 << 64) - (1 << 40)


def test_no_patient_no_vector_and_no_count_is_in_any_byte(
    watched: tuple[CohortConsortium, dict[str, Watched]],
) -> None:
    consortium, lines = watched
    for site in SITES:
        sent = b"".join(s.raw + s.data for line in lines.values() for s in line.sent[site])
        home = consortium.homes[site]
        store = CohortStore.open(home)
        assert len(sent) > 10_000
        # None is so short, or of such letters, that a signature in base64 could hold it by chance.
        for text in (
            b"PATIENT",
            patient_id(site, 0).encode(),
            b"I50.",
            b"SOUTH:",
            b"2020-0",
            site_salt(home.folder),
        ):
            assert text not in sent
        vectors = [*np.asarray(store.vectors), *np.asarray(store.joined)]
        pieces = {row.tobytes()[i : i + 8] for row in vectors if row.any() for i in range(0, row.nbytes, 8)}
        pieces.discard(bytes(8))
        pieces |= {p.tobytes() for p in np.asarray(store.array("patients"))}
        folder = home.folder / "sums"
        for name in QUESTIONS:
            hashes = (folder / name / "cohort.safetensors").read_bytes()[-8:]
            pieces.add(hashes)
        assert not [p for p in pieces if p in sent]
        # A digest of so small a number would be the number: all of them are tried.
        digests = {values_digest(np.array([n], dtype=np.int64)) for n in range(2000)}
        digests |= {sha256(str(n).encode()).hexdigest() for n in range(2000)}
        assert not digests & set(re.findall("[0-9a-f]{64}", sent.decode("latin-1")))
        for name, (_, patients, said) in QUESTIONS.items():
            for number in {patients[site], said[site]} - {0}:
                for form in ("<q", ">q"):
                    assert struct.pack(form, number) not in sent, name


def test_what_lies_in_the_exchange_folder_is_what_was_sent(
    watched: tuple[CohortConsortium, dict[str, Watched]],
) -> None:
    """The Flower process sees this folder and nothing else of the site."""
    consortium, lines = watched
    for site in SITES:
        sent = {s.data for line in lines.values() for s in line.sent[site]}
        room = consortium.homes[site].exchange
        for path in room.rglob("*.sealed"):
            assert path.read_bytes() in sent
        for path in [p for p in room.rglob("*") if p.is_file()]:
            assert b"PATIENT" not in path.read_bytes()
            assert path.suffix in {".sealed", ".json", ""}, path
