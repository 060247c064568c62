"""Intake: an opened release becomes a `VerifiedRelease`, or an error; no I/O.

`protocol.envelope.open_sealed` has proved who sealed what to whom. Here the
release is bound to the study, the round, the site and the site's sequence, and
its content is held against the study's rules. Nothing of a release is used
before this function returns.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from protocol.envelope import EnvelopeHeader
from protocol.errors import DataError, EnvelopeError, ProtocolError, StudyError
from protocol.messages import ReleaseManifest
from protocol.release import CODE_PATIENTS, COOCCURRENCE, Release, VerifiedRelease
from protocol.study import StudySpec
from protocol.vocabulary import curie, split_curie


@dataclass(frozen=True)
class Expected:
    """What the coordinator knows of a site before its release arrives."""

    site: str
    round: str
    sequence: int
    digest: str
    signer: str


def verify_release(
    header: EnvelopeHeader, release: Release, *, study: StudySpec, expected: Expected
) -> VerifiedRelease:
    """Bind a release to what it must be.

    Args:
        header: from `open_sealed`, so already proved.
        expected: `sequence` and `digest` of the site's last accepted release; (0, "") for none.

    Raises:
        StudyError: it was made under another study.
        EnvelopeError: another round, site or place in the sequence; a replay.
        ProtocolError: its content breaks a rule of the study.
    """
    manifest = release.manifest
    if header.study_digest != study.digest or manifest.study_digest != study.digest:
        raise StudyError(
            f"Site {expected.site} made its release under another study file",
            why=f"its digest begins {manifest.study_digest[:12]}, ours {study.digest[:12]}",
            do="Compare the study files; the site must prepare and approve again",
        )
    bound = (header.kind, header.consortium, header.round, header.site, manifest.site, header.signer_key)
    if bound != ("release", study.id, expected.round, expected.site, expected.site, expected.signer):
        raise EnvelopeError(f"The release is not one of site {expected.site} for round {expected.round}")
    told = (header.content, header.sequence, header.previous, header.policy_digest)
    if told != (manifest.digest, manifest.sequence, manifest.previous, manifest.policy.digest):
        raise EnvelopeError("The envelope's header and the manifest inside do not agree")
    _check_sequence(manifest, expected)
    _check_rules(manifest, study)
    least = release.arrays[CODE_PATIENTS].min(initial=manifest.policy.min_code_patients)
    if least < manifest.policy.min_code_patients:
        raise ProtocolError(f"Site {manifest.site} released a code with fewer patients than its own floor")
    return VerifiedRelease(manifest, release.arrays, header.round, header.signer_key)


def _check_sequence(manifest: ReleaseManifest, expected: Expected) -> None:
    """Next in line, or the last one again byte for byte; anything else is quarantined."""
    if (manifest.sequence, manifest.digest) == (expected.sequence, expected.digest):
        return
    if manifest.sequence <= expected.sequence:
        raise EnvelopeError(
            f"Release {manifest.sequence} of site {expected.site} is stale",
            why=f"release {expected.sequence} was accepted before",
            do="The site must run preview and approve again",
        )
    if (manifest.sequence, manifest.previous) != (expected.sequence + 1, expected.digest):
        raise EnvelopeError(
            f"Release {manifest.sequence} of site {expected.site} does not follow release {expected.sequence}",
            do="The site must run preview and approve again",
        )


def _check_rules(manifest: ReleaseManifest, study: StudySpec) -> None:
    """Floors, dimension, code systems and anchors as the study says."""
    privacy, policy = study.privacy, manifest.policy
    if (
        policy.min_code_patients < privacy.min_code_patients
        or policy.min_pair_patients < privacy.min_pair_patients
        or policy.margin_rounding < privacy.margin_rounding
        or policy.sticky_patients < privacy.sticky_patients
        or policy.min_changed_patients < privacy.min_changed_patients
        or policy.small_site_patients < privacy.small_site_patients
        or policy.small_site_pair_patients < privacy.small_site_pair_patients
        or policy.max_dim > study.embedding.dim
    ):
        raise ProtocolError(
            f"The release of site {manifest.site} was made with looser floors than the study's"
        )
    in_force = policy.at(manifest.statistics.patients)
    if policy != in_force:
        raise ProtocolError(
            f"The release of site {manifest.site} was made with the pair floor of a larger site",
            why=f"with about {manifest.statistics.patients:,} patients a pair needs {in_force.min_pair_patients} of them, "
            f"and the floor was {policy.min_pair_patients}",
            do="The site must update site-agent, run preview and approve again",
        )
    if manifest.statistics.codes_released != len(manifest.codes):
        raise ProtocolError(f"The release of site {manifest.site} miscounts its codes")
    _check_names(manifest, study)
    _check_views(manifest, study)
    for code in manifest.codes:
        prefix = _prefix_of(code, manifest.site)
        if study.system(prefix).local_to not in {None, manifest.site}:
            raise ProtocolError(f"Site {manifest.site} released {code}, a code that is local to another site")
    for anchor in manifest.anchors:
        if not anchor.standard.startswith(f"{study.standard}:"):
            raise ProtocolError(
                f"Site {manifest.site} anchors a code to {anchor.standard}, no {study.standard} code"
            )


def _check_views(manifest: ReleaseManifest, study: StudySpec) -> None:
    """The co-occurrence view, and others only as the study has them."""
    dims = {a.name.split("/")[1]: a.shape[1] for a in manifest.arrays if a.name.endswith("/matrix")}
    if COOCCURRENCE not in dims:
        raise ProtocolError(f"The release of site {manifest.site} has no view of what its codes occur with")
    for name, dim in sorted(dims.items()):
        if name not in study.view_dims:
            raise ProtocolError(
                f"Site {manifest.site} released the view {name!r}, which the study does not have"
            )
        if dim > study.view_dims[name]:
            raise ProtocolError(
                f"The view {name!r} of site {manifest.site} has {dim} dimensions, the study allows {study.view_dims[name]}"
            )


def _check_names(manifest: ReleaseManifest, study: StudySpec) -> None:
    """Descriptions only where the study allows them, one a code, and nothing that a terminal or a page would obey."""
    texts = manifest.descriptions
    if texts and not study.privacy.names:
        raise ProtocolError(f"Site {manifest.site} released descriptions, and the study allows none")
    if texts and len(texts) != len(manifest.codes):
        raise ProtocolError(f"The release of site {manifest.site} has not one description for each code")
    if any(unicodedata.category(c).startswith("C") for text in texts for c in text):
        raise ProtocolError(f"Site {manifest.site} released a description with control characters")
    if sum(map(bool, texts)) != manifest.statistics.names_released:
        raise ProtocolError(f"The release of site {manifest.site} miscounts its descriptions")


def _prefix_of(code: str, site: str) -> str:
    """The prefix of a code in its one plain form: a hostile spelling could pose as another code."""
    try:
        prefix, rest = split_curie(code)
        plain = curie(prefix, rest)
    except DataError as error:
        raise ProtocolError(f"Site {site} released a malformed code", why=error.what) from None
    if plain != code:
        raise ProtocolError(f"Site {site} released a code that is not in its plain form")
    return prefix
