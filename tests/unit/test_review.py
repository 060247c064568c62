"""Reviews on a published version: decisions, two blind reviewers, undo, the queue, and the log that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from coordinator.config import Home
from coordinator.keychange import rotate
from coordinator.library import Library
from coordinator.review import Reviews
from coordinator.store import Store
from protocol.errors import EnvelopeError, KeyFileError, ProtocolError, UsageError
from protocol.published import verify_folder  # noqa: F401
from tests.hub import Hub, releases

ONE, TWO = "WEST:10", "WEST:11"
A, B = "ICD10CM:C10", "ICD10CM:C11"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a coordinator with one version; each test copies it."""
    hub = Hub(tmp_path_factory.mktemp("published"))
    hub.enrol("lake", "north", "south", "west")
    hub.run_round(releases(), "r1")
    return hub.home.folder


@dataclass
class Desk:
    home: Home
    reviews: Reviews

    def again(self) -> Reviews:
        """As another process would open it."""
        return Reviews(Home(self.home.folder), Store(self.home.database_url))

    def sql(self, statement: str) -> None:
        with Store(self.home.database_url).begin() as session:
            session.execute(text(statement))


@pytest.fixture
def desk(published: Path, tmp_path: Path) -> Iterator[Desk]:
    import shutil

    shutil.copytree(published, tmp_path / "hub")
    home = Home(tmp_path / "hub")
    yield Desk(home, Reviews(home, Store(home.database_url)))


def test_decide_quick(desk: Desk) -> None:
    made = desk.reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept")
    print(made)
    assert desk.reviews.standing(ONE).state == "accepted"
    assert desk.again().standing(ONE).target == A
    print(desk.reviews.queue(Library(desk.home).open(), limit=3))
    print(desk.reviews.progress(Library(desk.home).open()), desk.reviews.verify())
