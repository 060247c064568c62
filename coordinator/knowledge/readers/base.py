"""What every knowledge source is: a table of the knowledge file that names it, and a way to read its rows."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from coordinator.knowledge.assertions import Assertions, assemble
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import need_files

SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]


class Source(BaseModel):
    """A `[[source]]` of the knowledge file; its kind adds fields and reads the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    licence: ClassVar[str] = ""
    """What a user must have agreed to; empty where nothing is needed."""

    name: SourceName = Field(description="Stands beside every pair that the source gives.")
    path: Path = Field(description="File or folder, taken from the knowledge file's folder.")
    version: str = Field(
        "", description="Of the source, for the report; some files say it themselves.", max_length=100
    )
    weight: float = Field(1.0, gt=0.0, le=1.0, description="How sure its rows are.")
    systems: dict[str, str] = Field(
        default_factory=dict, description="The file's name of a code system -> the study's prefix."
    )
    shared_depth: int = Field(
        0, ge=0, description="Kinship counts through ancestors at least this many steps below a root."
    )
    kin_weight: float = Field(
        0.3, gt=0.0, le=1.0, description="Weight of pairs that come from its hierarchy."
    )
    most_per_family: int = Field(
        1000, ge=1, description="Pairs drawn below one ancestor, of each label, where there are more."
    )

    @field_validator("path")
    @classmethod
    def _from_folder(cls, path: Path, info: ValidationInfo) -> Path:
        folder: Path | None = (info.context or {}).get("folder")
        return folder / path if folder is not None else path

    def files(self) -> tuple[Path, ...]:
        """The files that are read; a build is made again when one of them changes."""
        return (self.path,)

    def read(self, systems: Systems) -> Assertions:
        """All rows of the source.

        Args:
            systems: the study's code systems.

        Raises:
            DataError: a file is missing or not of this kind.
        """
        need_files(*self.files())
        skipped: Counter[str] = Counter()
        here = systems.naming(self.systems)
        raw, version = self.take(here, skipped)
        return assemble(
            raw, here, name=self.name, version=self.version or version, skipped=skipped, weight=self.weight
        )

    @abstractmethod
    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """Rows of schema `RAW` as the file has them, and the version that it states; other rows are counted."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides what is read, for the cache; the file's place does not."""
        return self.model_dump(mode="json", exclude={"path"})
