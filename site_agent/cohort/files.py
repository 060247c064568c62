"""The cohort files of a site: written whole or not at all, for this user alone, read where they lie.

cohort/current.json names the build that counts, a folder beside it:

    manifest.json          what it was made of, and every file with its size and digest
    vectors.bin            float32, a unit row a patient, of harmonised vectors: comparable between sites; a zero row for one
                           without any code in the release
    joined.bin             float32, likewise, of harmonised and own vectors side by side: comparable within this site alone;
                           absent without own vectors
    patients.bin           int64 patient numbers
    first, last, seen.bin  days: first and last event in the window, last event of all
    birth, death, sex.bin  of the patients table: days, and places in the manifest's `sexes`
    start, code, days.bin  codes of each patient, and on how many days of the window
    code_vectors.bin       float32, of each code what the patients' joined vectors are sums of; zero for codes without one
    codes.parquet          the site's codes: names, standard codes, patients, weights, and which vectors they have
    labels.parquet         the site's own identifiers of patients, where they are texts
    hnsw.bin, hnsw_joined.bin  the graphs over both, where hnswlib was installed
    README.txt             that nothing of this may leave
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from scipy import sparse

from protocol.errors import DataError, UsageError
from protocol.files import remove_parts, sync_folder, write_atomic
from site_agent.config import Home

NOTICE = "Data of single patients. This file must not leave the site, nor anything that was copied from it."
NO_DAY = int(np.iinfo(np.int32).min)
_ANEW = "Run site-agent cohort build again"
_CHUNK = 1 << 20
GRAPHS = {"vectors": "hnsw.bin", "joined": "hnsw_joined.bin"}
"""Kind of patient vectors -> the file of the graph over them."""
Space = Literal["harmonised", "joined"]
"""Which vectors patients are compared by: the release's, comparable between sites, or with the site's own beside them."""


class CohortFile(BaseModel):
    """One file: its size, digest, and what its bytes are."""

    model_config = ConfigDict(frozen=True)
    bytes: int
    sha256: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


class CohortManifest(BaseModel):
    """What a build was made of."""

    model_config = ConfigDict(frozen=True)
    notice: str = NOTICE
    schema_version: Literal[2] = 2
    site: str
    study: str
    release: int
    release_digest: str
    made: AwareDatetime
    software: str
    first: date | None
    last: date | None
    data_end: date
    patients: int
    without_vector: int
    outside: int
    events: int
    covered: int
    codes: int
    codes_with_vector: int
    codes_with_own: int = 0
    codes_without_any: int = 0
    dim: int
    own_dim: int = 0
    without_any_vector: int = 0
    covered_by_any: int = 0
    sexes: tuple[str, ...] = ()
    with_birth: int = 0
    with_death: int = 0
    graph: dict[str, int] = {}
    files: dict[str, CohortFile]


class Writer:
    """Writes arrays and files into a folder that does not count yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, CohortFile] = {}

    @contextmanager
    def array(self, name: str, dtype: npt.DTypeLike, columns: int = 0) -> Iterator[Appender]:
        """A file to which parts of one array are added."""
        kind = np.dtype(dtype).newbyteorder("<")
        with self._open(name) as stream:
            part = Appender(stream, kind)
            yield part
            stream.flush()
            os.fsync(stream.fileno())
        shape = (part.cells // columns, columns) if columns else (part.cells,)
        self.files[name] = CohortFile(bytes=part.size, sha256=part.digest(), dtype=kind.str, shape=shape)

    def whole(self, name: str, values: npt.NDArray[Any]) -> None:
        """An array at once."""
        with self.array(name, values.dtype, values.shape[1] if values.ndim == 2 else 0) as part:
            part.add(values)

    def table(self, name: str, table: pa.Table) -> None:
        """A Parquet file."""
        with self._open(name) as stream:
            pq.write_table(table.replace_schema_metadata({"notice": NOTICE}), stream)
        self.known(name)

    def known(self, name: str) -> None:
        """Take in a file that something else wrote into the folder."""
        path = self.folder / name
        path.chmod(0o600)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        self.files[name] = CohortFile(bytes=path.stat().st_size, sha256=found)

    def _open(self, name: str) -> BinaryIO:
        return os.fdopen(os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


class Appender:
    """Parts of one array on their way into a file."""

    def __init__(self, stream: BinaryIO, kind: np.dtype[Any]) -> None:
        self._stream, self._kind, self._hash = stream, kind, hashlib.sha256()
        self.size = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add values in order of rows."""
        data = np.ascontiguousarray(values, dtype=self._kind).data.cast("B") if values.size else b""
        self._stream.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def cells(self) -> int:
        """How many numbers there are."""
        return self.size // self._kind.itemsize

    def digest(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._hash.hexdigest()


@contextmanager
def new_build(home: Home) -> Iterator[Writer]:
    """A folder to write a build into; nothing of it is left if the block ends with an error or without `publish`."""
    root = _root(home)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    remove_parts(root)
    folder = Path(tempfile.mkdtemp(dir=root, prefix=".part-"))
    try:
        yield Writer(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(home: Home, writer: Writer, manifest: CohortManifest) -> Path:
    """Make a written build the one that counts; earlier ones are removed afterwards."""
    write_atomic(writer.folder / "README.txt", NOTICE + "\n")
    text = manifest.model_dump_json(indent=1)
    write_atomic(writer.folder / "manifest.json", text)
    root = _root(home)
    target = root / f"v{manifest.release}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    writer.folder.rename(target)
    sync_folder(root)
    write_atomic(root / "current.json", json.dumps({"notice": NOTICE, "build": target.name}))
    for other in root.iterdir():
        if other.is_dir() and other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


@dataclass(frozen=True, eq=False)
class CohortStore:
    """A build: patients in rows 0 to n - 1, codes in rows of `codes`. Arrays stay on the disk until they are read."""

    folder: Path
    manifest: CohortManifest

    @classmethod
    def open(cls, home: Home) -> CohortStore:
        """The build that counts.

        Raises:
            UsageError: there is none, or other users may read it.
            DataError: it is not whole.
        """
        root = _root(home)
        try:
            name = json.loads((root / "current.json").read_bytes())["build"]
        except FileNotFoundError:
            raise UsageError(
                "This site has no patient vectors", do="Run site-agent cohort build first"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"The file {root / 'current.json'} is damaged", do=_ANEW) from None
        folder = root / Path(str(name)).name
        if any(path.is_dir() and path.stat().st_mode & 0o077 for path in (root, folder)):
            raise UsageError(
                f"Other users may read {folder}",
                why="it holds data of single patients",
                do=f"Run chmod -R go= {root}, and find out who had access",
            )
        try:
            manifest = CohortManifest.model_validate_json((folder / "manifest.json").read_bytes())
            for file, told in manifest.files.items():
                if (folder / file).stat().st_size != told.bytes:
                    raise DataError(f"The file {folder / file} is not as it was written", do=_ANEW)
        except (OSError, ValidationError) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"The patient vectors in {folder} cannot be read", why=why, do=_ANEW) from None
        return cls(folder, manifest)

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array of the build, read where it lies."""
        told = self.manifest.files[f"{name}.bin"]
        if not told.bytes:
            return np.empty(told.shape, told.dtype)
        return np.memmap(self.folder / f"{name}.bin", dtype=told.dtype, mode="r", shape=told.shape)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self.manifest.files

    def intact(self, name: str) -> Path:
        """A file whose digest was compared just now.

        Raises:
            DataError: it is another one than was written.
        """
        path = self.folder / name
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.manifest.files[name].sha256:
            raise DataError(f"The file {path} is not as it was written", do=_ANEW)
        return path

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """(n, d) unit rows, or zero rows: harmonised, and so comparable between sites."""
        return self.array("vectors")

    @cached_property
    def joined(self) -> npt.NDArray[np.float32]:
        """(n, d + q) unit rows, or zero rows: with the site's own vectors, if it made any; else the harmonised ones."""
        return self.array("joined") if self.has("joined.bin") else self.vectors

    def space(self, wanted: Space) -> Space:
        """The space that is wanted, or the harmonised one where the build made no own vectors."""
        return wanted if self.has("joined.bin") else "harmonised"

    def of(self, space: Space) -> npt.NDArray[np.float32]:
        """The patients' vectors in a space."""
        return self.joined if space == "joined" else self.vectors

    @cached_property
    def codes(self) -> Mapping[str, list[Any]]:
        """Columns of the code list: code, name, standard, patients, weight, vector, own."""
        columns: Mapping[str, list[Any]] = pq.read_table(self.folder / "codes.parquet").to_pydict()
        return columns

    @cached_property
    def incidence(self) -> sparse.csr_array[Any, tuple[int, int]]:
        """(n, codes) on how many days of the window each patient has each code."""
        start, code, days = (self.array(name) for name in ("start", "code", "days"))
        shape = (len(start) - 1, len(self.codes["code"]))
        return sparse.csr_array((np.asarray(days), np.asarray(code), np.asarray(start)), shape=shape)

    @cached_property
    def labels(self) -> Mapping[int, str]:
        """Patient number -> the site's own text for the patient; empty where patients are numbers."""
        if not self.has("labels.parquet"):
            return {}
        table = pq.read_table(self.folder / "labels.parquet")
        return dict(zip(table["patient"].to_pylist(), table["label"].to_pylist(), strict=True))

    def label(self, row: int) -> str:
        """What the site calls a patient."""
        number = int(self.array("patients")[row])
        return self.labels.get(number, str(number))


def _root(home: Home) -> Path:
    return home.folder / "cohort"
