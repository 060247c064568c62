"""`site-agent doctor`: what would go wrong, before it does."""

from site_agent.doctor.examination import Examination, examine
from site_agent.doctor.findings import Check
from site_agent.doctor.profiling import Profile, profile

__all__ = ["Check", "Examination", "Profile", "examine", "profile"]
