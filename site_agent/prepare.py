"""Composition of a release: source -> staged events -> counts -> floors -> views -> gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol.release import Release
from protocol.study import StudySpec
from site_agent.cells import Int64s, with_cells
from site_agent.changes import Fingerprints, Keys, gathered, patient_fingerprints
from site_agent.comparison import check_before_embedding, counting_rules, differences_from
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts
from site_agent.counting import CountRuns, count_staged
from site_agent.gate import (
    KeptCounts,
    Reference,
    about_patients,
    allowed_dim,
    doubtful_cells,
    make_release,
    sticky_counts,
    suppress,
)
from site_agent.lost import decided
from site_agent.names import choose_names
from site_agent.released import keep_candidate, remembered, site_salt
from site_agent.resources import Resources, resources
from site_agent.software import agent_digest, version
from site_agent.sources import Description, Progress, silent
from site_agent.sources.anchors import read_anchors
from site_agent.sources.opening import open_source
from site_agent.sources.rollup import rollup_of
from site_agent.staging import Staged, stage
from site_agent.viewing import more_views, open_views
from site_agent.views.cooccurrence import cooccurrence_view
from site_agent.working import work_lock


@dataclass(frozen=True)
class Prepared:
    """A release and what it was made of; only `release` may leave.

    Attributes:
        release: what may leave.
        kept: counts after suppression.
        codes: CURIEs of all codes of the site, in order of text.
        descriptions: CURIE -> text.
        skipped: reason -> rows that were left out for it.
        n_rows: rows that hold a usable event.
        changed: patients whose events have changed since the last release, rounded, as text; empty for the first release.
        names_undecided: descriptions that wait for a person in `names-to-review.csv`.
        encoded: code -> name of which the text view holds a vector.
        notes: why a view that study and site both want is left out, in sentences.
    """

    release: Release
    kept: KeptCounts
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
    n_rows: int
    changed: str = ""
    names_undecided: int = 0
    encoded: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def stage_events(home: Home, machine: Resources, progress: Progress = silent) -> Staged:
    """The site's events from the source that its configuration names, coded and on the disk.

    Raises:
        DataError: the data cannot be used.
        StudyError: they hold a code system that the study does not list.
    """
    data, source = home.config.data, open_source(home)
    staged = stage(
        source,
        data,
        home.work / "events",
        memory=machine.memory // 4,
        rollup=rollup_of(data, source, _rollup_file(home)),
        progress=progress,
        today=data.latest_date,
    )
    _check_systems(staged.codes, home.study)
    return staged


def count_events(home: Home, staged: Staged, machine: Resources, progress: Progress = silent) -> CountRuns:
    """Pair counts by the study's rule, on the disk."""
    return count_staged(
        staged,
        home.study.counting,
        home.work / "counts",
        memory=machine.memory,
        threads=machine.threads,
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class SiteCounts:
    """A site's counts, and what goes with them.

    Attributes:
        counts: pair counts; cells below the floor are withheld and tallied, but for those of `doubtful_cells`.
        codes: CURIEs of the rows and columns.
        descriptions: CURIE -> text.
        skipped: reason -> rows that were left out for it.
        n_rows: rows that hold a usable event.
        patients: salted fingerprints of the patients' events.
        remove: removes coded events and counts from the disk.
    """

    counts: PairCounts
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
    n_rows: int
    patients: Fingerprints
    remove: Callable[[], None]


def count_site(
    home: Home, machine: Resources, last: Reference | None, *, salt: bytes, progress: Progress = silent
) -> SiteCounts:
    """Count a site's events: in Spark where they lie in Spark, on this machine otherwise.

    Args:
        home: the site.
        machine: what may be taken of the machine.
        last: cells of this reference are counted exactly where it takes that to see whether they moved.
        salt: of the patients' fingerprints.
        progress: told each step.

    Raises:
        DataError: the data cannot be used.
        StudyError: they hold a code system that the study does not list.
    """
    data, study, policy = home.config.data, home.study, home.policy()
    floor = policy.min_pair_patients

    def wanted(codes: tuple[str, ...]) -> Int64s | None:
        return None if last is None else doubtful_cells(codes, last, policy)

    if data.database.startswith("spark:"):
        # Spark and its libraries are an extra.
        from site_agent.spark import count_in_spark  # noqa: PLC0415

        source = open_source(home)
        rollup = rollup_of(data, source, _rollup_file(home))
        found = count_in_spark(
            source,
            data,
            study.counting,
            rollup=rollup,
            floor=floor,
            exact=wanted,
            salt=salt,
            today=data.latest_date,
            progress=progress,
        )
        _check_systems(found.codes, study)
        parts = (found.codes, found.descriptions, found.skipped, found.n_rows, found.patients)
        return SiteCounts(found.counts, *parts, remove=lambda: None)
    staged = stage_events(home, machine, progress)
    progress("comparing patients' events with those of earlier releases", 0.0)
    patients = _fingerprints(staged, salt, study.counting.max_events_per_patient)
    runs = count_events(home, staged, machine, progress)
    counts = runs.total(floor=floor, memory=machine.memory // 2, threads=machine.threads)
    cells = wanted(staged.codes)
    if cells is not None:
        counts = with_cells(counts, (runs.block(i) for i in range(len(runs.folders))), cells)

    def remove() -> None:
        runs.remove()
        staged.remove()

    parts = (staged.codes, staged.descriptions, staged.skipped, staged.n_rows, patients)
    return SiteCounts(counts, *parts, remove=remove)


def _fingerprints(staged: Staged, salt: bytes, most: int) -> Fingerprints:
    keys = Keys.make(staged.codes, salt)
    return gathered(patient_fingerprints(*staged.partition(i), keys, most) for i in range(staged.partitions))


def _rollup_file(home: Home) -> Path | None:
    file = home.config.data.rollup.file
    return home.path(file) if file else None


def _check_systems(codes: tuple[str, ...], study: StudySpec) -> None:
    for prefix in sorted({c.partition(":")[0] for c in codes}):
        study.system(prefix)


def prepare_release(
    home: Home, *, sequence: int, previous: str, machine: Resources | None = None, progress: Progress = silent
) -> Prepared:
    """Everything from the source to a gated release; nothing leaves, and no coded event stays on the disk.

    What the next release must be held against is kept as a candidate, which `site_agent.released.promote` makes the
    reference. After a failure or a kill, coded events and counts that are whole stay in the work folder and are used again.

    Raises:
        DataError: the data cannot be used.
        GateError: the release is refused.
        StudyError: the data hold a code system that the study does not list; or its text encoder, ontology or the file of a
            view is another one than the study names.
        UsageError: another command is at work; or a file or model that a view needs is missing or cannot be used.
    """
    study, policy, machine = home.study, home.policy(), machine or resources(home.config.machine)
    tools = open_views(home)
    with work_lock(home):
        earlier, rules = remembered(home.folder), counting_rules(home)
        last = earlier[-1].reference() if earlier else None
        found = count_site(home, machine, last, salt=site_salt(home.folder), progress=progress)
        progress("withholding small cells", 0.0)
        differences = differences_from(earlier, found.patients, rules)
        known = {"", *(r.digest for r in earlier), *decided(home.folder)}
        forgotten = previous if previous not in known else ""
        same = not differences or not differences[-1].rules
        shown = sticky_counts(found.counts, found.codes, last, policy, same_rules=same)
        kept = suppress(shown.counts, policy, shift=study.embedding.ppmi_shift)
        check_before_embedding(home, kept, shown.codes, differences, forgotten)
        progress("embedding codes", 0.0)
        view = cooccurrence_view(
            kept,
            dim=allowed_dim(len(kept.rows), policy, study),
            shift=study.embedding.ppmi_shift,
            seed=study.embedding.seed,
        )
        released = [shown.codes[r] for r in kept.rows]
        names = choose_names(home, released, found.descriptions)
        anchors = site_anchors(home)
        more = more_views(home, tools, kept, shown.codes, anchors=anchors, descriptions=found.descriptions)
        update = {"names_released": len(names.released), "names_withheld": names.withheld}
        kept = replace(kept, statistics=kept.statistics.model_copy(update=update))
        release = make_release(
            kept,
            (view, *more.views),
            shown.codes,
            anchors,
            descriptions=names.released,
            policy=policy,
            study=study,
            identity={
                "site": home.config.site,
                "sequence": sequence,
                "previous": previous,
                "agent_version": version(),
                "agent_digest": agent_digest(),
            },
        )
        keep_candidate(
            home.folder, release.manifest.digest, reference=shown, patients=found.patients, rules=rules
        )
        found.remove()
    progress("done", 1.0)
    return Prepared(
        release,
        kept,
        shown.codes,
        found.descriptions,
        found.skipped,
        found.n_rows,
        changed=about_patients(differences[-1].patients, policy) if differences else "",
        names_undecided=max(names.undecided, more.undecided),
        encoded=more.encoded,
        notes=more.notes,
    )


def site_anchors(home: Home) -> Mapping[str, str]:
    """The site's anchors, if its configuration names a file."""
    data = home.config.data
    if not data.anchors:
        return {}
    return read_anchors(home.path(data.anchors), system=data.system, standard=home.study.standard)
