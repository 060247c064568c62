"""The tests of association over the real stack: four secure sums by commands, and the graph that follows from them.

Six to ten minutes, so by `SMILE_BATTERY=full` only; tests/unit/test_sum_graph.py has the same sums without Flower, and
test_secure_sum_federation.py sums over Flower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("flwr")

from tests.sum_federation import SITES
from tests.sum_graph import check_integers, check_smoothed, more_events, pooled_in_the_clear
from tests.sum_stack import Stack, command, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.environ.get("SMILE_BATTERY") != "full", reason="long: SMILE_BATTERY=full runs it"),
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.sum_federation.make_events", more_events)
        with running(tmp_path_factory.mktemp("graph") / "all") as stack:
            yield stack


def test_the_pooled_graph_is_that_of_the_sites_gated_inputs(stack: Stack) -> None:
    hub, consortium = stack.hub, stack.consortium
    home = ("--home", hub.folder)

    def summed(name: str, statistic: str, *options: str | object) -> None:
        begin = time.monotonic()
        opened = command("sum", "open", name, "--statistic", statistic, *map(str, options), *home)
        # The proposal goes out, and waits for people; the first one brings the roster.
        assert "0 of 3" in stack.run(name, code=1, wait=20)
        if name == "margins":
            for site in SITES:
                command("roster", "trust", opened["roster"], "--home", consortium.homes[site].folder)
        stack.look_and_approve(name)
        stack.run(name)
        print(f"{statistic}: {time.monotonic() - begin:.0f} s")

    summed("margins", "graph-margins", "--codes", consortium.codes)
    summed("alone", "graph-alone", "--margins", "margins")
    summed("halves", "graph-halves", "--margins", "margins")
    summed("blocks", "graph-blocks", "--halves", "halves")
    clear = pooled_in_the_clear(consortium)
    check_integers(consortium, clear)
    check_smoothed(consortium, clear)

    said = command("coordinator", "graph", "build", "alone", "blocks", *home)
    table = pq.read_table(hub.folder / "graph" / "related.parquet")
    assert (said["test"], said["tested"], table.num_rows) == ("smoothed", clear.pairs.size, clear.pairs.size)
    assert said["found"] == int((np.asarray(table["q"]) <= said["fdr"]).sum()) > 50
    assert (hub.folder / "graph" / "structure.parquet").exists()
