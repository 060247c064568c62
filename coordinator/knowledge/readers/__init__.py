"""A file for each format of knowledge; all give the same rows (`coordinator.knowledge.assertions`).

A new format is a class with a `kind` and a `take`, named in `AnySource`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.readers.gem import Gem
from coordinator.knowledge.readers.groups import Groups
from coordinator.knowledge.readers.hierarchy import Hierarchy, IcdDigits
from coordinator.knowledge.readers.obo import Obo
from coordinator.knowledge.readers.omop import Omop
from coordinator.knowledge.readers.pairs import Pairs
from coordinator.knowledge.readers.sssom import Sssom
from coordinator.knowledge.readers.umls import Umls

AnySource = Annotated[
    Omop | Sssom | Obo | Hierarchy | IcdDigits | Gem | Groups | Umls | Pairs, Field(discriminator="kind")
]

__all__ = [
    "AnySource",
    "Gem",
    "Groups",
    "Hierarchy",
    "IcdDigits",
    "Obo",
    "Omop",
    "Pairs",
    "Source",
    "Sssom",
    "Umls",
]
