"""Small, exact stand-ins of real objects for unit tests: studies, keys, releases, events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from protocol.envelope import EnvelopeHeader
from protocol.keys import PrivateKeys
from protocol.messages import Anchor, Policy, ReleaseManifest, ReleaseStatistics
from protocol.release import CODE_PATIENTS, Release, SourceView, VerifiedRelease, describe, view_arrays
from protocol.study import StudySpec, parse_study

SITES = ("north", "lake", "south")


def study(**changes: Any) -> StudySpec:
    """A valid study of three sites."""
    table: dict[str, Any] = {
        "id": "unit",
        "sites": list(SITES),
        "standard": "ICD10CM",
        "code_systems": [
            {"prefix": "ICD10CM"},
            {"prefix": "ICD9CM"},
            {"prefix": "SOUTH", "local_to": "south"},
        ],
    }
    return parse_study(table | changes, "of the test")


@cache
def keys(name: str) -> PrivateKeys:
    """One key pair a name; made once, since ML-KEM keys are slow enough to notice."""
    del name
    return PrivateKeys.generate()


def statistics(n_codes: int, **changes: Any) -> ReleaseStatistics:
    """Consistent release statistics."""
    values: dict[str, Any] = {
        "patients": 10_000,
        "codes_seen": n_codes,
        "codes_suppressed": 0,
        "codes_without_pairs": 0,
        "codes_released": n_codes,
        "pairs_released": 100,
        "pairs_suppressed": 0,
        "mass_kept": 1.0,
        "smallest_code_patients": 20,
        "smallest_pair_patients": 11,
        "capped_patients": 0,
    }
    return ReleaseStatistics(**(values | changes))


def release(
    site: str,
    codes: list[str],
    matrix: np.ndarray[Any, Any],
    *,
    spec: StudySpec | None = None,
    anchors: dict[str, str] | None = None,
    sequence: int = 1,
    previous: str = "",
) -> Release:
    """A release as the gate would make it."""
    spec = spec or study()
    view = SourceView("cooccurrence", np.arange(len(codes)), matrix.astype(np.float32))
    arrays = {CODE_PATIENTS: np.full(len(codes), 20, dtype=np.int64), **view_arrays(view)}
    manifest = ReleaseManifest(
        study_digest=spec.digest,
        site=site,
        sequence=sequence,
        previous=previous,
        agent_version="0",
        agent_digest="0" * 64,
        policy=Policy(
            min_code_patients=20, min_pair_patients=11, margin_rounding=100, max_dim=spec.embedding.dim
        ),
        statistics=statistics(len(codes)),
        codes=tuple(codes),
        anchors=tuple(Anchor(row=codes.index(a), standard=b) for a, b in sorted((anchors or {}).items())),
        arrays=describe(arrays),
    )
    return Release(manifest, MappingProxyType(arrays))


def verified(found: Release) -> VerifiedRelease:
    """The same release as intake would pass it on."""
    return VerifiedRelease(found.manifest, found.arrays, "r1", "0" * 64)


def unit_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """n random directions."""
    x = rng.standard_normal((n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def header(signer: PrivateKeys, recipient: PrivateKeys, **changes: Any) -> EnvelopeHeader:
    """A valid envelope header between two parties."""
    values: dict[str, Any] = {
        "kind": "release",
        "suite": recipient.suite,
        "consortium": "unit",
        "study_digest": study().digest,
        "round": "r1",
        "site": "north",
        "recipient_key": recipient.public().digest,
        "signer_key": signer.public().digest,
        "sequence": 1,
        "previous": "",
        "content": "c" * 64,
        "agent_digest": "a" * 64,
        "policy_digest": "b" * 64,
        "ledger_head": "",
        "expires": datetime.now(UTC) + timedelta(days=1),
    }
    return EnvelopeHeader(**(values | changes))


def cells_moved(before: Any, after: Any) -> int:
    """Published cells that differ between two `PairCounts` of the same codes: event pairs, their patients, codes."""
    return int(
        (before.events != after.events).nnz
        + (before.pair_patients != after.pair_patients).nnz
        + (before.code_patients != after.code_patients).sum()
    )
