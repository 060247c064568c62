"""The ledger: a chain that breaks where it was touched, and whole lines whatever the machine does."""

from __future__ import annotations

import json
import multiprocessing
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.canonical import digest
from protocol.errors import EnvelopeError, FederationError, ProtocolError, UsageError
from protocol.messages import RoundCall
from protocol.signed import sign_message
from site_agent import audit
from site_agent import ledger as module
from site_agent.countersigned import check_and_note, last_number, proved
from site_agent.ledger import Ledger
from tests.synthetic import keys, study

HUB = keys("hub")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def filled(ledger: Ledger, n: int = 5) -> list[bytes]:
    for i in range(n):
        ledger.append("noted", number=i, text="ü\n" * i)
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_each_entry_names_the_one_before(ledger: Ledger) -> None:
    assert (ledger.head(), ledger.verify(), ledger.torn()) == ("", (), 0)
    heads = [ledger.append("noted", number=i) for i in range(3)]
    entries = ledger.verify()
    assert [e.head for e in entries] == heads
    assert [e.previous for e in entries] == ["", *heads[:-1]]
    assert [e.facts["number"] for e in entries] == [0, 1, 2]
    assert ledger.head() == heads[-1]
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_the_head_is_found_behind_a_line_longer_than_a_block(ledger: Ledger) -> None:
    ledger.append("noted", text="x" * 200_000)
    ledger.append("noted", text="y" * 70_000)
    assert ledger.head() == ledger.verify()[-1].head


@pytest.mark.parametrize("line", range(5))
def test_a_line_changed_removed_or_put_in_between(ledger: Ledger, line: int) -> None:
    lines = filled(ledger)
    changed = lines[line].replace(b'"noted"', b'"other"')
    for bad, at in (
        ([*lines[:line], changed, *lines[line + 1 :]], line + 2),
        ([*lines[:line], *lines[line + 1 :]], line + 1),
        ([*lines[:line], lines[line], *lines[line:]], line + 2),
    ):
        ledger.path.write_bytes(b"".join(bad))
        if at > len(bad):  # the last line has no follower: the countersigned head tells
            assert len(ledger.verify()) == len(bad)
        else:
            with pytest.raises(FederationError, match=f"broken at line {at}"):
                ledger.verify()


@pytest.mark.parametrize("line", [b"[]", b"{", b"\xff", b"", b"[" * 100_000, b'{"previous":""}'])
def test_lines_that_are_no_entries(ledger: Ledger, line: bytes) -> None:
    ledger.path.write_bytes(line + b"\n")
    with pytest.raises(FederationError, match="broken at line 1"):
        ledger.verify()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 400), entries=st.integers(1, 4))
def test_a_torn_last_line_is_cut_off_by_the_next_entry(tmp_path: Path, cut: int, entries: int) -> None:
    """Cut anywhere inside the last line: the entries before hold, and the chain goes on."""
    ledger = Ledger(tmp_path / f"{cut}-{entries}.jsonl")
    ledger.path.unlink(missing_ok=True)
    lines = filled(ledger, entries)
    left = lines[-1][: cut % len(lines[-1])]
    ledger.path.write_bytes(b"".join(lines[:-1]) + left)
    before = ledger.verify()
    assert (len(before), ledger.torn()) == (entries - 1, len(left))
    assert ledger.head() == (before[-1].head if before else "")
    ledger.append("after")
    after = ledger.verify()
    assert after[: len(before)] == before
    if left:
        assert [e.event for e in after[len(before) :]] == ["recovered", "after"]
        assert after[-2].facts == {"bytes": len(left), "sha256": digest(left)}
    else:
        assert [e.event for e in after[len(before) :]] == ["after"]
    assert ledger.torn() == 0


def test_a_full_disk_leaves_the_ledger_as_it_was(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(ledger)
    before, write = ledger.path.read_bytes(), os.pwrite

    def full(descriptor: int, data: Any, offset: int) -> int:
        if offset > len(before):
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data)[:7], offset)

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "pwrite", full)
        with pytest.raises(FederationError, match=r"cannot be written.*No space"):
            ledger.append("noted")
    assert ledger.path.read_bytes() == before
    ledger.append("noted")
    assert len(ledger.verify()) == 6


def _append_many(path: Path, name: str, count: int) -> None:
    for i in range(count):
        Ledger(path).append("noted", by=name, number=i)


