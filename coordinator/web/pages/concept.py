"""The page of one code: where it belongs, why the fit thinks so, and what people say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter, Request, Response

from coordinator.exports.table import Entry
from coordinator.graph.published import has_graph
from coordinator.library import OpenRelease
from coordinator.mapping import Candidate
from coordinator.web.access import PersonDependency
from coordinator.web.pages.facts import facts_of
from coordinator.web.pages.rendering import render
from coordinator.web.reading import CodePath, Opened
from coordinator.web.reviewing import review_of

router = APIRouter(include_in_schema=False)
NEIGHBOURS: Final = 12
MEMBERS: Final = 60


@dataclass(frozen=True)
class Bar:
    """A clue as a bar that leaves zero to the right or the left.

    Attributes:
        name: of the clue, or of a site's view.
        value: log odds.
        start: where it begins, in hundredths of the widest.
        width: in the same.
        own: a part of the clue above it.
    """

    name: str
    value: float
    start: float
    width: float
    part: bool = False


@router.get("/v/{version}/concept/{code:path}")
def concept(reading: Opened, code: CodePath, request: Request, person: PersonDependency) -> Response:
    """A code's page."""
    entry = reading.entry(code)
    release = reading.release
    members = release.clusters[entry.cluster]
    standard = release.entries.get(entry.standard_code) if entry.standard_code != entry.code else None
    review = review_of(request.app.state.standings.now().get(entry.code), person)
    return render(
        request,
        "concept.html.j2",
        reading=reading,
        entry=entry,
        standard=standard,
        chosen=chosen(entry),
        bars=bars(chosen(entry)),
        by_site=by_site(release, entry, members[:MEMBERS]),
        members=members,
        shown_members=MEMBERS,
        sources=release.sources.get(entry.code, ()),
        near=[(h, release.entries[h.code]) for h in release.neighbours(entry.code, NEIGHBOURS)],
        graph=has_graph(release.manifest),
        family=facts_of(release).family(entry),
        review=review,
        undo=last_of(review.history, person.name),
        reviewable=entry.system != release.map.study.standard,
    )


def chosen(entry: Entry) -> Candidate | None:
    """The candidate that the code is mapped to."""
    return next((c for c in entry.candidates if c.code == entry.standard_code), None)


def bars(candidate: Candidate | None) -> list[Bar]:
    """What each clue adds, the strongest first; the parts of what a code occurs with below it."""
    if candidate is None or not candidate.clues:
        return []
    widest = max([1.0, *map(abs, candidate.clues.values()), *map(abs, candidate.sources.values())])
    found = []
    for name, value in sorted(candidate.clues.items(), key=lambda c: -abs(c[1])):
        found.append(_bar(name, value, widest))
        if name == "latent":
            parts = sorted(candidate.sources.items(), key=lambda c: -abs(c[1]))
            found += [_bar(part, worth, widest, part=True) for part, worth in parts]
    return found


def _bar(name: str, value: float, widest: float, *, part: bool = False) -> Bar:
    width = 50 * abs(value) / widest
    return Bar(name, value, 50.0 if value >= 0 else 50.0 - width, width, part)


def by_site(
    release: OpenRelease, entry: Entry, members: tuple[Entry, ...]
) -> list[tuple[str, float | None, list[Entry]]]:
    """For each site of the release: cosine of its codes of the cluster with this one, and those codes."""
    cosine = {e.site: e.cosine for e in entry.evidence}
    found = []
    for site in facts_of(release).sites:
        held = [m for m in members if site in m.sites]
        found.append((site, cosine.get(site), held))
    return found


def last_of(history: list, name: str) -> int:  # type: ignore[type-arg]
    """The number of a person's last record that can be taken back; 0 for none."""
    mine = [r for r in history if r.by == name and r.kind in {"decide", "adjudicate", "comment", "import"}]
    return mine[-1].number if mine else 0
