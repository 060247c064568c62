"""Patient vectors and cohort search: what a site gains for itself from harmonised codes. Nothing of it leaves the site."""

from protocol.cohort import Profile
from site_agent.cohort.building import build_cohort
from site_agent.cohort.describing import Description, describe, find_subgroups
from site_agent.cohort.files import NOTICE, CohortManifest, CohortStore, Space
from site_agent.cohort.gathering import Window
from site_agent.cohort.queries import Asking, Filters, Query
from site_agent.cohort.searching import Cohort, find_cohort, patient_index

__all__ = [
    "NOTICE",
    "Asking",
    "Cohort",
    "CohortManifest",
    "CohortStore",
    "Description",
    "Filters",
    "Profile",
    "Query",
    "Space",
    "Window",
    "build_cohort",
    "describe",
    "find_cohort",
    "find_subgroups",
    "patient_index",
]
