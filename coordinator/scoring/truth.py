"""What a release is scored against, and with: truth and pair files, and the published folder itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocol.errors import DataError, FederationError, ProtocolError
from protocol.keys import PublicKeys
from protocol.messages import PublishedManifest
from protocol.published import MANIFEST, verify_folder
from protocol.study import StudySpec
from protocol.vocabulary import curie

CODE_SYSTEM: Final = "system"
_LABELS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, eq=False)
class Published:
    """What of a published release can be scored.

    Attributes:
        codes: n CURIEs.
        vectors: (n, d) unit rows.
        cluster: (n,) number of each code's cluster.
        anchored: (n,) bool, a site gave its standard code.
        standard_code: (n,) CURIEs, or empty.
        standard: prefix of the standard system.
        types: category of each code system of the study, by prefix.
        manifest: the release's manifest.
        signed: whether the signature was checked with keys that were given, not with the folder's own.
    """

    codes: tuple[str, ...]
    vectors: NDArray[np.float64]
    cluster: NDArray[np.int64]
    anchored: NDArray[np.bool_]
    standard_code: tuple[str, ...]
    standard: str
    types: Mapping[str, str]
    manifest: PublishedManifest
    signed: bool

    @property
    def systems(self) -> tuple[str, ...]:
        """(n,) the code system of each code."""
        return tuple(code.partition(":")[0] for code in self.codes)

    @property
    def touched(self) -> NDArray[np.bool_]:
        """(n,) codes that an anchor gives away: anchored ones, and standard codes that something is anchored to.

        They share a row of the fit from the start.
        """
        given = {t for t, anchored in zip(self.standard_code, self.anchored, strict=True) if anchored}
        return np.array(self.anchored | [code in given for code in self.codes], dtype=bool)

    def only(self, kept: NDArray[np.bool_]) -> Published:
        """The release of some of its codes."""
        return replace(
            self,
            codes=tuple(c for c, keep in zip(self.codes, kept, strict=True) if keep),
            vectors=self.vectors[kept],
            cluster=self.cluster[kept],
            anchored=self.anchored[kept],
            standard_code=tuple(c for c, keep in zip(self.standard_code, kept, strict=True) if keep),
        )


@dataclass(frozen=True)
class Truth:
    """What codes mean.

    Attributes:
        concept: CURIE -> concept; equal concept, equal meaning.
        columns: CURIE -> the row's other columns by name.
    """

    concept: Mapping[str, str]
    columns: Mapping[str, Mapping[str, str]]

    def group(self, code: str, by: str) -> str:
        """The code's system, or what a column of the truth says of it."""
        prefix = code.partition(":")[0]
        return prefix if by == CODE_SYSTEM else self.columns[code].get(by, "") or f"{by} not given"

    def type_of(self, code: str, types: Mapping[str, str]) -> str:
        """What kind of thing a code is: column `type` of the truth, else the study's category of its system."""
        prefix = code.partition(":")[0]
        return self.columns.get(code, {}).get("type", "") or types.get(prefix, "")


@dataclass(frozen=True)
class LabelledPair:
    """Two codes that are known to be, or not to be, of a kind such as similar or related."""

    one: str
    other: str
    kind: str
    positive: bool


@dataclass(frozen=True)
class GradedPair:
    """Two codes whose similarity is known as a number."""

    one: str
    other: str
    kind: str
    similarity: float


def read_published(folder: Path, trust: PublicKeys | None = None) -> Published:
    """Read a published folder, after verifying it.

    Args:
        folder: `releases/vN`.
        trust: the coordinator's keys. Without them the folder's own are taken: damage is found, forgery is not.

    Raises:
        ProtocolError: the folder is not what its manifest says.
        EnvelopeError: the signature does not hold.
    """
    keys = trust or _own_keys(folder)
    manifest = verify_folder(folder, keys)
    try:
        clusters = pq.read_table(folder / "clusters.parquet")
        embeddings = pq.read_table(folder / "embeddings.parquet")
        codes = clusters["code"].to_pylist()
        place = {code: i for i, code in enumerate(embeddings["code"].to_pylist())}
        vectors = np.stack(embeddings["vector"].combine_chunks().to_numpy(zero_copy_only=False))
        vectors = vectors[[place[code] for code in codes]].astype(np.float64)
        study = StudySpec.model_validate(manifest.study)
        return Published(
            codes=tuple(codes),
            vectors=vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12),
            cluster=clusters["cluster"].to_numpy().astype(np.int64),
            anchored=clusters["anchored"].to_numpy(zero_copy_only=False).astype(bool),
            standard_code=tuple(clusters["standard_code"].to_pylist()),
            standard=study.standard,
            types={s.prefix: s.category for s in study.code_systems},
            manifest=manifest,
            signed=trust is not None,
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(
            f"The tables of the release in {folder} cannot be read",
            why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
            do="Fetch the release again",
        ) from None


