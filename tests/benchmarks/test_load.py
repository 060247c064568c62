"""One round of many sites: memory of each of the coordinator's processes, throughput, and how time grows with sites.

The short form takes a few sites and small releases, and asserts what does not depend on their size. SMILE_BENCH=full takes
20 sites of 40 MB and 3 of 366 MB, each site with a real SuperNode and runner, and prints the figures of
docs/explanation/load.md. Coordinator means: `serve`, SuperLink, SuperExec, ServerApp, proxy and the round's command.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict

from coordinator.flower import post, server_app
from coordinator.flower.desk import RoundDesk
from site_agent.exchange import Exchange, SiteStatus
from site_agent.flower.app import make_app
from tests.load.federation import ROUND, Federation
from tests.load.memory import MB, Use
from tests.load.upload import upload_seconds
from tests.local_grid import LocalGrid

FULL = os.environ.get("SMILE_BENCH") == "full"
BAR = 512 << 20
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(7200),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


def run_round(folder: Path, sites: int, codes: int, dim: int) -> tuple[Use, dict[str, Use], float]:
    """A real round up to acceptance; peak memory at once, of each kind of process, and bytes a second."""
    federation = Federation(folder, sites, codes, dim)
    with federation.serving(), federation.watch() as watch:
        federation.command("round", "open", ROUND, "--json")
        federation.seal()
        federation.connect()
        states, seconds = federation.collect()
        kinds = {name: use for name, use in watch.peak.items() if use.pss}
    assert set(states.values()) == {"accepted"}, states
    total = sum(federation.sizes.values())
    stored = sum(p.stat().st_size for p in federation.home.flower.glob("superlink.db*"))
    upload = upload_seconds(folder, total)
    print(
        f"\n{sites} sites x {total / sites / MB:.1f} MB: accepted after {seconds:.0f} s, {total / seconds / MB:.2f} MB/s"
    )
    print(
        f"the same bytes by one HTTPS upload: {total / upload / MB:.0f} MB/s; ours takes {seconds / upload:.0f} times as long"
    )
    print(f"left in the SuperLink's database: {stored / MB:.0f} MB\n{watch.table()}", flush=True)
    return watch.together, kinds, total / seconds


def test_a_round_needs_no_more_memory_than_its_largest_release_asks_for(tmp_path: Path) -> None:
    small, few, _ = run_round(tmp_path / "few", 2, 1_000, 512)
    many, kinds, _ = run_round(tmp_path / "many", *((20, 20_000, 512) if FULL else (4, 2_500, 512)))
    largest = (20_000 if FULL else 2_500) * 512 * 4
    # Twice the release in the command that opens it; blocks, not files, everywhere else.
    assert many.pss < small.pss + 3 * largest + 100 * MB
    assert many.pss < BAR
    # Every site keeps several connections open; with asyncio's own buffers, twenty sites were 19 MB more than two.
    assert kinds["proxy"].pss < few["proxy"].pss + 12 * MB
    for name in ("SuperLink", "ServerApp", "proxy", "SuperExec", "serve"):
        assert kinds[name].pss < 256 * MB, name


@pytest.mark.skipif(not FULL, reason="SMILE_BENCH=full")
def test_three_large_sites(tmp_path: Path) -> None:
    _, kinds, _ = run_round(tmp_path, 3, 89_400, 1024)
    for name in ("SuperLink", "ServerApp", "proxy", "SuperExec", "serve"):
        assert kinds[name].pss < 256 * MB, name


def test_time_is_linear_in_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated sites: real apps, real serialisation and a real desk in one process; no agent, no wire."""
    monkeypatch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    monkeypatch.setattr(post, "DISK_RESERVE", 0)
    counts = (5, 10, 20, 50, 100) if FULL else (5, 10, 20)
    size = (4 if FULL else 1) << 20
    cpu = []
    for count in counts:
        exchanges = {f"s{i:03d}": Exchange(tmp_path / f"{count}" / f"s{i:03d}") for i in range(count)}
        nodes = {site: 11 + i for i, site in enumerate(exchanges)}
        desk = RoundDesk(tmp_path / f"{count}" / "round")
        desk.open(b"{}", nodes)
        for number, exchange in enumerate(exchanges.values()):
            path = tmp_path / "sealed"
            path.write_bytes(np.random.default_rng(number).bytes(size))
            digest, length = exchange.put_sealed(path)
            exchange.set_status(SiteStatus(round=desk.round_id, state="sealed", sha256=digest, size=length))
        grid = LocalGrid({nodes[site]: make_app(exchange, site) for site, exchange in exchanges.items()})
        config = {"desk": str(desk.folder), "phase": "collect", "sites": "", "block-bytes": 1 << 20}
        config |= {"deadline-seconds": 3600.0, "poll-seconds": 0.0}
        begin = time.process_time()
        server_app.app(grid=grid, context=Context(1, 0, {}, RecordDict(), config))  # type: ignore[arg-type]
        cpu.append(time.process_time() - begin)
        assert {desk.progress(site).state for site in nodes} == {"received"}
    slope, level = np.polyfit(np.log(counts), np.log(cpu), 1)
    for count, seconds in zip(counts, cpu, strict=True):
        print(f"\n{count:>4} sites x {size / MB:.1f} MB: {seconds:6.2f} s of CPU", end="")
    print(f"\nCPU seconds = {np.exp(level):.4f} sites^{slope:.2f}")
    # Not absolute time, and CPU rather than the clock: a busy neighbour changes neither the power nor the bar.
    assert slope < 1.3


def test_what_waits_imports_nothing_that_counts_or_fits() -> None:
    """A command that stays for days must not hold what another command needs for a minute."""
    heavy = ("torch", "sklearn", "scipy", "numba", "pandas", "pyarrow", "matplotlib", "duckdb", "flwr")
    for module in ("site_agent.cli", "coordinator.cli"):
        code = f"import sys, {module}; print(*[n for n in {heavy!r} if n in sys.modules])"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.split() == [], module
