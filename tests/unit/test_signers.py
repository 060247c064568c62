"""Who may approve: what counts as an approval, and what ends one."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from protocol.canonical import canonical_json, digest
from protocol.errors import EnvelopeError, FederationError, KeyFileError, UsageError
from protocol.keyfile import KeyCost
from protocol.keys import PrivateKeys
from protocol.release import Release
from protocol.signed import sign_message
from site_agent import released
from site_agent.agent import Agent
from site_agent.config import Home
from site_agent.ledger import Ledger
from site_agent.signers import Approval, Signers, approval_facts, standing
from tests.synthetic import keys
from tests.unit.test_agent import PASSPHRASE, ROUND, Bench

CHEAP = KeyCost(iterations=1, lanes=1, memory_kib=128)
A, B = "a" * 64, "b" * 64


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return Signers(tmp_path / "signers", Ledger(tmp_path / "ledger.jsonl"), CHEAP)


def words() -> str:
    return PASSPHRASE


def approve(signers: Signers, name: str, manifest: str = A, **changes: Any) -> dict[str, Any]:
    """Append what `Agent.approve` appends; returns its facts."""
    own = signers.unlock(name, words)
    values = {"manifest_digest": manifest, "release_sha256": B, "by": name, "at": datetime.now(UTC)}
    approval = Approval(**(values | changes))
    facts = approval_facts(approval, sign_message(approval, own), own.public())
    signers.ledger.append("approved", **facts)
    return facts


def counted(signers: Signers, manifest: str = A, sha256: str = B) -> list[str]:
    return sorted(standing(signers.ledger.verify()).of(manifest, sha256))


def test_a_signer_and_an_approval(signers: Signers) -> None:
    public = signers.add("meier", words)
    assert standing(signers.ledger.verify()).signers == {"meier": public}
    text = signers.key_path("meier").read_text()
    assert "argon2id" in text
    assert signers.key_path("meier").stat().st_mode & 0o777 == 0o600
    approve(signers, "meier")
    assert counted(signers) == ["meier"]
    assert counted(signers, sha256="c" * 64) == counted(signers, manifest="c" * 64) == []


@pytest.mark.parametrize("name", ["", "A. Meier", "../x", "a" * 33, "meier\n"])
def test_names_that_no_signer_has(signers: Signers, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a signer"):
        signers.add(name, words)
    assert signers.ledger.verify() == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "easy to guess"),
        ("aaaaaaaaaaaaaaaa", "easy to guess"),
        ("meiermeiermeier1", "easy to guess"),
        ("a-b-c-d-e-f", "fewer than 12 characters"),
    ],
)
def test_weak_passphrases(signers: Signers, text: str, why: str) -> None:
    with pytest.raises(KeyFileError, match=why):
        signers.add("meier", lambda: text)
    assert signers.ledger.verify() == ()
    assert list(signers.folder.iterdir()) == []


def test_a_name_is_taken_once_and_a_crash_does_not_take_it(signers: Signers) -> None:
    signers.folder.mkdir()
    signers.key_path("meier").write_text("half a key of a process that was killed")
    signers.add("meier", words)
    with pytest.raises(UsageError, match="signer already"):
        signers.add("meier", words)


def test_a_removed_signers_approval_counts_no_more(signers: Signers) -> None:
    for name in ("meier", "roth"):
        signers.add(name, words)
        approve(signers, name)
    assert counted(signers) == ["meier", "roth"]
    signers.remove("meier")
    assert counted(signers) == ["roth"]
    assert not signers.key_path("meier").exists()
    signers.add("meier", words)
    assert counted(signers) == ["roth"], "a new key under the old name has approved nothing"


def test_two_names_with_one_key_are_one_signer(signers: Signers) -> None:
    public = signers.add("meier", words)
    signers.ledger.append("signer-added", name="again", key=public.digest, public=public.model_dump())
    approve(signers, "meier")
    own = signers.unlock("meier", words)
    second = Approval(manifest_digest=A, release_sha256=B, by="again", at=datetime.now(UTC))
    signers.ledger.append("approved", **approval_facts(second, sign_message(second, own), own.public()))
    assert len(counted(signers)) == 1


def test_what_ends_an_approval(signers: Signers) -> None:
    signers.add("meier", words)
    approve(signers, "meier")
    signers.ledger.append("prepared", manifest=A, sequence=1)
    assert counted(signers) == ["meier"], "the same release prepared again"
    signers.ledger.append("prepared", manifest="c" * 64, sequence=1)
    signers.ledger.append("prepared", manifest=A, sequence=1)
    assert counted(signers) == []
    approve(signers, "meier")
    signers.ledger.append("approval-revoked", by="meier")
    assert counted(signers) == []


def test_a_wrong_passphrase_and_a_foreign_key(signers: Signers) -> None:
    signers.add("meier", words)
    with pytest.raises(KeyFileError, match="does not open"):
        signers.unlock("meier", lambda: "not the right words")
    with pytest.raises(UsageError, match="There is no signer 'roth'"):
        signers.unlock("roth", words)
    signers.key_path("meier").unlink()
    PrivateKeys.generate("x25519").save(signers.key_path("meier"), words, cost=CHEAP)
    with pytest.raises(KeyFileError, match="is not the key of signer meier"):
        signers.unlock("meier", words)


def test_an_unprotected_key_in_place_of_the_signers_is_refused(signers: Signers) -> None:
    signers.add("meier", words)
    signers.key_path("meier").unlink()
    PrivateKeys.generate("x25519").save(signers.key_path("meier"))
    with pytest.raises(KeyFileError, match="has no passphrase"):
        signers.unlock("meier", words)


def forged(signers: Signers, **facts: Any) -> None:
    """Append an approval that was altered; the chain holds."""
    signers.add("meier", words)
    good = approve(signers, "meier")
    signers.ledger.append("approval-revoked", by="meier")
    signers.ledger.append("approved", **(good | facts))


def test_an_approval_is_used_once(signers: Signers) -> None:
    forged(signers)
    with pytest.raises(FederationError, match=r"Entry 4 .* approved, does not hold.* used before"):
        standing(signers.ledger.verify())


def other_key() -> str:
    approval = Approval(manifest_digest=A, release_sha256=B, by="meier", at=datetime.now(UTC))
    return sign_message(approval, keys("stranger")).decode()


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"by": "roth"}, "nobody of this name"),
        ({"by": 7}, "nobody of this name"),
        ({"approval": '{"protocol": 1}'}, "no signed Approval"),
        ({"approval": other_key()}, "signature does not hold"),
    ],
)
def test_a_forged_approval_stops_everything(signers: Signers, facts: dict[str, Any], why: str) -> None:
    forged(signers, **facts)
    with pytest.raises(FederationError, match=why):
        standing(signers.ledger.verify())


def test_a_signer_without_a_key_does_not_hold(signers: Signers) -> None:
    public = keys("x").public()
    for facts in ({}, {"public": public.model_dump(), "key": A}, {"public": "x", "key": A}):
        path = signers.ledger.path.with_name("one.jsonl")
        path.unlink(missing_ok=True)
        Ledger(path).append("signer-added", name="meier", **facts)
        with pytest.raises(FederationError, match="does not hold"):
            standing(Ledger(path).verify())


# --- With the agent ------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sealed(bench: Bench) -> list[Path]:
    return list((bench.agent.home.exchange / "sealed").iterdir())


def test_two_signers(bench: Bench) -> None:
    path = bench.agent.home.folder / "site.toml"
    path.write_text(path.read_text().replace("signers = 1 ", "signers = 2 "))
    bench.agent = Agent(Home(bench.agent.home.folder))
    manifest = bench.approve("meier")
    bench.agent.approve("meier", manifest, words)
    bench.call()
    bench.agent.step()
    assert bench.status().state == "awaiting-approval"
    assert "1 of 2" in bench.status().detail
    bench.sign(manifest, "roth")
    bench.agent.step()
    assert bench.status().state == "sealed"
    (entry,) = (e for e in bench.agent.ledger.verify() if e.event == "sealed")
    assert entry.facts["approved_by"] == "meier, roth"


def test_the_sites_own_key_approves_nothing(bench: Bench) -> None:
    manifest = bench.agent.preview().release.manifest.digest
    own = bench.agent.home.keys
    sha256 = bench.agent.outbox.prepared().sha256
    approval = Approval(manifest_digest=manifest, release_sha256=sha256, by="meier", at=datetime.now(UTC))
    bench.agent.ledger.append(
        "approved", **approval_facts(approval, sign_message(approval, own), own.public())
    )
    bench.call()
    bench.agent.step()
    assert bench.status().state == "refused"
    assert "nobody of this name is a signer" in bench.status().detail
    assert sealed(bench) == []


@pytest.mark.parametrize("how", ["revoke", "remove"])
def test_what_was_sealed_is_withdrawn_with_its_approval(bench: Bench, how: str) -> None:
    manifest = bench.approve()
    bench.call()
    bench.agent.step()
    assert len(sealed(bench)) == 1
    if how == "revoke":
        assert bench.agent.revoke("tester") == ["r1"]
        with pytest.raises(UsageError, match="There is no approval by tester"):
            bench.agent.revoke("tester")
    else:
        bench.agent.remove_signer("tester")
    assert sealed(bench) == []
    assert bench.status().state == "awaiting-approval"
    bench.agent.step()
    assert sealed(bench) == []
    bench.sign(manifest)
    bench.agent.step()
    assert len(sealed(bench)) == 1, "the same bytes may be approved again"


def test_a_round_gets_one_content(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.approve()
    bench.call()
    bench.agent.step()
    bench.agent.revoke("tester")
    first = bench.agent.outbox.prepared().release
    second = Release(first.manifest.model_copy(update={"agent_version": "another"}), first.arrays)
    bench.agent.ledger.append("prepared", manifest=second.manifest.digest, sequence=1)
    bench.agent.outbox.prepare(second)
    bench.sign(second.manifest.digest)
    bench.agent.step()
    assert bench.status().state == "refused"
    assert "Round r1 was answered with release" in bench.status().detail
    bench.call(name="r2", recipient=keys("round2").public())
    monkeypatch.setattr(released, "promote", lambda *_: None)
    bench.agent.step()
    assert bench.status("r2").state == "sealed"


def test_bytes_that_differ_under_one_manifest_are_not_sealed(bench: Bench) -> None:
    """Padding of the file's header is no part of the manifest; an approval binds it too."""
    bench.approve()
    path = bench.agent.home.folder / "outbox" / "prepared.release"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + size] + b" " * 8
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + data[8 + size :])
    bench.call()
    bench.agent.step()
    assert bench.status().state in {"awaiting-approval", "refused"}
    assert sealed(bench) == []


