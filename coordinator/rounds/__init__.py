"""Rounds: every step is stored before the next begins.

`opening` calls sites, `receiving` takes their releases in, `standing` says how far each site is, `deciding` holds what a
coordinator may decide about a round, and `driving` takes a round from wherever it is to its end.
"""

from coordinator.rounds.deciding import abort, close, exclude, extend, include, rerun
from coordinator.rounds.opening import open_planned, open_round, plan_round
from coordinator.rounds.receiving import accepted_releases, rewrapped_path, signer_of, take_in
from coordinator.rounds.standing import SiteState, called_sites, exclusive, site_states, take_receipts

__all__ = [
    "SiteState",
    "abort",
    "accepted_releases",
    "called_sites",
    "close",
    "exclude",
    "exclusive",
    "extend",
    "include",
    "open_planned",
    "open_round",
    "plan_round",
    "rerun",
    "rewrapped_path",
    "signer_of",
    "site_states",
    "take_in",
    "take_receipts",
]
