"""`coordinator search`: codes of a published version by text, and neighbours of a code."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.library import Library
from protocol.searching import (
    CategoryOption,
    CountOption,
    NearOption,
    SystemOption,
    TextArgument,
)
from protocol.searching import search as search_and_show


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "search",
        epilog='Example: coordinator search "type 2 diab" --category condition --home hub',
    )(search)


def search(
    text: TextArgument,
    release: Annotated[
        int | None, typer.Option(min=1, help="The published version; the newest if left out.")
    ] = None,
    near: NearOption = False,
    system: SystemOption = None,
    category: CategoryOption = None,
    k: CountOption = 20,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Find codes of a published version by code, words of a name, or the name of a synonym; case and typos do not matter."""
    found = Library(Home(home)).open(release)
    systems = found.prefixes(system or (), category or ())
    search_and_show(text, k, found.index if near else None, found.texts, systems, json=json)