def test_sealing_checks_the_approval_again(bench: Bench, tmp_path: Path) -> None:
    bench.approve()
    prepared, entries = bench.agent.outbox.prepared(), bench.agent.ledger.verify()
    own = bench.agent.home.keys
    from tests.synthetic import header

    good = header(own, ROUND, content=prepared.release.manifest.digest)
    target = tmp_path / "x.sealed"
    seal = bench.agent.outbox.seal
    with pytest.raises(FederationError, match="not the approved one"):
        seal(prepared, good, target, to=ROUND.public(), keys=own, ledger=entries[:-1], needed=1)
    with pytest.raises(FederationError, match="not the approved one"):
        seal(prepared, good, target, to=ROUND.public(), keys=own, ledger=entries, needed=2)
    other = header(own, ROUND, content="c" * 64)
    with pytest.raises(FederationError, match="names another release"):
        seal(prepared, other, target, to=ROUND.public(), keys=own, ledger=entries, needed=1)
    assert not target.exists()
    seal(prepared, good, target, to=ROUND.public(), keys=own, ledger=entries, needed=1)


def test_the_sites_own_key_under_a_passphrase(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = bench.init("lake", passphrase=words)
    with pytest.raises(KeyFileError, match="SMILE_PASSPHRASE_FILE"):
        _ = home.keys
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    monkeypatch.setenv("SMILE_PASSPHRASE_FILE", str(file))
    file.chmod(0o644)
    with pytest.raises(KeyFileError, match="read by other users"):
        _ = Home(home.folder).keys
    file.chmod(0o600)
    public = Home(home.folder).keys.public()
    assert public.digest == Agent(home).ledger.verify()[0].facts["key"]
    with pytest.raises(KeyFileError, match="has no passphrase, but is expected"):
        _ = Home(bench.agent.home.folder).keys


def test_the_ledger_names_what_was_signed(bench: Bench) -> None:
    manifest = bench.approve()
    entries = bench.agent.ledger.verify()
    assert [e.event for e in entries] == ["key-made", "prepared", "signer-added", "approved"]
    approval = json.loads(json.loads(entries[-1].facts["approval"])["payload"])
    assert approval["manifest_digest"] == manifest == entries[-1].facts["manifest"]
    assert digest(canonical_json(entries[2].facts["public"])) == entries[-1].facts["key"]
    with pytest.raises(EnvelopeError):
        bench.agent.home.keys.public().verify(b"", b"x")
