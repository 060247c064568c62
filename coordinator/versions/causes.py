"""What differs in what two versions were made from, by their signed manifests alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from protocol.messages import PublishedManifest, SiteSummary
from protocol.study import StudySpec, study_differences

CauseKind: TypeAlias = Literal[
    "site-joined",
    "site-withdrew",
    "site-refused",
    "site-missing",
    "new-release",
    "study",
    "background",
    "software",
    "given",
    "known-pairs",
    "reviewed",
    "refit",
]


@dataclass(frozen=True)
class Cause:
    """Something that the releases themselves say.

    Attributes:
        kind: `given`, `known-pairs`, `reviewed` and `refit` are of single codes; `refit` is of a version too where its input
            is the same.
        about: the site, the field of the study, or `knowledge`, `titles`, `encoder`, `reviews`; "" where nothing is to be named.
        detail: a sentence for people, without its full stop. It may hold what sites sent: escape it.
    """

    kind: CauseKind
    about: str
    detail: str

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, "about": self.about, "detail": self.detail}


def find_causes(before: PublishedManifest, after: PublishedManifest) -> tuple[Cause, ...]:
    """What the two were made from that is not the same: sites, study, background, software; else `refit`."""
    found = (
        *_sites(before, after),
        *_study(before, after),
        *_background(before, after),
        *_software(before, after),
    )
    if found:
        return found
    detail = "both were made from the same releases, study, background and software"
    return (Cause("refit", "", detail),)


def _sites(before: PublishedManifest, after: PublishedManifest) -> Iterator[Cause]:
    old, new = {s.site: s for s in before.sites}, {s.site: s for s in after.sites}
    for site in sorted(old.keys() | new.keys()):
        had, has = _received(old.get(site)), _received(new.get(site))
        if has and not had:
            was = old[site].state if site in old else "not in the study"
            yield Cause(
                "site-joined", site, f"{site} has a release in version {after.version} ({was} before)"
            )
        elif had and not has:
            yield _gone(site, new.get(site), after)
        elif had and has and old[site].manifest_digest != new[site].manifest_digest:
            steps = f"release {old[site].sequence} before, release {new[site].sequence} now"
            yield Cause("new-release", site, f"{site} sent another release: {steps}")


def _received(summary: SiteSummary | None) -> bool:
    return summary is not None and summary.state == "received"


def _gone(site: str, summary: SiteSummary | None, after: PublishedManifest) -> Cause:
    version = after.version
    if summary is None:
        return Cause("site-missing", site, f"{site} is no site of the study in version {version}")
    if summary.state == "withdrawn":
        told = next((t for t in reversed(after.withdrawn) if t.site == site), None)
        reason = f" on {told.at:%Y-%m-%d}: {told.reason}" if told else ""
        return Cause("site-withdrew", site, f"{site} has withdrawn from the study{reason}")
    why = f": {summary.detail}" if summary.detail else ""
    if summary.state == "refused":
        return Cause("site-refused", site, f"the release of {site} was refused{why}")
    return Cause("site-missing", site, f"no release of {site} is in version {version}{why}")


def _study(before: PublishedManifest, after: PublishedManifest) -> Iterator[Cause]:
    if before.study_digest == after.study_digest:
        return
    old, new = StudySpec.model_validate(before.study), StudySpec.model_validate(after.study)
    for line in study_differences(old, new):
        field, _, values = line.partition(": ")
        was, _, now = values.removesuffix(" there").partition(" here, ")
        yield Cause("study", field, f"{field} was {was} and is {now}")


def _background(before: PublishedManifest, after: PublishedManifest) -> Iterator[Cause]:
    old, new = {b.kind: b for b in before.background}, {b.kind: b for b in after.background}
    for kind in sorted(old.keys() | new.keys()):
        was, now = old.get(kind), new.get(kind)
        if was is None and now is not None:
            yield Cause("background", kind, f"{kind} came in: {now.detail}")
        elif was is not None and now is None:
            yield Cause("background", kind, f"{kind} was left out; it was: {was.detail}")
        elif was is not None and now is not None and was.content != now.content:
            yield Cause("background", kind, f"{kind} changed: {now.detail}; it was: {was.detail}")


def _software(before: PublishedManifest, after: PublishedManifest) -> Iterator[Cause]:
    if before.software != after.software:
        yield Cause("software", "", f"made by {after.software}, before by {before.software}")
