"""The checks of a round's releases, once all are open, and the verdicts that follow.

How the thresholds were found, and what they miss, is in docs/explanation/poisoning.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coordinator.poisoning.beside import Beside, beside
from coordinator.poisoning.codes import doubtful_codes, held_changes, settled
from coordinator.poisoning.influence import Drift, drift, unit
from coordinator.poisoning.verdict import Screening, SiteVerdict, State
from protocol.release import VerifiedRelease

UNIT = 1e-3
"""A row's length may differ from 1 by so much."""
COLLAPSED = 0.95
"""Length of the mean of all rows, from which a release says nothing: independent directions give nearly 0."""
NOBODY = 0.15
"""Agreement below which a site agrees with nobody."""
FEW_WORTH = 0.5
"""Share of its stated patients below which a release is rejected, if"""
PALE = 0.7
"""its agreement is also below so much of that between the other sites: large hospitals differ by more than chance."""
REFERENCE = 0.33
"""Median agreement that a site needs which alone holds most standard codes: all mappings lean on it."""
BEYOND_CHANCE = 2.0
"""Standard errors by which its agreement must be below that for the site to be rejected; within them it is doubtful."""
MANY_CODES = 8
"""Times the other sites' median number of codes, from which a code list is a flood."""
MANY_ROWS = 0.05
"""Share of doubtful codes from which the site itself is doubtful."""
STEADY_COUNTS = 0.5
"""Correlation of log patient counts with the last release, below which these count something else; honest ones had .91 to .94."""
CHANGED = 0.6
"""Agreement of a release with the site's last one, below which the new one is rejected."""

_AGAIN = "The site must prepare and approve again"
_ASK = "Ask the site what changed; if its release is right, fit with --accept-site and your reason"


def screen(
    releases: Sequence[VerifiedRelease],
    *,
    standard: str,
    earlier: Sequence[VerifiedRelease] = (),
    accepted: Mapping[str, str] | None = None,
) -> Screening:
    """Judge every release of a round beside the others, and beside its site's last one.

    Args:
        releases: verified, all of the round.
        standard: prefix of the standard system.
        earlier: each site's last release that was used as it was; sites without one are left out.
        accepted: site -> a reviewer's reason to use its release and its changes as they are.

    Raises:
        FitError: releases that can be compared are not linked.
    """
    said = accepted or {}
    found = {r.manifest.site: r for r in releases}
    sizes = {site: len(r.manifest.codes) for site, r in found.items()}
    verdicts = {
        site: _structure(
            SiteVerdict(site, "ok", accepted=said.get(site, "")),
            r,
            [n for s, n in sizes.items() if s != site],
        )
        for site, r in found.items()
    }
    usable = {site: r for site, r in found.items() if _measurable(r) and not verdicts[site].left_out}
    alone = _alone(releases, standard)
    n_standard = len({code for r in releases for code in _standard_codes(r, standard)})
    verdicts = {s: replace(v, alone=alone[s], pillar=2 * alone[s] > n_standard) for s, v in verdicts.items()}
    if len(usable) < 2:
        return Screening(tuple(verdicts.values()))
    round_ = beside(tuple(usable.values()), standard)
    before = {r.manifest.site: r for r in earlier}
    drifts = {site: drift(r, before[site]) for site, r in usable.items() if site in before}
    for site in usable:
        verdict = _beside_the_others(verdicts[site], round_)
        verdict = _beside_its_twin(verdict, round_, drifts)
        verdicts[site] = _beside_its_last(verdict, drifts[site]) if site in drifts else verdict
    out = {site for site, v in verdicts.items() if v.left_out}
    for site in usable.keys() - out:
        verdicts[site] = _as_reference(verdicts[site], round_, out)
    out = {site for site, v in verdicts.items() if v.left_out}
    held = held_changes(round_, drifts, out, said)
    judged = {site: doubtful_codes(usable[site], round_, out) for site in usable if site not in out}
    doubtful = settled({s: codes for s, (_, codes) in judged.items() if not said.get(s)}, held, round_, out)
    for site, (number, codes) in judged.items():
        verdict = replace(verdicts[site], shared=number, doubtful=doubtful.get(site, ()))
        own = sum(change.site == site for change in held)
        verdicts[site] = _by_code(verdict, len(codes), own)
    return Screening(tuple(verdicts.values()), held)


def _standard_codes(release: VerifiedRelease, standard: str) -> list[str]:
    return [code for code in release.manifest.codes if code.startswith(f"{standard}:")]


def _alone(releases: Sequence[VerifiedRelease], standard: str) -> dict[str, int]:
    """Site -> standard codes that it alone released."""
    count = Counter(code for r in releases for code in _standard_codes(r, standard))
    return {r.manifest.site: sum(count[code] == 1 for code in _standard_codes(r, standard)) for r in releases}


def _worse(verdict: SiteVerdict, state: State, reason: str, do: str = _ASK) -> SiteVerdict:
    """The verdict with one more reason; it never gets better."""
    order: tuple[State, ...] = ("ok", "doubtful", "rejected")
    return replace(
        verdict,
        state=max(verdict.state, state, key=order.index),
        reasons=(*verdict.reasons, reason),
        do=do if order.index(state) >= order.index(verdict.state) else verdict.do,
    )


