"""`python -m site_agent.flower`: what `site-agent connect` does, without loading the code that reads and counts data.

Numba, which counts, makes machine code while it runs; a service that must not do that starts here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol import logs
from protocol.console import out, run_app, stop_event
from site_agent.flower.connection import hold_connection, read_connection

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: site-agent connect --config /etc/smile-flower/connection.toml")
def connect(
    config: Annotated[Path, typer.Option(help="connection.toml, made by site-agent separate.")],
) -> None:
    """Hold the connection to the coordinator, and nothing else; for an account without data and keys."""
    found = read_connection(config)
    logs.configure("site-connection", site=found.site)
    hold_connection(
        found,
        say=logs.speaker(lambda text: out.print(text, markup=False)),
        stop=stop_event(),
    )


if __name__ == "__main__":
    run_app(app)
