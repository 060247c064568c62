"""From the review log to what a fit takes."""

from __future__ import annotations

from coordinator.knowledge.systems import canonical
from coordinator.review.reviews import Reviews
from coordinator.settled import Settled


def settled_of(reviews: Reviews) -> Settled:
    """What is accepted or rejected at present; what is open, unsure or in conflict says nothing to a fit."""
    kept = [s for s in reviews.standings().values() if s.settled]
    return Settled(
        {canonical(s.code): canonical(s.target) if s.target else "" for s in kept if s.state == "accepted"},
        frozenset((canonical(s.code), canonical(t)) for s in kept for t in s.wrong if t),
    )
