"""What a site remembers of its releases, so that the next one cannot be subtracted from them. It never leaves.

    released/salt                       32 random bytes that the fingerprints depend on
    released/candidate-DIGEST/          of the release that was prepared last, by the digest of its manifest
    released/000001-DIGEST/             of each release that may have left, in order
        about.json                      the rules by which it was counted
        patients.safetensors            fingerprints of its patients' events
        counts.safetensors              its sticky counts; of the newest release only

A candidate becomes the newest release by `promote`, one rename, before the sealed bytes are put where they can leave. So a
release that left is always remembered; one that is remembered need not have left.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import FederationError, UsageError
from protocol.files import sync_folder, write_atomic
from site_agent.changes import Fingerprints
from site_agent.cooccurrence import PairCounts
from site_agent.gate.sticky import Reference

Rules = Mapping[str, str]
"""What decides how events become counts: name of the setting -> its value, as text."""

_RELEASED = re.compile(r"[0-9]{6}-[0-9a-f]{64}")
_ABOUT, _PATIENTS, _COUNTS = "about.json", "patients.safetensors", "counts.safetensors"


@dataclass(frozen=True)
class Remembered:
    """One release that may have left.

    Attributes:
        folder: where it lies.
    """

    folder: Path

    @property
    def number(self) -> int:
        """Its place among this site's releases, from 1."""
        return int(self.folder.name[:6])

    @property
    def digest(self) -> str:
        """Of its manifest."""
        return self.folder.name[7:]

    def rules(self) -> Rules:
        """By which it was counted.

        Raises:
            FederationError: the file is gone or damaged.
        """
        try:
            found = json.loads((self.folder / _ABOUT).read_bytes())["rules"]
            return {str(k): str(v) for k, v in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.folder / _ABOUT, error) from None

    def fingerprints(self) -> Fingerprints:
        """Of its patients.

        Raises:
            FederationError: the file is gone or damaged.
        """
        arrays, _ = _arrays(self.folder / _PATIENTS)
        try:
            return Fingerprints(arrays["whole"].view(np.uint64), arrays["days"].view(np.uint64))
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(self.folder / _PATIENTS, error) from None

    def reference(self) -> Reference:
        """Its sticky counts; only the newest release has them.

        Raises:
            FederationError: the file is gone or damaged.
        """
        arrays, metadata = _arrays(self.folder / _COUNTS)
        try:
            return _reference(arrays, json.loads(metadata["tallies"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise _damaged(self.folder / _COUNTS, error) from None


def remembered(home_folder: Path) -> list[Remembered]:
    """Every release of this site that may have left, oldest first."""
    folder = home_folder / "released"
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return [Remembered(folder / name) for name in names if _RELEASED.fullmatch(name)]


def site_salt(home_folder: Path) -> bytes:
    """The 32 bytes that this site's fingerprints depend on; made at the first call.

    Raises:
        FederationError: they are damaged, or gone although releases are remembered by them.
    """
    path = home_folder / "released" / "salt"
    if not path.exists():
        if remembered(home_folder):
            raise _damaged(path, FileNotFoundError("it is gone"))
        _private(path.parent)
        write_atomic(path, secrets.token_bytes(32))
    salt = path.read_bytes()
    if len(salt) != 32:
        raise _damaged(path, ValueError(f"it has {len(salt)} bytes"))
    return salt


def keep_candidate(
    home_folder: Path, manifest_digest: str, *, reference: Reference, patients: Fingerprints, rules: Rules
) -> None:
    """Keep what `promote` needs of the release that was just prepared, in place of any other candidate."""
    folder = home_folder / "released"
    _private(folder)
    target = folder / f"candidate-{manifest_digest}"
    part = Path(tempfile.mkdtemp(dir=folder, prefix=".part-"))
    try:
        write_atomic(part / _ABOUT, json.dumps({"rules": dict(rules)}, sort_keys=True))
        hashes = {"whole": patients.whole.view(np.int64), "days": patients.days.view(np.int64)}
        write_atomic(part / _PATIENTS, encode_arrays(hashes, {}))
        arrays, tallies = _flat(reference)
        write_atomic(part / _COUNTS, encode_arrays(arrays, {"tallies": json.dumps(tallies)}))
        for other in folder.glob("candidate-*"):
            shutil.rmtree(other)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder)


def promote(home_folder: Path, manifest_digest: str) -> None:
    """Remember a prepared release as one that may have left; to be called before its bytes are put where they can leave.

    One rename: after a kill at any moment the release is remembered or it is not, and a second call finishes the work.
    A release that is remembered already stays where it is in the order: sending it again shows nothing new.

    Args:
        home_folder: of the site.
        manifest_digest: of the release that is about to leave.

    Raises:
        UsageError: what the release was made of is not at hand, since another one was prepared after it.
    """
    known = remembered(home_folder)
    if not any(r.digest == manifest_digest for r in known):
        folder = home_folder / "released"
        candidate = folder / f"candidate-{manifest_digest}"
        if not candidate.is_dir():
            raise UsageError(
                f"This site has no record of what release {manifest_digest[:16]} was made of",
                why="another release was prepared after it, or preview was interrupted",
                do="Run site-agent preview and approve again",
            )
        number = known[-1].number + 1 if known else 1
        os.replace(candidate, folder / f"{number:06}-{manifest_digest}")  # noqa: PTH105
        sync_folder(folder)
    for older in remembered(home_folder)[:-1]:
        (older.folder / _COUNTS).unlink(missing_ok=True)


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def _damaged(path: Path, error: Exception) -> FederationError:
    return FederationError(
        f"What this site remembers of an earlier release, {path}, cannot be used",
        why=str(error)[:200],
        do="Restore the folder from a backup: without it the next release could be subtracted from that one",
    )


def _arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    try:
        return decode_arrays(path.read_bytes())
    except (OSError, FederationError) as error:
        raise _damaged(path, error) from None


def _flat(reference: Reference) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """A reference as arrays and whole numbers. CURIEs hold no control character: a line for each."""
    counts = reference.counts
    arrays: dict[str, NDArray[Any]] = {
        "codes": np.frombuffer("\n".join(reference.codes).encode(), np.uint8),
        "pointer": np.asarray(counts.events.indptr, np.int64),
        "column": np.asarray(counts.events.indices, np.int32),
        "pairs": np.asarray(counts.events.data, np.int64),
        "patients": np.asarray(counts.pair_patients.data, np.int64),
        "code_patients": np.asarray(counts.code_patients, np.int64),
    }
    tallies = {k: v for k, v in asdict(counts).items() if isinstance(v, int)}
    return arrays, tallies | {"floor": reference.floor}


def _reference(arrays: Mapping[str, NDArray[Any]], tallies: dict[str, int]) -> Reference:
    text = arrays["codes"].tobytes().decode()
    codes = tuple(text.split("\n")) if text else ()
    shape = (len(codes), len(codes))
    parts = (arrays["column"], arrays["pointer"])
    events = sparse.csr_array((arrays["pairs"], *parts), shape=shape)
    patients = sparse.csr_array((arrays["patients"], *(p.copy() for p in parts)), shape=shape)
    if arrays["code_patients"].shape != (len(codes),):
        raise ValueError("its arrays do not fit together")
    floor = int(tallies.pop("floor"))
    return Reference(codes, PairCounts(events, patients, arrays["code_patients"], **tallies), floor)