def test_processes_append_at_once(ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn")
    work = [context.Process(target=_append_many, args=(ledger.path, str(n), 25)) for n in range(4)]
    for process in work:
        process.start()
    for process in work:
        process.join(60)
    entries = ledger.verify()
    assert len(entries) == 100
    for n in range(4):
        assert [e.facts["number"] for e in entries if e.facts["by"] == str(n)] == list(range(25))


# --- Countersigned -------------------------------------------------------------------------------------


def call(heads: dict[str, str], name: str = "r1") -> tuple[RoundCall, bytes]:
    message = RoundCall(
        round=name,
        study_digest=study().digest,
        study={},
        recipient=keys("round").public(),
        expected={},
        ledger_heads=heads,
        expires=datetime(2030, 1, 1, tzinfo=UTC),
    )
    return message, sign_message(message, HUB)


def test_a_head_is_noted_once_and_proved(ledger: Ledger, tmp_path: Path) -> None:
    filled(ledger)
    head = ledger.verify()[2].head
    for _ in range(2):
        check_and_note(tmp_path, ledger, *call({"north": head, "lake": "0" * 64}), "north")
    entries = ledger.verify()
    assert [e.event for e in entries[5:]] == ["countersigned"]
    assert last_number(entries) == 3
    assert proved(tmp_path, entries, coordinator=[HUB.public()], site="north") == 3
    with pytest.raises(FederationError, match="not proved"):
        proved(tmp_path, entries, coordinator=[keys("stranger").public()], site="north")
    with pytest.raises(FederationError, match="not proved"):
        proved(tmp_path, entries, coordinator=[HUB.public()], site="lake")
    check_and_note(tmp_path, ledger, *call({}), "north")
    check_and_note(tmp_path, ledger, *call({"north": entries[0].head}), "north")
    assert len(ledger.verify()) == 6, "an older head says nothing new"
    next((tmp_path / "countersigned").iterdir()).unlink()
    with pytest.raises(FederationError, match="not proved"):
        proved(tmp_path, ledger.verify(), coordinator=[HUB.public()], site="north")


@pytest.mark.parametrize("how", ["cut", "rewritten", "gone"])
def test_a_ledger_without_the_head_is_refused(ledger: Ledger, tmp_path: Path, how: str) -> None:
    lines = filled(ledger)
    signed = call({"north": ledger.head()})
    if how == "cut":
        ledger.path.write_bytes(b"".join(lines[:-1]))
    else:
        ledger.path.unlink()
    if how == "rewritten":
        ledger.append("another story")
        filled(ledger, 9)
    with pytest.raises(FederationError, match="does not hold the entry that the coordinator has seen"):
        check_and_note(tmp_path, ledger, *signed, "north")


# --- Export --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "csv"])
def test_an_export_holds_everything_and_nothing_can_be_changed(
    ledger: Ledger, tmp_path: Path, form: audit.Format
) -> None:
    filled(ledger)
    ledger.append("noted", text='=1+1,"quoted"', nested={"a": [1, 2.5, None]})
    path, own = tmp_path / "out" / f"ledger.{form}", keys("north")
    said = audit.export(ledger.verify(), path, form=form, site="north", keys=own)
    found = audit.read_export(path)
    assert found.statement == said
    assert found.entries == ledger.verify()
    assert found.statement.keys == own.public()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"noted", b"other", 1))
    with pytest.raises(ProtocolError, match="altered after it was signed"):
        audit.read_export(path)
    path.write_bytes(data)
    signature = audit.signature_path(path)
    statement = json.loads(signature.read_bytes())
    statement["payload"] = statement["payload"].replace('"north"', '"south"')
    signature.write_text(json.dumps(statement))
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        audit.read_export(path)
    signature.unlink()
    with pytest.raises(UsageError, match="side by side"):
        audit.read_export(path)


def test_a_signed_export_whose_chain_is_broken(ledger: Ledger, tmp_path: Path) -> None:
    """The site's signature alone does not make a history."""
    filled(ledger)
    entries = ledger.verify()
    path = tmp_path / "ledger.json"
    audit.export((entries[0], *entries[2:]), path, form="json", site="north", keys=keys("north"))
    with pytest.raises(FederationError, match="broken at line 2"):
        audit.read_export(path)


@pytest.mark.parametrize("text", ["[1]", "[{}]", "[", "", "a,b\n1,2\n", '[{"facts": 1, "previous": 2}]'])
def test_files_that_are_no_export(tmp_path: Path, text: str) -> None:
    path, own = tmp_path / "x.json", keys("north")
    audit.export((), path, form="json", site="north", keys=own)
    path.write_text(text)
    statement = audit.LedgerStatement(
        site="north",
        keys=own.public(),
        entries=1,
        head="0" * 64,
        sha256=digest(text.encode()),
        exported=datetime.now(UTC),
    )
    audit.signature_path(path).write_bytes(sign_message(statement, own))
    with pytest.raises(FederationError):
        audit.read_export(path)
