"""Taking the connection out of a home folder, and reading it under another account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import UsageError
from protocol.keys import PrivateKeys
from site_agent.config import Home
from site_agent.enrolment import init_home
from site_agent.exchange import Exchange, SiteStatus
from site_agent.flower.connection import Connection, read_connection, separate
from tests.two_accounts import STUDY, invite, write_events


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home folder of one account."""
    study, invitation, events = (
        tmp_path / "study.toml",
        tmp_path / "invitation.json",
        tmp_path / "events.parquet",
    )
    study.write_text(STUDY)
    write_events(events)
    invite(invitation, study, PrivateKeys.generate(), "localhost:9", "CERTIFICATE", "b" * 64)
    return init_home(
        tmp_path / "site", site="north", invitation=invitation, study=study, events=events, system="ICD10CM"
    )


def test_separate_takes_the_connection_out(home: Home, tmp_path: Path) -> None:
    exchange = Exchange(home.exchange)
    exchange.put_call(b"call")
    exchange.set_status(SiteStatus(round="r-1", state="preparing"))
    key = home.node_key.read_bytes()
    path = separate(home, tmp_path / "exchange", tmp_path / "connection")
    assert Exchange(home.exchange).calls() == Exchange(tmp_path / "exchange").calls() == [b"call"]
    assert Exchange(tmp_path / "exchange").status("r-1") == SiteStatus(round="r-1", state="preparing")
    assert not home.node_key.exists()
    assert path.with_name("node.key").read_bytes() == key
    assert path.with_name("node.key").stat().st_mode & 0o077 == 0
    assert path.with_name("ca.crt").read_text() == "CERTIFICATE"
    names = {p.name for p in path.parent.iterdir()}
    assert names == {"connection.toml", "node.key", "ca.crt"}
    # Its owner is the agent, whose account must not hold the connection.
    with pytest.raises(UsageError, match="agent's account or root"):
        read_connection(path)
    with pytest.raises(UsageError, match="separated already"):
        separate(home, tmp_path / "other", tmp_path / "more")


def test_separate_refuses_folders_that_are_in_use(home: Home, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    for exchange, target in ((used, tmp_path / "new"), (tmp_path / "new", used)):
        with pytest.raises(UsageError, match="is in use"):
            separate(home, exchange, target)
    with pytest.raises(UsageError, match="lies in the home folder"):
        separate(home, tmp_path / "new", home.folder / "connection")
    assert home.node_key.exists()
    assert not home.exchange.is_symlink()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"allow_bundles": '["xyz"]'}, "allow_bundles"),
        ({"site": '"No Site"'}, "site"),
        ({"exchange": None}, "exchange"),
        ({"passphrase": '"x"'}, "passphrase"),
        ({"exchange": '"nowhere"'}, "cannot use the exchange folder"),
    ],
)
def test_a_wrong_connection_file_is_named(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    fields = {"site": '"north"', "address": '"localhost:9"', "exchange": '"exchange"'} | change
    path = tmp_path / "connection.toml"
    path.write_text("".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None))
    with pytest.raises(UsageError, match=error):
        read_connection(path)
    with pytest.raises(UsageError, match="There is no connection file"):
        read_connection(tmp_path / "other.toml")


def test_the_connection_names_no_secret() -> None:
    assert set(Connection.model_fields) == {
        "site", "address", "ca", "key", "exchange", "work", "allow_bundles"
    }  # fmt: skip
