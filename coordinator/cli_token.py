"""`coordinator token`: who may use the web service."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.store import Store
from coordinator.tables import utc_now
from coordinator.web.settings import ROLES
from coordinator.web.tokens import Token, Tokens
from protocol.console import err, out, print_json, table

app = typer.Typer(no_args_is_help=True, help="Give and take the tokens that let people into the web service.")
NameArgument = Annotated[
    str, typer.Argument(help="The person: letters, digits and ._@+-; reviewers' records carry it.")
]


@app.command(epilog="Example: coordinator token add ada --role reviewer --days 180 --home hub")
def add(
    name: NameArgument,
    role: Annotated[str, typer.Option(help=f"One of: {', '.join(ROLES)}.")] = "analyst",
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it ends; it never does without it.")
    ] = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Make a token and print it, this once: the database keeps its SHA-256 only."""
    token = _tokens(home).add(name, role, days=days)
    if json:
        print_json({"name": name, "role": role, "days": days, "token": token})
        return
    # Alone on standard output, so that it can be piped to where it is kept.
    out.print(token, markup=False)
    err.print(f"Give it to {name} by a safe way; it is shown this once.", markup=False)


@app.command("list", epilog="Example: coordinator token list --home hub")
def list_tokens(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show who has tokens, with which role and until when; never the tokens."""
    found = [_facts(t) for t in _tokens(home).all()]
    if json:
        print_json(found)
        return
    rows = [[f["number"], f["name"], f["role"], f["state"], f["created"], f["expires"]] for f in found]
    table("Tokens (UTC)", ["number", "name", "role", "state", "created", "expires"], rows)


@app.command(epilog="Example: coordinator token revoke ada --home hub")
def revoke(
    name: NameArgument,
    number: Annotated[
        int | None, typer.Option(min=1, help="One token; all of the person's without it.")
    ] = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """End a person's tokens, and the browser sessions that began with them; running services follow in two seconds."""
    ended = _tokens(home).revoke(name, number=number)
    if json:
        print_json([_facts(t) for t in ended])
        return
    out.print(f"Revoked {len(ended)} of {name}'s tokens.", markup=False)


def _tokens(home: Any) -> Tokens:
    return Tokens(Store(Home(home).database_url))


def _facts(token: Token) -> dict[str, Any]:
    state = "holds" if token.stands(utc_now()) else "revoked" if token.revoked else "expired"
    return {
        "number": token.number,
        "name": token.name,
        "role": token.role,
        "state": state,
        "created": _minute(token.created),
        "expires": _minute(token.expires) if token.expires else "never",
    }


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"