def _own_keys(folder: Path) -> PublicKeys:
    try:
        return PublicKeys.model_validate(json.loads((folder / MANIFEST).read_bytes())["signed_by"])
    except FileNotFoundError:
        raise ProtocolError(
            f"{folder} is no published release", why="it has no manifest.json", do="Name a folder releases/vN"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError(f"The manifest in {folder} does not follow the protocol") from None


def read_truth(path: Path, release: Published) -> Truth:
    """CSV with the columns system, code, concept; others are kept, and may serve as groups.

    Raises:
        DataError: no such file or column, a bad row, two concepts for one code, or no code of the release.
    """
    concept: dict[str, str] = {}
    columns: dict[str, dict[str, str]] = {}
    line_of: dict[str, int] = {}
    for line, row in _rows(path, "truth file", ("system", "code", "concept")):
        code = _curie(path, "truth file", line, row["system"], row["code"])
        meaning = row["concept"].strip()
        if not meaning:
            raise DataError(
                f"Line {line} of the truth file {path} has no concept",
                why=f"code {code} would have an unknown meaning",
                do="Give it a concept or remove the row",
            )
        if concept.setdefault(code, meaning) != meaning:
            raise DataError(
                f"Line {line} of the truth file {path} gives {code} the concept {meaning!r}",
                why=f"line {line_of[code]} gives it {concept[code]!r}",
                do="Keep one of the two rows",
            )
        line_of.setdefault(code, line)
        columns.setdefault(code, {k: v.strip() for k, v in row.items()})
    if not concept.keys() & set(release.codes):
        example = next(iter(concept), "nothing")
        raise DataError(
            f"The truth file {path} names no code of the release",
            why=f"it has for example {example}, the release {release.codes[0] if release.codes else 'nothing'}",
            do="Write codes as in clusters.parquet: the part before the colon is the system",
        )
    return Truth(concept, columns)


def read_pairs(path: Path, release: Published) -> tuple[list[LabelledPair], list[GradedPair]]:
    """CSV with the columns system_1, code_1, system_2, code_2, kind [, label] [, similarity].

    A row with a similarity and no label is graded; any other is labelled, positive where no label is given.

    Raises:
        DataError: no such file or column, a bad row, or no pair of the release's codes.
    """
    labelled: list[LabelledPair] = []
    graded: list[GradedPair] = []
    what = "pair file"
    for line, row in _rows(path, what, ("system_1", "code_1", "system_2", "code_2", "kind")):
        one = _curie(path, what, line, row["system_1"], row["code_1"])
        other = _curie(path, what, line, row["system_2"], row["code_2"])
        kind, label, grade = (row.get(name, "").strip() for name in ("kind", "label", "similarity"))
        if one == other or not kind:
            why = f"it pairs {one} with itself" if one == other else "its kind is empty"
            raise DataError(
                f"Line {line} of the pair file {path} is no pair", why=why, do="Correct or remove the row"
            )
        if grade:
            graded.append(GradedPair(one, other, kind, _number(path, line, grade)))
        if label or not grade:
            if label and label.casefold() not in _LABELS:
                raise DataError(
                    f"Line {line} of the pair file {path} has the label {label!r}",
                    why="a label is 1 for a pair of this kind and 0 for a pair that is known not to be",
                    do="Correct the row",
                )
            labelled.append(LabelledPair(one, other, kind, _LABELS.get(label.casefold(), True)))
    held = set(release.codes)
    named = [{p.one, p.other} for p in labelled] + [{p.one, p.other} for p in graded]
    if not any(codes <= held for codes in named):
        raise DataError(
            f"The pair file {path} has no pair of two codes of the release",
            do="Write codes as in clusters.parquet: the part before the colon is the system",
        )
    return labelled, graded


def _rows(path: Path, what: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with the number of the line that each ends on."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in needed if name not in (reader.fieldnames or ())]
            if lacking:
                raise DataError(
                    f"The {what} {path} has no column {lacking[0]!r}",
                    why=f"its first line has {', '.join(reader.fieldnames or ()) or 'nothing'}",
                    do=f"It needs {', '.join(needed)}",
                )
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"Line {reader.line_num} of the {what} {path} has another number of cells than its first",
                        why="a comma inside a value needs quotes",
                        do="Correct the row",
                    )
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(
            f"The {what} {path} cannot be read",
            why=str(reason),
            do="Give a CSV file in UTF-8 with a header line",
        ) from None


def _curie(path: Path, what: str, line: int, prefix: str, code: str) -> str:
    try:
        return curie(prefix.strip(), code)
    except FederationError as error:
        raise DataError(
            f"Line {line} of the {what} {path} names no code", why=error.what, do="Correct or remove the row"
        ) from None


def _number(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(
            f"Line {line} of the pair file {path} has the similarity {text!r}",
            why="a similarity is a finite number",
            do="Correct the row, or leave the cell empty",
        )
    return value
