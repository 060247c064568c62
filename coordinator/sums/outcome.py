"""The outcome of a sum: `pooled/NAME/`.

counts.safetensors   `values` int64; for cells also `row` and `column` int32, rows of the vocabulary
vocabulary.json      the codes, in order
sum.json             the signed `PooledSum`, which names the digests of both
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy.typing as npt

from coordinator.config import Home
from protocol.arrays import decode_arrays, encode_arrays
from protocol.canonical import canonical_json, digest
from protocol.errors import ProtocolError, RoundError
from protocol.files import write_atomic
from protocol.secure_sum import ParticipantList, SecureSum
from protocol.signed import open_signed, sign_message
from protocol.sums import COUNTS, CellIndex, PooledSum, SumProposal, vocabulary_digest

_CODES, _SIGNED = "vocabulary.json", "sum.json"


def write_outcome(
    home: Home, proposal: SumProposal, pairs: CellIndex | None, sites: ParticipantList, summed: SecureSum
) -> bytes:
    """Write the outcome, its signature last; returns the signed `PooledSum`."""
    folder = outcome_folder(home, proposal.name)
    arrays: dict[str, npt.NDArray[Any]] = {"values": summed.values}
    if pairs is not None:
        arrays |= {"row": pairs.row, "column": pairs.column}
    files = {COUNTS: encode_arrays(arrays, {}), _CODES: canonical_json(list(proposal.vocabulary))}
    for name, data in files.items():
        write_atomic(folder / name, data)
    result = PooledSum(
        study_digest=proposal.study_digest,
        name=proposal.name,
        statistic=proposal.statistic,
        session=sites.digest,
        proposal=proposal.digest,
        shape_digest=sites.subject.shape_digest,
        vocabulary_digest=vocabulary_digest(proposal.vocabulary),
        codes=len(proposal.vocabulary),
        cells=len(summed.values),
        sites=summed.members,
        faulty=summed.faulty,
        small_cells=home.study.sharing.small_cells,
        differential_privacy=home.study.differential_privacy.promise,
        files={name: digest(data) for name, data in files.items()},
        created=datetime.now(UTC).replace(microsecond=0),
    )
    signed = sign_message(result, home.keys)
    write_atomic(folder / _SIGNED, signed)
    return signed


def signed_outcome(home: Home, name: str) -> bytes | None:
    """The signed `PooledSum`; None before the sum is finished."""
    path = outcome_folder(home, name) / _SIGNED
    return path.read_bytes() if path.exists() else None


def read_outcome(home: Home, name: str) -> tuple[PooledSum, dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """A finished sum, its arrays and its vocabulary; signature and digests are checked.

    Raises:
        RoundError: it is not finished.
        ProtocolError: a file was altered.
    """
    signed = signed_outcome(home, name)
    if signed is None:
        raise RoundError(f"The sum {name!r} is not finished", do=f"Run coordinator sum run {name}")
    result = open_signed(signed, PooledSum, home.keys.public())
    files = {file: (outcome_folder(home, name) / file).read_bytes() for file in (COUNTS, _CODES)}
    for file, data in files.items():
        if digest(data) != result.files.get(file):
            raise ProtocolError(
                f"The file {file} of sum {name} was altered", do="Restore it from your backup; do not use it"
            )
    arrays, _ = decode_arrays(files[COUNTS])
    return result, arrays, tuple(json.loads(files[_CODES]))


def outcome_folder(home: Home, name: str) -> Path:
    """Where the outcome of a sum lies."""
    return home.folder / "pooled" / name
