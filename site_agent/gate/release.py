"""The last step of the gate: a release, or a refusal with all its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from protocol.errors import GateError
from protocol.messages import Anchor, Policy, ReleaseManifest
from protocol.release import CODE_PATIENTS, TEXT, Release, SourceView, describe, view_arrays
from protocol.study import StudySpec
from site_agent.gate.suppression import TALLY, KeptCounts, pair_floor, round_to_one


@dataclass(frozen=True)
class Difference:
    """How the data differ from those of a release that may have left.

    Attributes:
        release: its number among this site's releases.
        patients: at least so many were added, removed or altered; under other rules, judged by the dates of their events.
        rules: each setting that decides how events are counted and differs, in words.
    """

    release: int
    patients: int
    rules: tuple[str, ...] = ()


def allowed_dim(n_codes: int, policy: Policy, study: StudySpec) -> int:
    """The largest embedding dimension that may leave for this many codes."""
    return min(policy.max_dim, n_codes // study.embedding.codes_per_dim)


def allowed_columns(view: str, n_codes: int, policy: Policy, study: StudySpec) -> int:
    """The most columns of a view of this many codes that may leave; 0 for a view that the study does not have."""
    most = min(policy.max_dim, study.view_dims.get(view, 0))
    # What limits dimensions is how much vectors tell of counts, and those of texts tell nothing of them.
    return most if view == TEXT else min(most, n_codes // study.embedding.codes_per_dim)


def too_little(kept: KeptCounts, policy: Policy, study: StudySpec) -> list[str]:
    """Why there is not enough left to release; empty if there is."""
    statistics, reasons = kept.statistics, []
    if statistics.patients < policy.min_code_patients:
        reasons.append(f"there are fewer than {policy.min_code_patients} patients in all")
    needed = 2 * study.embedding.codes_per_dim
    if statistics.codes_released < needed:
        reasons.append(
            f"{statistics.codes_released} of {statistics.codes_seen} codes are left, {needed} are needed for two dimensions "
            f"({statistics.codes_suppressed} have fewer than {policy.min_code_patients} patients, "
            f"{statistics.codes_without_pairs} have no pair with {pair_floor(policy, statistics.patients)})"
        )
    return reasons


def too_similar(differences: Sequence[Difference], policy: Policy) -> list[str]:
    """Why the data are too near to those of an earlier release; empty if they differ enough, or not at all.

    The same data counted by the same rules give the same counts again, and nothing to subtract. Counted by other rules
    they do not: then a minimum of patients must have changed in any case.
    """
    least, reasons = policy.min_changed_patients, []
    for d in differences:
        about = about_patients(d.patients, policy)
        if d.rules and d.patients < least:
            reasons.append(
                f"release {d.release} of this site was counted by other rules ({', '.join(d.rules)}), and the dates of "
                f"{about} patients' events have changed since: {least:,} are needed"
            )
        elif not d.rules and 0 < d.patients < least:
            reasons.append(
                f"the events of {about} patients have changed since release {d.release} of this site: "
                f"none or at least {least:,} are needed"
            )
    return reasons


def about_patients(patients: int, policy: Policy) -> str:
    """A number of patients, rounded, for people."""
    step = min(policy.margin_rounding, TALLY)
    if patients == 0 or step == 1:
        return f"{patients:,}"
    return f"fewer than {step}" if patients < step else f"about {round_to_one(patients, step):,}"


def refuse(reasons: Sequence[str], do: str) -> None:
    """Return only if there is no reason to refuse.

    Raises:
        GateError: with every reason.
    """
    if reasons:
        raise GateError("The gate refuses this release", tuple(reasons), do=do)


def foreign_systems(kept: KeptCounts, codes: tuple[str, ...], study: StudySpec, site: str) -> list[str]:
    """Which code systems would leave that are another site's own."""
    owners = {p: study.system(p).local_to for p in {codes[r].partition(":")[0] for r in kept.rows}}
    return [
        f"code system {prefix} is local to site {owner}"
        for prefix, owner in sorted(owners.items())
        if owner not in {None, site}
    ]


def make_release(
    kept: KeptCounts,
    views: tuple[SourceView, ...],
    codes: tuple[str, ...],
    anchors: Mapping[str, str],
    *,
    policy: Policy,
    study: StudySpec,
    identity: Mapping[str, Any],
    descriptions: Mapping[str, str] = MappingProxyType({}),
) -> Release:
    """The release of kept counts' views, after the last checks.

    Args:
        codes: the site's whole code list; only the kept rows leave.
        policy: the site's floors; the manifest holds those in force at a site of this size.
        anchors: local CURIE -> standard CURIE; only those of kept codes leave.
        identity: the manifest's site, sequence, previous, agent_version and agent_digest.
        descriptions: CURIE -> text that may leave (`site_agent.names` decides).

    Raises:
        GateError: something would leave that the policy does not allow.
    """
    policy = policy.at(kept.statistics.patients)
    released = tuple(codes[r] for r in kept.rows)
    reasons = too_little(kept, policy, study) + foreign_systems(kept, codes, study, str(identity["site"]))
    for view in views:
        most = allowed_columns(view.name, len(view.rows), policy, study)
        if view.name not in study.view_dims:
            reasons.append(f"the study has no view {view.name}")
        elif view.matrix.shape[1] > most:
            reasons.append(f"view {view.name} has {view.matrix.shape[1]} dimensions, {most} are allowed")
    if released and kept.statistics.smallest_pair_patients < policy.min_pair_patients:
        reasons.append("a pair below the floor is in use")
    if descriptions and not study.privacy.names:
        reasons.append("it holds descriptions, and the study allows none")
    refuse(reasons, "Correct site.toml or the study; the floors cannot be lowered here")
    row = {code: i for i, code in enumerate(released)}
    arrays = {CODE_PATIENTS: kept.code_patients}
    for view in views:
        arrays |= view_arrays(view)
    texts = tuple(descriptions.get(code, "") for code in released)
    manifest = ReleaseManifest(
        study_digest=study.digest,
        policy=policy,
        statistics=kept.statistics,
        codes=released,
        descriptions=texts if any(texts) else (),
        anchors=tuple(Anchor(row=row[k], standard=v) for k, v in sorted(anchors.items()) if k in row),
        arrays=describe(arrays),
        **identity,
    )
    return Release(manifest, MappingProxyType(arrays))
