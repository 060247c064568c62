"""The coordinator's home folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from coordinator.web.settings import WebSettings
from protocol.configfile import read_config
from protocol.keyfile import Passphrase
from protocol.keys import PrivateKeys
from protocol.rotation import COORDINATOR, OwnKeys, passphrase_for
from protocol.study import StudySpec, load_study


class Citation(BaseModel):
    """How the published maps are cited, for `datacite.json` and the model card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    creators: tuple[str, ...] = Field(
        (), description="Persons as Family, Given, or organisations; empty: the consortium of the study."
    )
    publisher: str = Field(
        "", max_length=200, description="Who makes the maps available; empty: the consortium of the study."
    )


class CoordinatorConfig(BaseModel):
    """The content of `coordinator.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(description="host:port under which sites reach the fleet proxy.")
    listen: str = Field("0.0.0.0", description="Interface on which the fleet proxy listens.")  # noqa: S104
    database: str = Field(
        "",
        description="SQLAlchemy URL of SQLite or PostgreSQL; empty: coordinator.db in the home folder. It holds no password: "
        "that goes into SMILE_DATABASE_PASSWORD or ~/.pgpass.",
    )
    knowledge: str = Field(
        "",
        description="Folder that coordinator knowledge build wrote, from the home folder; every fit uses its pairs. Empty: none.",
    )
    titles: str = Field(
        "",
        description="CSV (system, code, title), or a folder of such files, from the home folder: names of codes, which releases "
        "show and the study's text encoder reads. Empty: only what sites release is text.",
    )
    text_model: str = Field(
        "",
        description='Folder of the model, from the home folder, where the study says text.encoder = "directory".',
    )
    citation: Citation = Citation()
    reviews: Literal["pairs", "none"] = Field(
        "pairs",
        description="What people settled in review enters every fit as pairs of codes known to be the same or to differ; or no "
        "fit knows of it.",
    )
    reviewer_names: Literal["pseudonyms", "names"] = Field(
        "pseudonyms",
        description="How releases name reviewers: as reviewer-1, reviewer-2, ... in the order in which "
        "they came, or by their names.",
    )
    unattended: Literal["collected", "fitted", "published", "delivered"] = Field(
        "fitted",
        description="How far `coordinator round run` takes rounds by itself where it is given no name. What people publish it "
        "delivers in any case.",
    )
    graph: bool = Field(
        False,
        description="Whether published versions have a graph of related codes, graph/edges.parquet. It takes longer to publish.",
    )
    graph_tests: str = Field(
        "",
        max_length=1000,
        description="Table of `coordinator graph build` whose p- and q-values the graph of published versions has, "
        "graph/related.parquet by default; seen from the home folder. Empty: the graph has none.",
    )
    web: WebSettings = WebSettings()

    @property
    def host(self) -> str:
        """The host part of the address."""
        return self.address.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port of the address."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Home:
    """The folder of one study's coordinator: configuration, keys, rounds and releases."""

    folder: Path

    def __post_init__(self) -> None:
        # Processes with other working folders get paths from here.
        object.__setattr__(self, "folder", self.folder.absolute())

    @cached_property
    def config(self) -> CoordinatorConfig:
        """The parsed `coordinator.toml`.

        Raises:
            UsageError: missing or wrong.
        """
        return read_config(
            self.folder / "coordinator.toml",
            CoordinatorConfig,
            whose="a coordinator's",
            made_by="coordinator init",
        )

    @cached_property
    def study(self) -> StudySpec:
        """The study of this folder."""
        return load_study(self.folder / "study.toml")

    @cached_property
    def keys(self) -> PrivateKeys:
        """The coordinator's identity: signs calls and releases.

        Raises:
            KeyFileError: missing, or open to other users.
        """
        return PrivateKeys.load(self.identity.key, self.passphrase)

    @cached_property
    def identity(self) -> OwnKeys:
        """The files of the coordinator's own keys."""
        return OwnKeys(self.folder / "keys" / "coordinator.key", COORDINATOR)

    @cached_property
    def passphrase(self) -> Passphrase | None:
        """What opens the private keys of this folder; None if they are not protected."""
        return passphrase_for(self.identity.key)

    def round_key_path(self, round_id: str) -> Path:
        """Where a round's own key lies; erasing it erases what was sealed for the round."""
        return self.folder / "keys" / "rounds" / f"{round_id}.key"

    def round_folder(self, round_id: str) -> Path:
        """The desk of a round."""
        return self.folder / "rounds" / round_id

    def fit_path(self, round_id: str) -> Path:
        """The fit of a round: not on its desk, which what talks to the sites can write to."""
        return self.folder / "fits" / f"{round_id}.safetensors"

    def release_folder(self, version: int) -> Path:
        """A published release."""
        return self.folder / "releases" / f"v{version}"

    @property
    def flower(self) -> Path:
        """Home of the Flower services: certificates, bundle, database, logs."""
        return self.folder / "flower"

    @property
    def bundle(self) -> Path:
        """The thin Flower app that the SuperLink is given."""
        return self.flower / "bundle"

    @property
    def tls(self) -> Path:
        """CA and server certificate of the fleet proxy."""
        return self.flower / "tls"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.config.database or f"sqlite:///{(self.folder / 'coordinator.db').resolve()}"
