"""A site's part in secure sums: counts over the standard codes, of which the coordinator learns the total only."""

from site_agent.sums.agent import SumAgent
from site_agent.sums.sharing import check_sealed_sharing

__all__ = ["SumAgent", "check_sealed_sharing"]
