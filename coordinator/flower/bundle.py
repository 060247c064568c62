"""The app bundle (FAB) that Flower wants of every run: thin, and the same everywhere.

It holds no code of ours, only an import of the installed ServerApp, so its SHA-256 stays the
same from release to release, and each site lists that one digest as the bundle it answers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from protocol.errors import FederationError
from protocol.files import write_atomic

# The name must not be that of an installed package: a bundle's folder comes first on the path.
_PACKAGE = "smile_round"

_FILES = {
    "pyproject.toml": f'''\
[project]
name = "smile-round"
version = "1.0.0"
description = "One round of a SMILE federation; the code is installed, not shipped."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "smile-federation"
fab-include = ["{_PACKAGE}/*.py"]

[tool.flwr.app.components]
serverapp = "{_PACKAGE}.server:app"
clientapp = "{_PACKAGE}.client:app"

[tool.flwr.app.config]
desk = ""
phase = "collect"
deadline-seconds = 3600.0
poll-seconds = 5.0
block-bytes = 33554432
sites = ""
''',
    f"{_PACKAGE}/__init__.py": '"""One round of a SMILE federation."""\n',
    f"{_PACKAGE}/server.py": '''\
"""The installed ServerApp."""

from coordinator.flower.server_app import app

__all__ = ["app"]
''',
    f"{_PACKAGE}/client.py": '''\
"""A site runs its own installed app; whoever runs this one gets nothing."""

from flwr.clientapp import ClientApp

app = ClientApp()


@app.lifespan()
def refuse(context):
    """Refuse every message."""
    raise RuntimeError("This bundle answers no message: a site runs the app that it installed itself.")
    yield
''',
}


def write_bundle(folder: Path) -> None:
    """Write the thin Flower app into a folder of its own; what differs is replaced."""
    for name, text in _FILES.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomic(path, text)


def build_bundle(folder: Path) -> bytes:
    """The bundle's bytes, as Flower ships them.

    Raises:
        FederationError: the folder holds no Flower app.
    """
    from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415 - Flower takes seconds to import

    try:
        return build_fab_from_disk(folder)
    except (OSError, ValueError) as error:
        raise FederationError(f"No Flower bundle can be built from {folder}", why=str(error)) from None


def bundle_digest(folder: Path) -> str:
    """SHA-256, in hex, of the built bundle: what a site lists to allow it."""
    return hashlib.sha256(build_bundle(folder)).hexdigest()