def _structure(verdict: SiteVerdict, release: VerifiedRelease, others: Sequence[int]) -> SiteVerdict:
    """What a release shows by itself: numbers that are none, rows that are no directions, a flood of codes."""
    for view in release.views():
        if not np.isfinite(view.matrix).all():
            return _worse(verdict, "rejected", "Its vectors hold values that are not numbers.", _AGAIN)
        length = np.linalg.norm(view.matrix.astype(np.float64), axis=1)
        bad = int(np.sum(np.abs(length - 1.0) > UNIT))
        if bad:
            reason = f"{bad:,} of its {len(length):,} rows are not of unit length."
            verdict = _worse(verdict, "rejected", reason, _AGAIN)
        if float(np.linalg.norm(unit(view.matrix).mean(axis=0))) > COLLAPSED:
            verdict = _worse(verdict, "rejected", "All of its codes lie in one place.", _AGAIN)
    n, typical = len(release.manifest.codes), float(np.median(others)) if others else np.inf
    if n > MANY_CODES * typical:
        reason = f"It lists {n:,} codes, the other sites {typical:,.0f} in the median."
        verdict = _worse(verdict, "rejected", reason)
    return verdict


def _measurable(release: VerifiedRelease) -> bool:
    """Whether there is anything to compare: no reviewer makes a number of what is none."""
    return all(np.isfinite(v.matrix).all() and np.any(v.matrix) for v in release.views())


def _beside_the_others(verdict: SiteVerdict, round_: Beside) -> SiteVerdict:
    """Rejected: a site that agrees with nobody, or whose release is worth far less than its patients."""
    own = round_.judged(verdict.site)
    of_source = {k: [p.r for p in round_.pairs if k in (p.one, p.other)] for k in own}
    if not all(of_source.values()):
        return _worse(
            verdict,
            "doubtful",
            "It shares too few codes with each other site to be compared.",
            "Have it anchor more codes",
        )
    k = min(own, key=lambda source: max(of_source[source]))
    best = max(of_source[k])
    worth = float(round_.worth[k]) if np.isfinite(round_.worth[k]) else None
    verdict = replace(verdict, agreement=round(best, 3), worth=None if worth is None else round(worth, 3))
    if best < NOBODY:
        reason = f"On codes that it shares with other sites it agrees with none of them (correlation of cosines {best:.2f})."
        verdict = _worse(verdict, "rejected", reason)
    elif (
        worth is not None
        and worth < FEW_WORTH
        and float(np.median(of_source[k])) < PALE * _between_others(round_, own)
    ):
        reason = f"Beside the other sites its vectors are worth {worth:.0%} of the patients that it states."
        verdict = _worse(verdict, "rejected", reason)
    return verdict


def _between_others(round_: Beside, own: Sequence[int]) -> float:
    """Median agreement of the pairs that a site is not in; 0 without any."""
    return float(np.median([p.r for p in round_.pairs if not {p.one, p.other} & set(own)] or [0.0]))


def _beside_its_twin(verdict: SiteVerdict, round_: Beside, drifts: Mapping[str, Drift]) -> SiteVerdict:
    """Of sites that send the same vectors the one whose last release they resemble most is believed; without it none."""
    twins = sorted(round_.group(verdict.site) - {verdict.site})
    if not twins:
        return verdict
    reason = f"Its vectors are those of {' and '.join(twins)}: only one of them can be right."
    do = "Ask the sites whose patients these are, and fit with --accept-site for the one"
    past = {s: drifts[s].r for s in round_.group(verdict.site) if s in drifts}
    known = past.get(verdict.site, 0.0) >= CHANGED and past[verdict.site] == max(past.values())
    return _worse(verdict, "doubtful" if known else "rejected", reason, do)


def _as_reference(verdict: SiteVerdict, round_: Beside, out: Collection[str]) -> SiteVerdict:
    """A site on which most mappings lean must agree with those that lean on it, be it for few patients or by design."""
    if not verdict.pillar:
        return verdict
    own = set(round_.judged(verdict.site))
    gone = {k for site in out for k in round_.own(site)}
    heard = [p for p in round_.pairs if own & {p.one, p.other} and not gone & {p.one, p.other}]
    if not heard or (r := float(np.median([p.r for p in heard]))) >= REFERENCE:
        return verdict
    error = float(np.median([p.error for p in heard]))
    reason = (
        f"It alone holds {verdict.alone:,} standard codes, most of all, and the others agree with it "
        f"too little for mappings to lean on it (correlation of cosines {r:.2f}, standard error {error:.2f})."
    )
    # An honest site of few patients shares few codes, measured badly: what chance alone may have done is for people.
    return _worse(verdict, "rejected" if r + BEYOND_CHANCE * error < REFERENCE else "doubtful", reason)


def _beside_its_last(verdict: SiteVerdict, moved: Drift) -> SiteVerdict:
    if moved.counts < STEADY_COUNTS:
        reason = (
            "Its patient counts have little to do with those of the site's last release (correlation of logarithms "
            f"{moved.counts:.2f})."
        )
        verdict = _worse(verdict, "rejected", reason)
    if not moved.r < CHANGED:
        return verdict
    reason = (
        f"It has little to do with the site's last release (correlation of cosines {moved.r:.2f} over "
        f"{len(moved.codes):,} codes)."
    )
    return _worse(verdict, "rejected", reason)


def _by_code(verdict: SiteVerdict, doubtful: int, held: int) -> SiteVerdict:
    if doubtful > MANY_ROWS * verdict.shared:
        reason = f"The other sites place {doubtful:,} of its {verdict.shared:,} shared codes elsewhere."
        verdict = _worse(verdict, "doubtful", reason)
    if held:
        reason = f"It alone would move {held:,} standard codes: they are held as they were until someone has reviewed them."
        verdict = _worse(verdict, "doubtful", reason)
    return verdict
