"""The event source that a site's configuration names."""

from __future__ import annotations

from site_agent.config import Home
from site_agent.sources import EventSource
from site_agent.sources.fhir import FhirFolder
from site_agent.sources.i2b2 import I2b2Source
from site_agent.sources.meds import MedsFolder
from site_agent.sources.omop import OmopSource
from site_agent.sources.pcornet import PcornetSource
from site_agent.sources.triplets import TripletFile


def open_source(home: Home) -> EventSource:
    """The source of `data.kind`; nothing is read yet.

    Raises:
        UsageError: what reads this kind of data is not installed, or the address of the database is wrong.
    """
    data = home.config.data
    match data.kind:
        case "triplets":
            return TripletFile(home.path(data.events), data)
        case "meds":
            return MedsFolder(home.path(data.events), data)
        case "fhir":
            return FhirFolder(home.path(data.events), data)
        case "omop":
            return OmopSource(data)
        case "i2b2":
            return I2b2Source(data)
        case "pcornet":
            return PcornetSource(data)
