"""What `coordinator fit` says of each site's release, and of changes that wait for a reviewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coordinator.poisoning.verdict import Screening, SiteVerdict
from protocol.console import out, table
from protocol.errors import UsageError
from protocol.study import StudySpec

_WORST = 5


def accepted_sites(sites: Sequence[str] | None, reason: str, study: StudySpec) -> dict[str, str]:
    """Site -> why its release is used in spite of the checks.

    Raises:
        UsageError: a site without a reason, a reason without a site, or no site of the study.
    """
    names = list(sites or [])
    plain = reason.strip()
    if bool(names) != bool(plain):
        raise UsageError(
            "--accept-site and --because belong together",
            why="the reason is recorded in the report",
            do="Give both",
        )
    for name in names:
        if name not in study.sites:
            raise UsageError(
                f"Site {name!r} is not in study {study.id!r}", do=f"It lists {', '.join(study.sites)}"
            )
    return dict.fromkeys(names, plain)


def show_checks(screening: Screening) -> None:
    """A table of verdicts, then what each site that is not ok needs."""
    table(
        "Releases beside each other",
        ["site", "verdict", "agreement", "worth", "codes judged", "doubtful", "alone holds"],
        [
            [
                v.site,
                f"{v.state}, accepted" if v.accepted else v.state,
                _number(v.agreement),
                _number(v.worth),
                f"{v.shared:,}",
                f"{len(v.doubtful):,}",
                f"{v.alone:,} standard codes" if v.alone else "",
            ]
            for v in screening.sites
        ],
    )
    for verdict in screening.sites:
        for line in lines(verdict):
            out.print(line, markup=False)
    if screening.held:
        out.print(
            f"{len(screening.held):,} changes of standard codes are held for review, each moved by one site alone: "
            + _listed([f"{h.code} ({h.site})" for h in screening.held]),
            markup=False,
        )


def lines(verdict: SiteVerdict) -> list[str]:
    """A verdict in words."""
    found = [f"{verdict.site}: {' '.join(verdict.reasons)} {verdict.do}." if verdict.reasons else ""]
    if verdict.accepted:
        found.append(f"{verdict.site}: used as it is, because: {verdict.accepted}")
    if verdict.doubtful:
        worst = [f"{d.code} = {d.standard}" if d.standard else d.code for d in verdict.doubtful]
        found.append(
            f"{verdict.site}: the others place these elsewhere: {_listed(worst)}. Ask the site to look at them."
        )
    return [line for line in found if line]


def check_facts(screening: Screening) -> dict[str, Any]:
    """The same for machines."""
    return {"checks": screening.facts()["sites"], "held": screening.facts()["held"]}


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_WORST]) + (f" and {len(names) - _WORST:,} more" if len(names) > _WORST else "")
