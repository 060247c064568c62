"""Faults in a federation of real processes: kills, partitions, full disks, wrong clocks, locks, an expired certificate.

    python -m pytest tests/battery/test_chaos.py -s                             a dozen faults, in three minutes
    SMILE_BATTERY=full python -m pytest tests/battery/test_chaos.py -s --timeout=7200     every named step and 200 kills

Each round must end in the right release: nothing accepted is lost or counted twice, nothing is torn, and the map is
byte for byte that of an undisturbed round with the same releases. CHAOS_SEED and CHAOS_KILLS replay or shorten the
random kills; CHAOS_LOGS names a folder that keeps what the processes said.
"""

from __future__ import annotations

import importlib
import itertools
import operator
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from tests.battery.chaos import faults, net
from tests.battery.chaos.faults import Named
from tests.battery.chaos.inputs import SITES
from tests.battery.chaos.invariants import Watch, leftovers
from tests.battery.chaos.play import Play, table, write
from tests.battery.chaos.stack import Federation
from tests.battery.chaos.steps import Step, all_steps, plan, short_plan

FULL = os.environ.get("SMILE_BATTERY") == "full"
KILLS = int(os.environ.get("CHAOS_KILLS", "200" if FULL else "0"))
SEED = int(os.environ.get("CHAOS_SEED", "0"))
KILLS_A_ROUND = 20
MACHINES = net.available()

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(7200 if KILLS else 900),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
full_only = pytest.mark.skipif(not FULL, reason="the full form only: SMILE_BATTERY=full")
machines_only = pytest.mark.skipif(not MACHINES, reason="namespaces and mounts need root")
compiler = pytest.mark.skipif(not faults.COMPILER, reason="a wrong clock needs a C compiler")

LINES = (
    Named("line of a site cut for 90 s while it collects", faults.partition("north", "collecting", 90)),
    Named("line of a site cut for 90 s while it delivers", faults.partition("north", "published", 90)),
    Named("line of a site of 4 KB/s", faults.slow(4000), fresh="lake"),
)
DISKS = tuple(
    Named(f"disk of {whose} full for 30 s from {state} on", faults.full_disk(role, state, 30), fresh=fresh)
    for role, whose, state, fresh in (
        ("hub", "the coordinator", "open", ""),
        ("hub", "the coordinator", "closed", ""),
        ("hub", "the coordinator", "fitted", ""),
        ("hub", "the coordinator", "published", ""),
        ("south", "a site", "open", "south"),
        ("south", "a site", "published", ""),
    )
)
CLOCKS = tuple(
    Named(f"clock of {whose} {minutes:+d} min", faults.clock(what, minutes, ends=ends))
    for what, whose, ends in (
        ("agent", "a site's agent", True),
        ("supernode", "a site's SuperNode", False),
        ("coordinator", "the coordinator", False),
    )
    for minutes in (10, -10)
)
SERVICES = (
    Named("SuperLink's database locked for 40 s while it collects", faults.locked("collecting", 40)),
    Named("SuperLink's database locked for 40 s while it delivers", faults.locked("published", 40)),
    Named("the coordinator's certificate has expired", faults.expired),
)


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    federation = Federation(tmp_path_factory.mktemp("chaos") / "f", all_steps(), machines=MACHINES)
    play = Play(federation, Watch(federation))
    try:
        federation.make()
        federation.start()
        federation.until("all sites online", lambda: federation.online() == set(SITES), 180)
        play.round("undisturbed", faults.nothing)
        yield play
        assert play.watch.compared(), "a map was compared with none of an undisturbed round"
        print(f"\n{table(play.lines)}")
    finally:
        logs = os.environ.get("CHAOS_LOGS")
        if logs:
            federation.keep_logs(Path(logs))
            write(play.lines, Path(logs) / "lines.txt")
        federation.stop()


@pytest.mark.parametrize("step", {s.at: s for s in all_steps() if s.when != "rename"}.values(), ids=str)
def test_a_named_step_is_there(step: Step) -> None:
    module, _, path = step.at.partition(":")
    operator.attrgetter(path)(importlib.import_module(module))


def test_a_dozen_faults_in_one_round(play: Play) -> None:
    steps = short_plan()
    cut, full = faults.partition("south", "collecting", 10), faults.full_disk("hub", "collecting", 10)
    act = faults.in_turn(cut, full) if MACHINES else faults.nothing
    line = play.round("a dozen faults", act, steps=steps)
    print(f"\n{line.recovery:.0f} s after {', '.join(map(str, steps))}; {'; '.join(line.said)}")


@full_only
def test_killed_at_every_named_step(play: Play) -> None:
    for number, steps in enumerate(plan()):
        line = play.round("SIGKILL at a named step", faults.nothing, steps=steps)
        print(f"\n{number}: {line.recovery:.0f} s after {', '.join(map(str, steps))}")
        if any(s.fresh for s in steps):
            play.round("undisturbed", faults.nothing)


@full_only
@machines_only
@pytest.mark.parametrize("fault", [*LINES, *DISKS], ids=lambda f: f.name)
def test_lines_and_disks(play: Play, fault: Named) -> None:
    said(play, fault)


@full_only
@compiler
@pytest.mark.parametrize("fault", CLOCKS, ids=lambda f: f.name)
def test_wrong_clocks(play: Play, fault: Named) -> None:
    said(play, fault)


@full_only
@pytest.mark.parametrize("fault", SERVICES, ids=lambda f: f.name)
def test_services_that_cannot_be_used(play: Play, fault: Named) -> None:
    said(play, fault)


def said(play: Play, fault: Named) -> None:
    """Play a fault, and print what people were told."""
    line = play.round(fault.name, fault.act, fresh=fault.fresh)
    print(f"\n{line.recovery:.0f} s after {fault.name}: {'; '.join(line.said)}")
    if fault.fresh:
        play.round("undisturbed", faults.nothing)


@pytest.mark.skipif(not KILLS, reason="the full form only: SMILE_BATTERY=full, or CHAOS_KILLS=60")
def test_killed_at_random_times(play: Play) -> None:
    done = 0
    for number in itertools.count():
        if done >= KILLS:
            break
        # Every third round a site has new data.
        fresh = SITES[number // 3 % len(SITES)] if number % 3 == 0 else ""
        count, seed = min(KILLS_A_ROUND, KILLS - done), SEED + number
        # A round in which processes die takes longer.
        act = faults.random_kills(seed, count, 2 * play.length)
        line = play.round("SIGKILL at a random time", act, fresh=fresh)
        print(f"\nseed {seed}: {line.faults} kills, {line.recovery:.0f} s after {'; '.join(line.said)}")
        done += line.faults
        if fresh:
            play.round("undisturbed", faults.nothing)


@full_only
def test_nothing_is_left_behind(play: Play) -> None:
    """After a last start of every process: what a killed one began is gone."""
    fed = play.federation
    for name in ("hub", *SITES):
        fed.services[name].stop()
    fed.start_hub()
    for site in SITES:
        fed.start_site(site)
    fed.until("all sites online", lambda: fed.online() == set(SITES), 180)
    play.round("undisturbed", faults.nothing)
    assert leftovers(fed) == []
