"""What the site's wheel is called and needs, from the project's own pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

SITE = ("site", "sql", "spark", "privacy", "text", "search")
"""Extras that a site may want."""
COUNTS = ("numba", "pyarrow")
"""What reads and counts data; a connection under an account of its own does neither."""


class SiteMetadata(MetadataHookInterface):
    """Fills the fields that deploy/site/pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        project = tomllib.loads(Path(self.root, "../../pyproject.toml").read_text())["project"]
        for name in ("version", "description", "license", "requires-python", "dependencies"):
            metadata[name] = project[name]
        extras = {name: project["optional-dependencies"][name] for name in SITE}
        # The two halves of `site`: Flower, and all that it brings, is needed by the half that talks to the network alone.
        extras["agent"] = [need for need in extras["site"] if not need.startswith("flwr")]
        extras["connection"] = [need for need in extras["site"] if not need.startswith(COUNTS)]
        metadata["optional-dependencies"] = extras
        metadata["scripts"] = {"site-agent": project["scripts"]["site-agent"]}
