"""Everything that a published version is written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from coordinator.config import Citation
from coordinator.harmonize import Harmonized
from coordinator.report.data import Quality
from coordinator.reviewed import Reviewed
from protocol.messages import SiteSummary, Tombstone
from protocol.release import VerifiedRelease
from protocol.study import StudySpec


@dataclass(frozen=True)
class Edition:
    """One version before it is written.

    Attributes:
        previous: digest of the consortium's manifest of the version before; empty for the first.
        sites: every site of the study, those without a release too.
        citation: how it is to be cited.
        quality: scores against known truth, or None where none is known.
        reviews: what people say of the mappings.
        withdrawn: every site that has left the study so far.
    """

    study: StudySpec
    round: str
    version: int
    created: datetime
    harmonized: Harmonized
    releases: tuple[VerifiedRelease, ...]
    sites: tuple[SiteSummary, ...]
    previous: str = ""
    citation: Citation = field(default_factory=Citation)
    quality: Quality | None = None
    withdrawn: tuple[Tombstone, ...] = ()
    reviews: tuple[Reviewed, ...] = ()
