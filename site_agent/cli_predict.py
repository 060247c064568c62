"""`site-agent cohort predict`: do the release's vectors help to foresee an outcome?"""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Annotated

import typer

from protocol.console import out, print_json, progress, table
from protocol.errors import UsageError
from site_agent.cli_options import HERE, HomeOption, JsonOption, MemoryOption, ThreadsOption
from site_agent.config import Home


def predict(
    outcome: Annotated[
        list[str], typer.Option("--outcome", help="Code, or its beginning and *; may be repeated.")
    ],
    at: Annotated[str, typer.Option("--at", help="YYYY-MM-DD: what came before foretells what comes after.")],
    seed: Annotated[int, typer.Option(help="Of the split of patients and the weights.")] = 0,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Compare the release's vectors with random ones and with TF-IDF in foreseeing an outcome. Needs torch."""
    from site_agent.cohort.prediction import HARMONISED, predict_outcome  # noqa: PLC0415
    from site_agent.resources import resources  # noqa: PLC0415

    try:
        day = date.fromisoformat(at)
    except ValueError:
        raise UsageError(f"{at!r} is no date", do="Write YYYY-MM-DD") from None
    site = Home(home)
    machine = resources(site.config.machine, memory=memory, threads=threads)
    with progress("cohort predict", quiet=json) as step:
        found = predict_outcome(site, tuple(outcome), day, machine=machine, seed=seed, progress=step)
    if json:
        print_json(asdict(found))
        return
    rows = [
        [
            name,
            f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})",
            ""
            if name == HARMONISED
            else "{0.value:+.3f} ({0.low:+.3f} to {0.high:+.3f})".format(found.gains[name]),
        ]
        for name, area in found.areas.items()
    ]
    table("Area under the precision-recall curve", ["", "area (95 %)", "harmonised less this"], rows)
    asked = found.patients[2]
    out.print(
        f"Learnt from {found.patients[0] + found.patients[1]:,} patients, asked about {asked:,}, of whom "
        f"{found.with_outcome:,} have the outcome: {found.with_outcome / asked:.3f} is chance."
    )
    out.print(f"{found.had:,} patients are left out, who had it before.")
