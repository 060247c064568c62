"""What the four secure sums of a graph take with many codes: three sites with real agents, the wire in memory.

    python -m pytest tests/benchmarks/test_graph_sums.py -s                      short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_graph_sums.py -s     up to 20,000 codes

Events as in test_graph_growth, two patients a code, a third of them at each site. Masks, seals, signatures, staging, counting,
previews and approvals are those of the program; Flower alone is left out. All parties work in one process, one after the other,
so that its seconds and its peak memory are those of four.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("flwr")

from tests.benchmarks.test_graph_growth import make_events
from tests.benchmarks.test_site_scale import peak_memory

FULL = os.environ.get("SMILE_BENCH") == "full"
SIZES = [1_000, 5_000, 20_000] if FULL else [600]
ORDER = ("graph-margins", "graph-alone", "graph-halves", "graph-blocks")

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL else 600)]


def measure(codes: int) -> dict[str, float]:
    """Seconds of each sum by the clock, tested pairs, found pairs, MiB that a site sends, and peak memory in GiB."""
    from coordinator.flower import post
    from coordinator.graph.pooled import pooled_graph
    from coordinator.sums.drive import run_sum
    from protocol.errors import RoundError
    from tests import sum_federation
    from tests.unit.test_sum_federation import Line
    from tests.unit.test_sum_graph import ask

    found: dict[str, float] = {}
    study = sum_federation.STUDY.replace("[sharing]", "[counting]\nwindow_days = 540\n[sharing]")
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(post, "DISK_RESERVE", 0):
        consortium = sum_federation.Consortium(Path(folder) / "all", study=study)
        names = np.array([f"C{c:05d}" for c in range(codes)])
        consortium.codes.write_text("code\n" + "".join(f"ICD10CM:{name}\n" for name in names))
        patient, day, code = make_events(codes, 2 * codes)
        for number, site in enumerate(sum_federation.SITES):
            own = patient % 3 == number
            table = {
                "patient": patient[own],
                "date": (np.datetime64("2020-01-01") + day[own]).astype("datetime64[D]"),
                "code": names[code[own]],
                "system": np.full(int(own.sum()), "ICD10CM"),
            }
            pq.write_table(pa.table(table), consortium.folder / f"{site}.parquet")
        line = Line(consortium)
        options = ({"codes": str(consortium.codes)}, *({"margins": ORDER[0]},) * 2, {"halves": ORDER[2]})
        for statistic, given in zip(ORDER, options, strict=True):
            begin = time.monotonic()
            ask(consortium, statistic, statistic, **given)  # type: ignore[arg-type]
            with pytest.raises(RoundError, match="0 of 3"):
                run_sum(consortium.hub, statistic, line)
            for site in sum_federation.SITES:
                if statistic == ORDER[0]:
                    consortium.trust(site)
                consortium.approve(site, statistic)
            assert run_sum(consortium.hub, statistic, line).sites == sum_federation.SITES
            found[statistic] = time.monotonic() - begin
            sealed = (consortium.hub.folder / "sums" / statistic).rglob("*.sealed")
            found[f"{statistic}: MiB a site"] = sum(p.stat().st_size for p in sealed) / 3 / 2**20
            print(
                f"  {statistic}: {found[statistic]:.0f} s, peak so far {peak_memory() / 2**30:.2f} GiB",
                flush=True,
            )
        begin = time.monotonic()
        graph = pooled_graph(consortium.hub, ORDER[1], ORDER[3])
        found["graph build"] = time.monotonic() - begin
        found["tested pairs"] = float(len(graph.q))
        found["found"] = float((graph.q <= graph.rules.fdr).sum())
    return found | {"peak": peak_memory() / 2**30}


def test_sums_of_a_graph_with_many_codes() -> None:
    rows = []
    for codes in SIZES:
        print(f"\n{codes:,} codes, {2 * codes:,} patients", flush=True)
        code = "import json, sys; from tests.benchmarks.test_graph_sums import measure; "
        code += "print(json.dumps(measure(int(sys.argv[1]))))"
        done = subprocess.Popen(
            [sys.executable, "-c", code, str(codes)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert done.stdout is not None
        said = ""
        for said in done.stdout:
            if not said.startswith("{"):
                print(said, end="", flush=True)
        assert done.wait() == 0
        rows.append(json.loads(said))
        print("  " + "; ".join(f"{name} {value:,.1f}" for name, value in rows[-1].items()), flush=True)
        assert rows[-1]["found"] > 0
        assert rows[-1]["peak"] < 12.0
    if len(SIZES) > 1:
        slopes = {n: np.polyfit(np.log(SIZES), np.log([r[n] for r in rows]), 1)[0] for n in rows[0]}
        print("  grow as codes to the power of: " + ", ".join(f"{n} {s:.2f}" for n, s in slopes.items()))
        # A pair of codes is the most there is.
        assert slopes["graph-halves: MiB a site"] < 2.0
