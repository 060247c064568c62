"""The knowledge file: which sources a build reads."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from coordinator.knowledge.readers import AnySource
from protocol.errors import UsageError
from protocol.study import validation_reasons


class KnowledgeFile(BaseModel):
    """The content of `knowledge.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    sources: tuple[AnySource, ...] = Field(alias="source", min_length=1, description="One table a source.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of the pairs that are drawn from large families.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        twice = [name for name, n in Counter(s.name for s in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are named {', '.join(twice)}")
        return self


def load_knowledge_file(path: Path) -> KnowledgeFile:
    """Read a knowledge file; the sources' paths are taken from its folder.

    Raises:
        UsageError: missing, no TOML, or a field breaks a rule; every broken rule is named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return KnowledgeFile.model_validate(content, context={"folder": path.parent})
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {path} of knowledge sources",
            do="Write one with a [[source]] table for each source",
        ) from None
    except ValidationError as error:
        raise UsageError(
            f"The knowledge sources in {path} are not valid", why=validation_reasons(error)
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"The file {path} of knowledge sources cannot be read", why=str(error)) from None
