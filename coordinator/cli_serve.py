"""`coordinator serve`: the services that sites dial, and the one that people use."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from coordinator.cli_options import HERE, HomeOption
from coordinator.config import Home
from coordinator.store import Store
from protocol import logs
from protocol.console import out, stop_event
from protocol.errors import FederationError

_LOOK_SECONDS = 2.0


class Part(StrEnum):
    """What can be served alone."""

    SITES = "sites"
    WEB = "web"


def serve(
    home: HomeOption = HERE,
    only: Annotated[
        Part | None, typer.Option(help="Only what sites dial, or only what people use; both if left out.")
    ] = None,
) -> None:
    """Run what sites dial (Flower, with a proxy in front) and what people use (API, FHIR, pages) until Ctrl-C."""
    hub = Home(home)
    logs.configure("coordinator-serve")
    with ExitStack() as running:
        if only is not Part.WEB:
            _start_sites(hub, running, alone=only is Part.SITES)
        alive = _start_web(hub, running) if only is not Part.SITES else None
        stop = stop_event()
        _say("Press Ctrl-C to stop")
        while not stop.wait(_LOOK_SECONDS):
            if alive is not None and not alive():
                raise FederationError("The web service has ended", do="Read what it printed above")


def _start_sites(hub: Home, running: ExitStack, *, alone: bool) -> None:
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import
    from coordinator.nodes import deny_nodes, settle_nodes  # noqa: PLC0415

    services = Services(hub.flower, hub.config.listen, hub.config.port, [hub.config.host], tell=_say)
    services.start()
    running.callback(services.stop)
    # Alone it is an account's that must not see the database; `coordinator withdraw` shuts nodes out while it runs.
    if not alone:
        deny_nodes(hub, Store(hub.database_url))
        settle_nodes(hub, Store(hub.database_url))
    _say(f"Sites can dial {hub.config.address}")


def _start_web(hub: Home, running: ExitStack) -> Callable[[], bool]:
    from coordinator.web.serving import WebService  # noqa: PLC0415 - FastAPI takes a second to import

    # Asks for the passphrase here, if there is one, rather than in a thread.
    _ = hub.keys
    web = WebService(hub)
    web.start()
    running.callback(web.stop)
    _say(f"People can open {web.url}")
    if not web.settings.anonymous and not web.settings.identity_header:
        _say("They sign in with tokens: coordinator token add NAME --role analyst")
    return lambda: web.alive


def _say(text: str) -> None:
    logs.speaker(lambda line: out.print(line, markup=False))(text)
