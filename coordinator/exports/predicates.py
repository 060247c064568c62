"""Which SKOS predicate joins a code with its standard code: one rule, for every format.

The first line that holds decides:

| the mapping | predicate |
|---|---|
| has no standard code | none |
| was accepted by reviewers | what they say it is; exact where they say no more |
| was given by a site | exact |
| has a target that is an ancestor of the code's own standard concept | broad |
| has a target that is a descendant of it | narrow |
| is right with probability >= `EXACT` | exact |
| is right with probability >= `CLOSE` | close |
| anything less | related |

`EXACT` is nine in ten: taken as exact, such a mapping is wrong at most once in ten times. `CLOSE` is even odds: below it,
the target is more likely wrong than right, and says no more than where to look. Both are judged at the four decimals that
formats show. The predicate says no more than the probability does: where that is not calibrated, neither is this.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from coordinator.mapping import Kinship

EXACT: Final = 0.9
CLOSE: Final = 0.5
DECIMALS: Final = 4


class Predicate(StrEnum):
    """SKOS mapping relations, the code as subject: `skos:broadMatch` says that the target is the broader one."""

    EXACT = "skos:exactMatch"
    CLOSE = "skos:closeMatch"
    BROAD = "skos:broadMatch"
    NARROW = "skos:narrowMatch"
    RELATED = "skos:relatedMatch"


def predicate(probability: float, *, given: bool, kinship: Kinship | None = None) -> Predicate:
    """The predicate of a mapping that has a standard code.

    Args:
        probability: that this target is right.
        given: a site gave it, or the code is its own standard code.
        kinship: what a hierarchy says the target is to the code; None where it says nothing.

    Law: without a hierarchy, a higher probability never gives a weaker predicate.
    Source: SKOS Reference, section 10.
    """
    if given:
        return Predicate.EXACT
    if kinship is not None:
        return Predicate.BROAD if kinship == "ancestor" else Predicate.NARROW
    shown = round(probability, DECIMALS)
    if shown >= EXACT:
        return Predicate.EXACT
    return Predicate.CLOSE if shown >= CLOSE else Predicate.RELATED
