"""From a folder of site files to verified releases in one process: the numerics of a federation without its transport."""

from __future__ import annotations

from pathlib import Path

from protocol.messages import Policy
from protocol.release import VerifiedRelease
from protocol.study import StudySpec, load_study
from site_agent.cooccurrence import count_pairs
from site_agent.gate import allowed_dim, make_release, suppress
from site_agent.sections import Data
from site_agent.sources.anchors import read_anchors
from site_agent.sources.clean import collect
from site_agent.sources.triplets import TripletFile
from site_agent.views.cooccurrence import cooccurrence_view
from tests.synthetic import verified


def policy(study: StudySpec) -> Policy:
    """The study's own floors."""
    return Policy(
        min_code_patients=study.privacy.min_code_patients,
        min_pair_patients=study.privacy.min_pair_patients,
        margin_rounding=study.privacy.margin_rounding,
        max_dim=study.embedding.dim,
        sticky_patients=study.privacy.sticky_patients,
        min_changed_patients=study.privacy.min_changed_patients,
        small_site_patients=study.privacy.small_site_patients,
        small_site_pair_patients=study.privacy.small_site_pair_patients,
    )


def site_release(study: StudySpec, site: str, events: Path, anchors: Path | None) -> VerifiedRelease:
    """What the site would release; rows name their code system."""
    data = Data(events=str(events), system=study.standard)
    found = collect(TripletFile(events, data), data)
    rules, shift = policy(study), study.embedding.ppmi_shift
    counts = count_pairs(
        found.patient,
        found.day,
        found.code,
        len(found.codes),
        window_days=study.counting.window,
        max_events_per_patient=study.counting.max_events_per_patient,
    )
    kept = suppress(counts, rules, shift=shift)
    view = cooccurrence_view(
        kept, dim=allowed_dim(len(kept.rows), rules, study), shift=shift, seed=study.embedding.seed
    )
    given = {}
    if anchors is not None and anchors.exists():
        own = found.codes[0].partition(":")[0]
        given = read_anchors(anchors, system=own, standard=study.standard)
    identity = {"site": site, "sequence": 1, "previous": "", "agent_version": "0", "agent_digest": "0" * 64}
    return verified(
        make_release(kept, (view,), found.codes, given, policy=rules, study=study, identity=identity)
    )


def folder_releases(folder: Path) -> tuple[StudySpec, list[VerifiedRelease]]:
    """The releases of SITE.parquet files beside a study.toml."""
    study = load_study(folder / "study.toml")
    return study, [
        site_release(study, s, folder / f"{s}.parquet", folder / f"{s}.anchors.csv") for s in study.sites
    ]
