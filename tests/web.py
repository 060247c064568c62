"""A service for tests: a small synthetic map, people with tokens, and a client that reaches it as a browser would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from coordinator.config import Home
from coordinator.web.app import create_app
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens
from tests.big_release import big_home
from tests.copying import copy_folder

PEOPLE = {"ann": "analyst", "ada": "reviewer", "ben": "reviewer", "cyd": "coordinator"}
CODE, HOSTILE = "NORTH:000012", "NORTH:000000"


@dataclass
class Web:
    """A running application."""

    home: Home
    client: TestClient
    token: dict[str, str]
    records: list[dict[str, Any]]

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token[name]}"}

    def get(self, path: str, by: str = "ann", **more: Any) -> Any:
        headers = self.headers(by) | more.pop("headers", {})
        return self.client.get(_below(path), headers=headers, **more)

    def post(self, path: str, body: Any, by: str = "ada", **more: Any) -> Any:
        headers = self.headers(by) | more.pop("headers", {})
        return self.client.post(_below(path), json=body, headers=headers, **more)


def _below(path: str) -> str:
    return path if path.startswith(("/api", "/fhir", "/healthz", "/readyz", "/openapi")) else f"/api/v1{path}"


def small_home(folder: Path, *, codes: int = 400, versions: int = 2) -> Home:
    """A home to copy: made once a module, as it takes seconds."""
    return big_home(folder, codes, dim=8, versions=versions)


@contextmanager
def web(
    home: Home, *, base: str = "http://localhost", client: str = "127.0.0.1", **settings: Any
) -> Iterator[Web]:
    """The service of a home."""
    settings = {"requests_per_second": 10_000, "burst": 100_000, "logins_per_minute": 10_000} | settings
    records: list[dict[str, Any]] = []
    app = create_app(Home(home.folder), settings=WebSettings(**settings), log=records.append)
    tokens = Tokens(app.state.library.store)
    given = {name: tokens.add(name, role) for name, role in PEOPLE.items()}
    with TestClient(
        app, base_url=base, follow_redirects=False, raise_server_exceptions=False, client=(client, 50000)
    ) as made:
        yield Web(home, made, given, records)


def copy_home(home: Home, folder: Path) -> Home:
    """A copy that a test may spoil."""
    copy_folder(home.folder, folder / "hub")
    return Home(folder / "hub")
