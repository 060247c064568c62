"""What the checks said of each site's release, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST_CODES: Final = 10
"""Codes that are listed for a site, and held changes that are listed at all; more are counted."""


@dataclass(frozen=True)
class CheckedCode:
    """A doubtful code or a held change.

    Args:
        curie: the code.
        anchor: the standard code that the site names for it; "" for none.
        agreement: correlation of its cosines with the other sites', or with the site's last release.
        done: what became of it, in words.
        site: whose it is.
    """

    curie: str
    anchor: str
    agreement: float
    done: str
    site: str


@dataclass(frozen=True)
class SiteCheck:
    """The verdict on one site's release.

    Args:
        name: the site.
        state: "ok", "doubtful" or "rejected".
        reasons: why, a sentence each.
        do: what to do next; "" for nothing.
        agreement: highest correlation of its cosines with another site's; `None` where none can be computed.
        worth: share of its patients that the release is worth, beside the others; `None` as above.
        judged: codes that were judged one by one.
        n_doubtful: how many of these are doubtful.
        doubtful: the worst of these that the reader may see.
        alone: standard codes that this site alone holds.
        accepted: a reviewer's reason to use the release as it is; "" for none.
    """

    name: str
    state: str
    reasons: tuple[str, ...]
    do: str
    agreement: float | None
    worth: float | None
    judged: int
    n_doubtful: int
    doubtful: tuple[CheckedCode, ...]
    alone: int
    accepted: str


@dataclass(frozen=True)
class Checks:
    """All verdicts, and the standard codes whose change is held for review (the first of `n_held`)."""

    sites: tuple[SiteCheck, ...]
    held: tuple[CheckedCode, ...]
    n_held: int
