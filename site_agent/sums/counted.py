"""What a site has counted for a sum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from protocol.messages import Policy
from protocol.secure_sum.fixed import Int64Vector
from site_agent.changes import UInt64s


@dataclass(frozen=True, eq=False)
class Counted:
    """A site's own part in a sum, before it is masked, and what a person is told of it.

    Attributes:
        values: (cells,) the vector.
        days: (p,) uint64, sorted: salted fingerprints of the days of each patient's events.
        policy: floors below which a count entered as zero; None if there were none.
        withheld_codes: codes of the vocabulary below the floor.
        withheld_pairs: pairs over the vocabulary below a floor, as far as they can be seen.
        other_codes: codes of the site that the vocabulary does not have; they are in no sum.
    """

    values: Int64Vector
    days: UInt64s
    policy: Policy | None
    withheld_codes: int
    withheld_pairs: int
    other_codes: int

    @property
    def data(self) -> str:
        """SHA-256 by which the memory of sums knows these data."""
        return days_digest(self.days)


def days_digest(days: UInt64s) -> str:
    """SHA-256 of the patients' days.

    Coding has no part in it: two sums between which one site alone has changed its anchors would
    show what that site has under them.
    """
    return hashlib.sha256(b"smile/sum/days" + days.astype("<u8").tobytes()).hexdigest()
