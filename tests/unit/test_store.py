"""The store: what is recorded together, and what cannot be recorded twice."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from coordinator.store import Round, Site, Store, Submission
from protocol.errors import FederationError, RoundError, UsageError
from tests.synthetic import keys


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path / 'x.db'}")
    store.add_site(Site(name="north", keys=keys("a").public().model_dump_json(), node_key="k"))
    with store.begin() as session:
        session.add(Round(name="r1", call=b"x", expires=datetime(2030, 1, 1)))
    return store


@pytest.mark.filterwarnings("error")
def test_sites(store: Store) -> None:
    assert store.sites()[0].public_keys == keys("a").public()
    with pytest.raises(UsageError, match="already enrolled"):
        store.add_site(Site(name="north", keys="", node_key=""))


def test_an_accepted_release_moves_the_sequence_on(store: Store) -> None:
    accepted = Submission(round="r1", site="north", state="accepted", sequence=1, manifest_digest="d" * 64)
    store.record_submission(accepted)
    assert (store.sites()[0].accepted_sequence, store.sites()[0].accepted_digest) == (1, "d" * 64)
    refused = Submission(round="r1", site="north", state="refused", sequence=2, manifest_digest="e" * 64)
    store.record_submission(refused)
    assert store.sites()[0].accepted_sequence == 1
    assert [s.state for s in store.submissions("r1")] == ["refused"]


def test_nothing_of_a_failed_transaction_stays(store: Store) -> None:
    broken = Submission(round="r1", site="stranger", state="accepted", sequence=1, manifest_digest="d" * 64)
    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        store.record_submission(broken)
    assert store.submissions("r1") == []
    assert store.sites()[0].accepted_sequence == 0


def test_unknown_round(store: Store) -> None:
    with pytest.raises(RoundError, match="no round 'r2'"):
        store.round("r2")


def test_published_versions(store: Store) -> None:
    for state in ("closed", "fitting", "fitted", "publishing"):
        store.move_round("r1", state)
    store.record_published(1, "r1", "d" * 64, ["north"])
    assert [p.version for p in store.versions()] == [1]
    assert store.round("r1").state == "published"


def test_unusable_database(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'x.db'}")
