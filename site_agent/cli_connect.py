"""The commands of `site-agent` that give the connection an account of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol.console import out
from site_agent.config import Home
from site_agent.flower import connection
from site_agent.flower.__main__ import connect


def add_to(app: typer.Typer) -> None:
    """Add `separate` and `connect`."""
    app.command(
        epilog="Example: site-agent separate --home /var/lib/smile/site --exchange /var/lib/smile/exchange "
        "--to /var/lib/smile/connection"
    )(separate)
    app.command(epilog="Example: site-agent connect --config /etc/smile-flower/connection.toml")(connect)


def separate(
    exchange: Annotated[
        Path, typer.Option(help="The exchange folder's new place, outside of the home folder.")
    ],
    to: Annotated[Path, typer.Option(help="New folder for connection.toml, ca.crt and node.key.")],
    home: Annotated[
        Path, typer.Option("--home", envvar="SMILE_SITE_HOME", help="The site's home folder.")
    ] = Path(),
) -> None:
    """Take the connection out of the home folder, so that an account of its own can hold it."""
    path = connection.separate(Home(home), exchange, to)
    out.print(f"Wrote {path}, {connection.CA} and {connection.NODE_KEY}.", markup=False)
    out.print(
        f"Give them to the account that will run site-agent connect, and remove {to} then.", markup=False
    )
    out.print(f"Run the agent with: site-agent run --agent-only --home {home}", markup=False)
