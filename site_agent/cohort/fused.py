"""The vectors that `cohort fuse` keeps: files beside those of the build that they belong to.

    cohort/fused/manifest.json   of which build, which way, which label, what it was measured to be worth
    cohort/fused/vectors.bin     float32, a unit row for each patient of the build; zero where nothing is known

A new build removes them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from protocol.errors import DataError, UsageError
from protocol.files import sync_folder, write_atomic
from site_agent.cohort.files import NOTICE, CohortFile, CohortStore, new_build
from site_agent.config import Home

_FOLDER = "fused"


class FusedManifest(BaseModel):
    """What the vectors are."""

    model_config = ConfigDict(frozen=True)
    notice: str = NOTICE
    build: str
    made: AwareDatetime
    kind: str
    label: str
    left_out: tuple[str, ...]
    encoder: str
    learnt_from: int
    report: dict[str, Any]
    files: dict[str, CohortFile]


@dataclass(frozen=True, eq=False)
class FusedVectors:
    """Kept vectors of a build's patients.

    Attributes:
        manifest: what they are.
        vectors: (n, k) unit rows, or zero rows, read where they lie.
    """

    manifest: FusedManifest
    vectors: npt.NDArray[np.float32]

    @classmethod
    def open(cls, home: Home, store: CohortStore) -> FusedVectors:
        """Those of this build.

        Raises:
            UsageError: there are none, or they are of another build.
            DataError: they are not as they were written.
        """
        folder = home.folder / "cohort" / _FOLDER
        try:
            manifest = FusedManifest.model_validate_json((folder / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise UsageError(
                "This site has no fused vectors", do="Run site-agent cohort fuse with --keep gated"
            ) from None
        except ValidationError as error:
            raise DataError(
                f"The fused vectors in {folder} cannot be read",
                why=str(error).splitlines()[0][:200],
                do="Run site-agent cohort fuse again",
            ) from None
        if manifest.build != store.folder.name:
            raise UsageError(
                "The fused vectors are of an earlier build", do="Run site-agent cohort fuse again"
            )
        told = manifest.files["vectors.bin"]
        path = folder / "vectors.bin"
        if not path.is_file() or path.stat().st_size != told.bytes:
            raise DataError(
                f"The file {path} is not as it was written", do="Run site-agent cohort fuse again"
            )
        return cls(manifest, np.memmap(path, dtype=told.dtype, mode="r", shape=told.shape))


def keep_fused(home: Home, store: CohortStore, vectors: npt.NDArray[np.float32], **told: Any) -> Path:
    """Write the vectors in the place of earlier ones; nothing is left of a run that did not end.

    Args:
        home: of the site.
        store: the build.
        vectors: (n, k) a row for each of its patients.
        told: fields of the manifest.
    """
    target = home.folder / "cohort" / _FOLDER
    with new_build(home) as writer:
        writer.whole("vectors.bin", vectors)
        manifest = FusedManifest(build=store.folder.name, files=writer.files, **told)
        write_atomic(writer.folder / "manifest.json", manifest.model_dump_json(indent=1))
        shutil.rmtree(target, ignore_errors=True)
        writer.folder.rename(target)
    sync_folder(target.parent)
    return target
