"""What two versions say of why one code changed; `refit` where they say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.exports.table import Entry, PublishedMap
from coordinator.versions.causes import Cause
from protocol.vocabulary import split_curie


class Reasons:
    """Reasons of single codes.

    Args:
        old: the older map.
        new: the newer map.
        causes: from `find_causes` of both.
    """

    def __init__(self, old: PublishedMap, new: PublishedMap, causes: Sequence[Cause]) -> None:
        self.old, self.new = old, new
        self._of_site = {c.about: c for c in causes if c.kind.startswith("site-") or c.kind == "new-release"}
        self._study = {c.about: c for c in causes if c.kind == "study"}
        self._knew = any(b.kind in {"knowledge", "reviews"} for b in old.manifest.background)
        self._held = {e.code: e for e in old.entries}
        self._holds = {e.code: e for e in new.entries}

    def of(self, before: Entry | None, after: Entry | None) -> tuple[Cause, ...]:
        """The reasons of a code whose rows these are; never empty."""
        if before is None and after is not None:
            found = [*self._came(after)]
        elif after is None and before is not None:
            found = [*self._went(before)]
        elif before is not None and after is not None:
            found = [*self._changed(before, after)]
        else:
            found = []
        return tuple(dict.fromkeys(found)) or (_refitted(),)

    def _came(self, entry: Entry) -> Iterator[Cause]:
        yield from self._about_sites(entry.sites)
        yield from self._visibility(entry, "own-site", "consortium")

    def _went(self, entry: Entry) -> Iterator[Cause]:
        for site in entry.sites:
            cause = self._of_site.get(site)
            if cause is not None and cause.kind == "new-release":
                missing = (
                    f"{site}'s new release does not hold it: too few patients, or it does not occur any more"
                )
                yield Cause(cause.kind, site, missing)
            elif cause is not None:
                yield cause
        yield from self._visibility(entry, "consortium", "own-site")

    def _changed(self, before: Entry, after: Entry) -> Iterator[Cause]:
        yield from _given(before, after)
        yield from self._reviewed(after.code)
        if before.standard_code != after.standard_code:
            yield from self._targets(before, after)
        yield from self._pairs(before, after)
        yield from self._about_sites(sorted({*before.sites, *after.sites}))

    def _targets(self, before: Entry, after: Entry) -> Iterator[Cause]:
        """A target that only one version holds could not be chosen in the other."""
        new, old = after.standard_code, before.standard_code
        if new and new not in self._held and (row := self._holds.get(new)):
            for cause in self._came(row):
                detail = f"its standard code {new} is new: {cause.detail}"
                yield Cause(cause.kind, cause.about, detail)
        if old and old not in self._holds and (row := self._held.get(old)):
            for cause in self._went(row):
                detail = f"its former standard code {old} is gone: {cause.detail}"
                yield Cause(cause.kind, cause.about, detail)

    def _pairs(self, before: Entry, after: Entry) -> Iterator[Cause]:
        """Known pairs that speak for or against a candidate in one version only.

        Of a code that was no candidate, the release does not tell the pairs: nothing is said of it, unless the version
        knew none at all.
        """
        then = {c.code: {(p.left, p.right, p.relation, p.source) for p in c.pairs} for c in before.candidates}
        for candidate in after.candidates:
            if candidate.code not in then and self._knew:
                continue
            for pair in candidate.pairs:
                if (pair.left, pair.right, pair.relation, pair.source) not in then.get(candidate.code, set()):
                    said = f"{pair.left} and {pair.right}, {pair.relation}, by {pair.source}"
                    yield Cause("known-pairs", candidate.code, f"a known pair is new: {said}")
        now = {c.code: {(p.left, p.right, p.relation, p.source) for p in c.pairs} for c in after.candidates}
        for code, pairs in then.items():
            for left, right, relation, source in sorted(pairs - now.get(code, pairs)):
                said = f"{left} and {right}, {relation}, by {source}"
                yield Cause("known-pairs", code, f"a known pair is no longer there: {said}")

    def _reviewed(self, code: str) -> Iterator[Cause]:
        """What people say of it in the newer version, if that is something else."""
        now = verdicts(self.new, code)
        if now == verdicts(self.old, code):
            return
        said = "; ".join(f"{verdict} {target or 'no standard code'}" for target, verdict, *_ in now)
        yield Cause(
            "reviewed", code, f"reviewers say: {said}" if said else "reviewers took back what they said"
        )

    def _about_sites(self, sites: Sequence[str]) -> Iterator[Cause]:
        """What became of the sites that hold, or held, a code."""
        for site in sites:
            if (cause := self._of_site.get(site)) is not None:
                yield cause

    def _visibility(self, entry: Entry, was: str, now: str) -> Iterator[Cause]:
        """Whether the study began or ceased to show sites' own codes to all."""
        system = split_curie(entry.code)[0]
        studies = self.old.study, self.new.study
        local = any(s.prefix == system and s.local_to for study in studies for s in study.code_systems)
        shown = tuple(study.publish_local_codes for study in studies)
        if local and shown == (was, now) and "publish_local_codes" in self._study:
            yield self._study["publish_local_codes"]


def verdicts(published: PublishedMap, code: str) -> tuple[tuple[str, str, str, str], ...]:
    """What people say of a code, as (target, verdict, relation, state), sorted."""
    found = published.reviews.get(code)
    return tuple(sorted((r.target, r.verdict, r.relation, r.state) for r in found)) if found else ()


def _given(before: Entry, after: Entry) -> Iterator[Cause]:
    if after.anchored and not before.anchored:
        yield Cause("given", "", f"a site has given {after.standard_code} itself")
    elif before.anchored and not after.anchored:
        yield Cause("given", "", f"no site gives {before.standard_code} any more")
    elif after.anchored and before.anchored and before.standard_code != after.standard_code:
        yield Cause("given", "", f"a site gives {after.standard_code} instead of {before.standard_code}")


def _refitted() -> Cause:
    return Cause("refit", "", "nothing of this code itself changed: the whole map was fitted again")
