"""Hostile releases, and what they cost the other sites: real releases of a generated consortium, altered by one site.

An attack takes the releases of a round and the attacker's number and gives the releases that the coordinator opens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from coordinator import estimate, harmonize
from coordinator.calibration import UNKNOWN
from coordinator.demo.inputs import generated
from coordinator.evaluation import ami
from coordinator.harmonize import Harmonized, fit_releases
from coordinator.poisoning.screen import screen
from coordinator.quality import read_truth
from protocol.messages import Anchor
from protocol.release import CODE_PATIENTS, SourceView, VerifiedRelease, describe, view_arrays
from protocol.study import StudySpec, load_study
from tests.inprocess import site_release

Releases = list[VerifiedRelease]
Attack = Callable[[Releases, int, np.random.Generator], Releases]


@dataclass(frozen=True)
class World:
    """An honest round and its truth.

    Attributes:
        releases: the hub, which alone holds the standard codes, comes first.
        earlier: what the sites released a round before, from fewer patients.
        queries: codes that no anchor touches, with the standard codes that are right for each.
    """

    study: StudySpec
    releases: tuple[VerifiedRelease, ...]
    earlier: tuple[VerifiedRelease, ...]
    truth: Mapping[str, str]
    queries: Mapping[str, frozenset[str]]


def make_world(folder: Path, *, sites: int, patients: int, seed: int, clusters: int = 600) -> World:
    """A generated consortium; a sixth of the patients are new since the earlier round.

    With a given number of clusters the fit takes half the time, and hits do not depend on it; 0 lets the fit choose.
    """
    inputs = generated(folder, sites=sites, patients=patients, seed=seed)
    study = load_study(inputs.study)
    if clusters:
        study = study.model_copy(update={"fit": study.fit.model_copy(update={"clusters": clusters})})
    now, before = [], []
    for site in study.sites:
        files = inputs.files[site]
        now.append(site_release(study, site, files.events, files.anchors))
        fewer = folder / site / "earlier.parquet"
        _first_patients(files.events, fewer, round(patients / 1.2))
        before.append(site_release(study, site, fewer, files.anchors))
    if inputs.truth is None:
        raise ValueError("a generated consortium has its truth")
    truth = read_truth(inputs.truth)
    return World(study, tuple(now), tuple(before), truth, _queries(now, truth, study.standard))


def unlike_sizes(folder: Path, sizes: Sequence[int], *, seed: int) -> tuple[Releases, StudySpec]:
    """Honest releases of a generated consortium whose sites have these numbers of patients, the hub first."""
    inputs = generated(folder, sites=len(sizes), patients=max(sizes), seed=seed)
    study, found = load_study(inputs.study), []
    for site, size in zip(study.sites, sizes, strict=True):
        events = folder / site / "some.parquet"
        _first_patients(inputs.files[site].events, events, size)
        found.append(site_release(study, site, events, inputs.files[site].anchors))
    return found, study


def _first_patients(events: Path, target: Path, count: int) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(events)
    chosen = pc.unique(table["patient"]).slice(0, count)
    pq.write_table(table.filter(pc.is_in(table["patient"], chosen)), target)


def _queries(
    releases: Sequence[VerifiedRelease], truth: Mapping[str, str], standard: str
) -> dict[str, frozenset[str]]:
    held = {code for r in releases for code in r.manifest.codes}
    touched = {
        r.manifest.codes[a.row]
        for r in releases
        for a in r.manifest.anchors
        if not r.manifest.codes[a.row].startswith(standard)
    }
    taken = {a.standard for r in releases for a in r.manifest.anchors if r.manifest.codes[a.row] in touched}
    right: dict[str, set[str]] = {}
    for code in sorted(held):
        if code.startswith(f"{standard}:") and code not in taken:
            right.setdefault(truth[code], set()).add(code)
    return {
        code: frozenset(right[truth[code]])
        for code in sorted(held - touched)
        if not code.startswith(f"{standard}:") and truth[code] in right
    }


def fit(
    world: World,
    releases: Sequence[VerifiedRelease],
    monkeypatch: pytest.MonkeyPatch,
    *,
    earlier: Sequence[VerifiedRelease] = (),
    bounded: bool = True,
) -> Harmonized:
    """The coordinator's fit without calibration, which hits do not depend on.

    With `bounded=False` a reviewer accepts all releases, and every row counts as evidence: the fit without its guards.
    """
    with monkeypatch.context() as patch:
        patch.setattr(harmonize, "calibrate", lambda *_a, **_k: UNKNOWN)
        if not bounded:
            patch.setattr(estimate, "speaking", lambda _union, _data: None)
        accepted = {} if bounded else {r.manifest.site: "measured without guards" for r in releases}
        return fit_releases(releases, world.study, earlier=earlier, accepted=accepted)


def hits(world: World, found: Harmonized, *, without: int | None = None, k: int = 1) -> float:
    """Share of the other sites' codes whose right standard code is among the map's first k candidates."""
    place = {row.code: row for row in found.mappings.rows}
    own = set() if without is None else set(world.releases[without].manifest.codes)
    asked = [c for c in world.queries if c not in own and c in place]
    first = {c: (place[c].standard_code, *place[c].alternatives)[:k] for c in asked}
    return float(np.mean([any(target in world.queries[c] for target in first[c]) for c in asked]))


def clusters_ami(world: World, found: Harmonized) -> float:
    """AMI of the clusters with the truth, over the codes that no anchor touches."""
    free = ~np.isin(found.union.row, found.union.row[found.union.anchored])
    chosen = [i for i, c in enumerate(found.union.codes) if free[i] and c in world.truth]
    labels = np.asarray(found.fit.labels)[found.union.row[chosen]]
    return ami([world.truth[found.union.codes[i]] for i in chosen], labels)


@dataclass(frozen=True)
class Outcome:
    """What came of an attack: the attacker was left out, or the other sites lost so much top-1."""

    rejected: bool
    loss: float
    note: str


def outcome(
    world: World,
    attack: Attack,
    attacker: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int,
    base: Harmonized,
    later: bool = False,
) -> Outcome:
    """Run one attack. `later`: the sites have an honest earlier release, and `base` was fitted with it."""
    releases = attack(list(world.releases), attacker, np.random.default_rng([seed, attacker]))
    site, earlier = world.releases[attacker].manifest.site, world.earlier if later else ()
    screening = screen(releases, standard=world.study.standard, earlier=earlier)
    copies = attack is copied and not later  # without a past nobody can tell the copy from the original
    if any(v.left_out for v in screening.sites if v.site != site) and not copies:
        raise AssertionError(f"an honest site was blamed: {screening.sites}")
    verdict = next(v for v in screening.sites if v.site == site)
    if verdict.left_out:
        return Outcome(True, 0.0, "rejected")
    found = fit(world, releases, monkeypatch, earlier=earlier)
    held = sum(h.site == site for h in screening.held)
    doubted = f", {len(verdict.doubtful)} codes" if verdict.doubtful else ""
    note = verdict.state + (f", {held} held" if held else "") + doubted
    return Outcome(False, hits(world, base, without=attacker) - hits(world, found, without=attacker), note)


# --- Attacks -------------------------------------------------------------------------------------------


def _view(release: VerifiedRelease) -> SourceView:
    return release.views()[0]


def _with_rows(release: VerifiedRelease, matrix: np.ndarray) -> VerifiedRelease:
    view = _view(release)
    arrays = dict(release.arrays) | view_arrays(SourceView(view.name, view.rows, matrix.astype(np.float32)))
    return replace(release, arrays=MappingProxyType(arrays))


def _unit(matrix: np.ndarray) -> np.ndarray:
    x = matrix.astype(np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30))


def rows(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Attack:
    """An attack that alters the attacker's matrix."""

    def attack(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
        matrix = _view(releases[attacker]).matrix.astype(np.float64)
        releases[attacker] = _with_rows(releases[attacker], change(matrix, rng))
        return releases

    return attack


def with_value(value: float) -> Attack:
    def change(m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        m = m.copy()
        m[rng.integers(len(m)), 0] = value
        return m

    return rows(change)


def blend(share: float, *, permuted: bool = False) -> Attack:
    """(1 - share) of each row and share of a random direction, or of another code's row: noise like the data's own."""

    def change(m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = m[rng.permutation(len(m))] if permuted else rng.standard_normal(m.shape)
        return _unit((1 - share) * _unit(m) + share * _unit(noise))

    return rows(change)


def _rotated(m: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(m @ np.linalg.qr(rng.standard_normal((m.shape[1], m.shape[1])))[0])


noise = rows(lambda m, rng: _unit(rng.standard_normal(m.shape)))
permuted = rows(lambda m, rng: m[rng.permutation(len(m))])
zero = rows(lambda m, _rng: np.zeros_like(m))
collapsed = rows(lambda m, rng: _unit(m[:1] + 0.01 * rng.standard_normal(m.shape)))
scaled = rows(lambda m, _rng: 10.0 * m)
rotated = rows(_rotated)


def hijacked(count: int) -> Attack:
    """Shared codes get the rows of other codes: the attacker's anchored codes, or at the hub the anchored standard codes."""

    def attack(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
        release, matrix = releases[attacker], _view(releases[attacker]).matrix.copy()
        targets = {a.standard for r in releases for a in r.manifest.anchors}
        own = (
            [a.row for a in release.manifest.anchors]
            if attacker
            else [i for i, c in enumerate(release.manifest.codes) if c in targets]
        )
        taken = rng.permutation(own)[:count]
        matrix[taken] = matrix[rng.permutation(len(matrix))[: len(taken)]]
        releases[attacker] = _with_rows(release, matrix)
        return releases

    return attack


def swapped_anchors(share: float) -> Attack:
    """A share of the attacker's anchors name each other's standard codes."""

    def attack(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
        release = releases[attacker]
        anchors = list(release.manifest.anchors)
        chosen = rng.permutation(len(anchors))[: round(share * len(anchors))]
        for i, j in zip(chosen, np.roll(chosen, 1), strict=True):
            anchors[i] = Anchor(
                row=release.manifest.anchors[i].row, standard=release.manifest.anchors[j].standard
            )
        releases[attacker] = replace(
            release, manifest=release.manifest.model_copy(update={"anchors": tuple(anchors)})
        )
        return releases

    return attack


def copied(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
    """The attacker sends another site's vectors, turned, as its own.

    A site with codes of its own copies that site's anchors with them; the hub gives each standard code the row
    of a code that is anchored to it, and the others rows at random.
    """
    victim = releases[2 if attacker == 1 else 1]
    release, theirs = releases[attacker], _rotated(_view(victim).matrix.astype(np.float64), rng)
    if attacker == 0:
        taken = rng.integers(len(theirs), size=len(release.manifest.codes))
        place = {a.standard: a.row for a in victim.manifest.anchors}
        chosen = [place.get(c, i) for c, i in zip(release.manifest.codes, taken, strict=True)]
        releases[0] = _with_rows(release, theirs[chosen])
        return releases
    prefix = release.manifest.codes[0].partition(":")[0]
    codes = tuple(f"{prefix}:COPY{i}" for i in range(len(victim.manifest.codes)))
    manifest = victim.manifest.model_copy(update={"site": release.manifest.site, "codes": codes})
    releases[attacker] = replace(_with_rows(victim, theirs), manifest=manifest)
    return releases


def false_counts(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
    """Patient counts in another order: the vectors are honest."""
    release = releases[attacker]
    arrays = dict(release.arrays)
    arrays[CODE_PATIENTS] = rng.permutation(arrays[CODE_PATIENTS])
    releases[attacker] = replace(
        release,
        manifest=release.manifest.model_copy(update={"arrays": describe(arrays)}),
        arrays=MappingProxyType(arrays),
    )
    return releases


def flooded(times: int) -> Attack:
    """So many times more codes, each between two of the attacker's own."""

    def attack(releases: Releases, attacker: int, rng: np.random.Generator) -> Releases:
        release = releases[attacker]
        n, matrix = len(release.manifest.codes), _view(release).matrix.astype(np.float64)
        prefix = release.manifest.codes[0].partition(":")[0]
        more = (times - 1) * n
        extra = _unit(matrix[rng.integers(n, size=more)] + matrix[rng.integers(n, size=more)])
        codes = (*release.manifest.codes, *(f"{prefix}:FLOOD{i}" for i in range(more)))
        view = SourceView(
            _view(release).name,
            np.arange(n + more, dtype=np.int32),
            np.vstack([matrix, extra]).astype(np.float32),
        )
        arrays = {
            CODE_PATIENTS: np.concatenate([release.arrays[CODE_PATIENTS], np.full(more, 500)]),
            **view_arrays(view),
        }
        statistics = release.manifest.statistics.model_copy(
            update={"codes_released": n + more, "codes_seen": n + more}
        )
        changes = {"codes": codes, "arrays": describe(arrays), "statistics": statistics}
        releases[attacker] = replace(
            release, manifest=release.manifest.model_copy(update=changes), arrays=MappingProxyType(arrays)
        )
        return releases

    return attack
