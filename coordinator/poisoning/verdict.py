"""What the checks found, as frozen values that a fit keeps: verdicts of sites, doubtful codes, held changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from coordinator.poisoning.influence import hold, less_codes, without
from protocol.messages import SiteSummary
from protocol.release import VerifiedRelease

State = Literal["ok", "doubtful", "rejected"]


@dataclass(frozen=True)
class DoubtfulCode:
    """A code that one site places elsewhere than the others do.

    Attributes:
        code: the site's own code.
        standard: the standard code that it is anchored to; "" for a code that the sites share itself.
        agreement: correlation of its cosines with the other sites' (1: the same place).
        done: what was done about it: "anchor not used", "row not used" or "listed".
    """

    code: str
    standard: str
    agreement: float
    done: Literal["anchor not used", "row not used", "listed"]


@dataclass(frozen=True)
class HeldChange:
    """A standard code that only one site would have moved since its last release.

    Attributes:
        code: the standard code.
        site: who moved it.
        agreement: of its cosines now with those in the site's last release.
        done: "last release's row used" where no other site holds the code, "row not used" where one does, "new code not used"
            where the site has suddenly many that nobody else holds.
    """

    code: str
    site: str
    agreement: float
    done: Literal["last release's row used", "row not used", "new code not used"]


@dataclass(frozen=True)
class SiteVerdict:
    """One site's release beside the others.

    Attributes:
        state: `rejected` releases take no part in the fit, unless a reviewer accepted them.
        reasons: why, a sentence each; empty for `ok`.
        do: what the coordinator should do next; "" for `ok`.
        agreement: the highest correlation of its cosines with another site's; None where none can be computed.
        worth: share of its stated patients that its release is worth, beside the other sites; None as above.
        shared: its codes that could be judged one by one.
        doubtful: of these, the ones that other sites place elsewhere, the worst first.
        alone: standard codes that this site alone holds: nothing in the data bounds what it says of them.
        pillar: these are more than half of the standard codes.
        accepted: a reviewer's reason to use the release, and all of its changes, as they are; "" for none.
    """

    site: str
    state: State
    reasons: tuple[str, ...] = ()
    do: str = ""
    agreement: float | None = None
    worth: float | None = None
    shared: int = 0
    doubtful: tuple[DoubtfulCode, ...] = ()
    alone: int = 0
    pillar: bool = False
    accepted: str = ""

    @property
    def left_out(self) -> bool:
        """Whether nothing of the release takes part in the fit."""
        return self.state == "rejected" and not self.accepted


@dataclass(frozen=True)
class Screening:
    """All verdicts of a round, and the changes that are held for review."""

    sites: tuple[SiteVerdict, ...] = ()
    held: tuple[HeldChange, ...] = field(default=())

    @property
    def reviewed(self) -> frozenset[str]:
        """Sites whose word a reviewer accepted."""
        return frozenset(v.site for v in self.sites if v.accepted)

    def kept(self, releases: Sequence[VerifiedRelease]) -> tuple[VerifiedRelease, ...]:
        """The releases that take part, as the sites sent them."""
        out = {v.site for v in self.sites if v.left_out}
        return tuple(r for r in releases if r.manifest.site not in out)

    def admitted(
        self, releases: Sequence[VerifiedRelease], earlier: Sequence[VerifiedRelease] = ()
    ) -> tuple[VerifiedRelease, ...]:
        """What is fitted: the kept releases less doubtful anchors and rows, held codes as they were.

        Args:
            releases: of the round.
            earlier: of the sites before; without them held codes that no other site has are as the round has them.
        """
        before = {r.manifest.site: r for r in earlier}
        verdicts = {v.site: v for v in self.sites}
        found = []
        for release in self.kept(releases):
            site = release.manifest.site
            doubtful = verdicts[site].doubtful if site in verdicts else ()
            changes = [h for h in self.held if h.site == site]
            anchors = {d.code for d in doubtful if d.done == "anchor not used"}
            rows = {d.code for d in doubtful if d.done == "row not used"}
            rows |= {h.code for h in changes if h.done == "row not used"}
            old = {h.code for h in changes if h.done == "last release's row used"}
            used = without(release, anchors, rows) if anchors or rows else release
            new = {h.code for h in changes if h.done == "new code not used"}
            used = less_codes(used, new) if new else used
            found.append(hold(used, before[site], old) if old and site in before else used)
        return tuple(found)

    def explained(self, summaries: Sequence[SiteSummary]) -> tuple[SiteSummary, ...]:
        """Summaries of a published release in which a site that was left out is refused, with the reasons."""
        reasons = {v.site: " ".join(v.reasons) for v in self.sites if v.left_out}
        return tuple(
            s.model_copy(update={"state": "refused", "detail": reasons[s.site][:2000]})
            if s.site in reasons and s.state != "withdrawn"
            else s
            for s in summaries
        )

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON; `screening_from` reads them."""
        return asdict(self)


def screening_from(facts: Mapping[str, Any]) -> Screening:
    """The screening whose `facts` these are."""
    sites = tuple(
        replace(
            SiteVerdict(**{**v, "doubtful": ()}),
            reasons=tuple(v["reasons"]),
            doubtful=tuple(DoubtfulCode(**d) for d in v["doubtful"]),
        )
        for v in facts["sites"]
    )
    return Screening(sites, tuple(HeldChange(**h) for h in facts["held"]))
