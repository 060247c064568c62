"""What doctor says of the site's key and of those who may approve."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.errors import FederationError
from site_agent import keys
from site_agent.config import Home
from site_agent.doctor import examine
from site_agent.doctor.trust import YEAR, signers, site_key
from tests.unit.test_agent import PASSPHRASE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def later(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days, minutes=1)


def test_the_age_of_the_site_key_is_that_of_its_last_change(bench: Bench) -> None:
    home = bench.agent.home
    fingerprint = home.keys.public().fingerprint
    assert site_key(home, later(0)) == ("ok", f"fingerprint {fingerprint}, made today")
    assert site_key(home, later(30)) == ("ok", f"fingerprint {fingerprint}, 30 days old")
    result, said = site_key(home, later(YEAR))
    assert result == "look"
    assert said.endswith("365 days old. Change it once a year: site-agent keys rotate")
    keys.rotate(home, now=datetime.now(UTC).replace(microsecond=0))
    changed = Home(home.folder)
    assert changed.keys.public().fingerprint != fingerprint
    assert site_key(changed, later(1)) == (
        "ok",
        f"fingerprint {changed.keys.public().fingerprint}, 1 day old",
    )


def test_a_rotation_stands_in_the_ledger_before_and_after(bench: Bench) -> None:
    keys.rotate(bench.agent.home, now=datetime.now(UTC).replace(microsecond=0))
    assert [e.event for e in bench.agent.ledger.verify()][-2:] == ["keys-changing", "keys-changed"]


def test_too_few_signers_are_told_and_nobody_is_named(bench: Bench) -> None:
    home = bench.agent.home
    assert signers(home, later(0)) == (
        "look",
        "nobody may approve a release, 1 must: site-agent signer add NAME",
    )
    bench.agent.add_signer("a-meier", lambda: PASSPHRASE)
    assert signers(home, later(0)) == ("ok", "1 may approve, 1 must; their keys: made today")
    path = home.folder / "site.toml"
    path.write_text(path.read_text().replace("signers = 1", "signers = 2"))
    two = Home(home.folder)
    assert two.config.approval.signers == 2
    result, said = signers(two, later(0))
    assert result == "look"
    assert "No release can be approved before there are 2" in said
    bench.agent.add_signer("b-kurz", lambda: PASSPHRASE)
    assert signers(two, later(3)) == ("ok", "2 may approve, 2 must; their keys: 3 days old; 3 days old")
    result, said = signers(two, later(YEAR + 1))
    assert result == "look"
    assert "remove, then add" in said
    assert "meier" not in said


def test_doctor_looks_at_both(bench: Bench) -> None:
    found = {c.name: c for c in examine(bench.agent.home).checks()}
    assert found["keys"].result == "ok"
    assert found["signers"].result == "look"


def test_a_ledger_that_does_not_hold_fails_both(bench: Bench) -> None:
    path = bench.agent.home.folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"site":"north"', b'"site":"south"') + b'{"previous":""}\n')
    with pytest.raises(FederationError):
        site_key(bench.agent.home, later(0))
    found = {c.name: c.result for c in examine(bench.agent.home).checks()}
    assert (found["keys"], found["signers"]) == ("failed", "failed")
