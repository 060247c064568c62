"""An agent that waits for people does not read the release again at every look."""

from __future__ import annotations

from pathlib import Path

import pytest

from site_agent.outbox import Outbox, PreparedRelease
from tests.unit.test_agent import Bench


def test_a_release_that_waits_is_read_when_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, read = Bench(tmp_path), []
    prepared = Outbox.prepared

    def counted(outbox: Outbox) -> PreparedRelease:
        read.append(outbox)
        return prepared(outbox)

    digest = bench.agent.preview().release.manifest.digest
    bench.call()
    monkeypatch.setattr(Outbox, "prepared", counted)
    for _ in range(
        3
    ):  # answered, looked at once more since the ledger now holds the answer, and then left alone
        bench.agent.step()
    assert bench.status().state == "awaiting-approval"
    before = len(read)
    for _ in range(5):
        assert bench.agent.step() == []
    assert len(read) == before
    bench.sign(digest)
    assert bench.agent.step()
    assert bench.status().state == "sealed"
