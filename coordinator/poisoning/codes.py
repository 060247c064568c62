"""Which codes of a site are doubtful beside the other sites, and which standard codes one site alone has moved."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coordinator.poisoning.agreement import judge_rows, robust_scores
from coordinator.poisoning.beside import Beside
from coordinator.poisoning.influence import Drift
from coordinator.poisoning.verdict import DoubtfulCode, HeldChange
from protocol.release import VerifiedRelease

ROW = -2.5
"""Robust z of a code's agreement, below which the code is doubtful."""
LOW = 0.5
"""A doubtful code's agreement is also below so much of its site's median: where all agree well, the worst agree well."""
STEADY = 0.95
"""Agreement of a release with the site's last one, below which the standard codes that it alone holds are held."""
MOVED = 0.6
"""Agreement of one code with itself in the site's last release, below which it has moved."""
MANY_NEW = 1.0
"""Standard codes that a site alone holds and has added, for each that it alone held before, above which they are held."""


def doubtful_codes(
    release: VerifiedRelease, round_: Beside, out: Collection[str]
) -> tuple[int, tuple[DoubtfulCode, ...]]:
    """A site's codes that the other sites place elsewhere.

    Args:
        release: the site's.
        round_: all that can be compared.
        out: sites whose releases take no part, and are not heard here.

    Returns:
        the number of codes that were judged, and the doubtful ones, the worst first.
    """
    site = release.manifest.site
    heard = [k for k in range(len(round_.data)) if _is_heard(round_, k, site, out)]
    raters = [round_.raters[k] for k in heard]
    found: set[DoubtfulCode] = set()
    judged = 0
    for k in round_.own(site):
        rows = judge_rows(raters, heard.index(k), round_.union.n_rows)
        score = robust_scores(rows.r)
        judged = max(judged, int(np.isfinite(score).sum()))
        low = rows.r < LOW * (np.nanmedian(rows.r) if judged else 0.0)
        for i in np.flatnonzero((score < ROW) & low):
            found |= _doubt(
                release, round_, int(rows.rows[i]), round(float(rows.r[i]), 3), int(rows.witnesses[i])
            )
    # A code that is doubtful in several views is named once, with the least agreement.
    worst = {(d.code, d.standard): d for d in sorted(found, key=lambda d: -d.agreement)}
    return judged, tuple(sorted(worst.values(), key=lambda d: (d.agreement, d.code)))


def _is_heard(round_: Beside, k: int, site: str, out: Collection[str]) -> bool:
    """The site itself, and of each group of copies the first that takes part; none of its own group."""
    name = round_.union.sites[round_.raters[k].site]
    if name == site:
        return True
    group = round_.group(name)
    return name not in out and site not in group and name == min(group - set(out))


def settled(
    doubtful: Mapping[str, tuple[DoubtfulCode, ...]],
    held: Sequence[HeldChange],
    round_: Beside,
    out: Collection[str],
) -> dict[str, tuple[DoubtfulCode, ...]]:
    """The doubtful codes, none of which is left out at every site that holds it: then it is listed only."""
    gone: dict[str, set[str]] = {}
    for site, code in [
        (s, d.code) for s, codes in doubtful.items() for d in codes if d.done == "row not used"
    ] + [(h.site, h.code) for h in held if h.done == "row not used"]:
        gone.setdefault(code, set()).add(site)
    index = {code: i for i, code in enumerate(round_.union.codes)}
    sites = np.array(round_.union.sites)
    last = {code for code, at in gone.items() if set(sites[round_.union.holds[index[code]]]) - set(out) <= at}
    return {
        site: tuple(
            replace(d, done="listed") if d.code in last and d.done == "row not used" else d for d in codes
        )
        for site, codes in doubtful.items()
    }


def _doubt(release: VerifiedRelease, round_: Beside, row: int, r: float, witnesses: int) -> set[DoubtfulCode]:
    """What becomes of one site's codes on a doubtful row.

    The sites that released a standard code themselves stand against an anchor. A site's own row is left out if
    two others speak against it and one of them holds the code too (`settled`); else it is listed.
    """
    site, union = release.manifest.site, round_.union
    anchors = {release.manifest.codes[a.row]: a.standard for a in release.manifest.anchors}
    index = {code: i for i, code in enumerate(union.codes)}
    name = union.standard.get(row, "")
    found: set[DoubtfulCode] = set()
    for code in release.manifest.codes:
        if union.row[index[code]] != row:
            continue
        if code in anchors and code != name:
            found.add(DoubtfulCode(code, anchors[code], r, "anchor not used"))
        elif witnesses >= 2:
            found.add(DoubtfulCode(code, "", r, "row not used"))
        elif site not in round_.holders.get(row, frozenset()):
            found.add(DoubtfulCode(code, "", r, "listed"))
        # One anchor against the holder of the code: the anchor is doubted, at the site that gave it.
    return found


def held_changes(
    round_: Beside, drifts: Mapping[str, Drift], out: Collection[str], accepted: Collection[str]
) -> tuple[HeldChange, ...]:
    """Standard codes that one site alone would move: two independent sites, or a reviewer, may.

    Args:
        round_: all that can be compared.
        drifts: of the sites with an earlier release.
        out: sites whose releases take no part.
        accepted: sites whose changes a reviewer accepted.
    """
    rows = {code: row for row, code in round_.union.standard.items()}
    moved: dict[str, dict[str, float]] = {}
    for site in sorted(drifts.keys() - set(out)):
        steady = drifts[site].r >= STEADY
        for code, r in zip(drifts[site].codes, drifts[site].rows, strict=True):
            holders = round_.holders.get(rows.get(code, -1), frozenset()) - set(out)
            if site in holders and (r < MOVED or (holders == {site} and not steady)):
                moved.setdefault(code, {})[site] = round(float(r), 3)
    held = []
    for code, by in sorted(moved.items()):
        if len({round_.group(site) for site in by}) > 1:
            continue
        still = round_.holders[rows[code]] - set(out) - by.keys()
        held += [
            HeldChange(code, site, r, "row not used" if still else "last release's row used")
            for site, r in by.items()
            if site not in accepted
        ]
    for site in sorted(drifts.keys() - set(out) - set(accepted)):
        held += [
            HeldChange(code, site, 0.0, "new code not used")
            for code in _flood(round_, drifts[site], site, out)
        ]
    return tuple(held)


def _flood(round_: Beside, moved: Drift, site: str, out: Collection[str]) -> list[str]:
    """Standard codes that a site alone holds and has added, where they are more than it alone held before."""
    rows = {code: row for row, code in round_.union.standard.items()}

    def alone(codes: Sequence[str]) -> list[str]:
        return [c for c in codes if round_.holders.get(rows.get(c, -1), frozenset()) - set(out) == {site}]

    new = alone(moved.new)
    return new if len(new) > MANY_NEW * len(alone(moved.codes)) else []
