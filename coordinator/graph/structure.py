"""Where codes stand in the smoothed matrix of relations, and the score that ranks pairs of codes by all that is known of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from protocol.errors import ProtocolError, UsageError

STRUCTURE: Final = "graph/structure.parquet"
ABOUT: Final = b"smile-federation"
"""Metadata of a table of `coordinator graph build`: from which study and sums it is."""
_WEIGHT: Final = 3.0
_STRUCTURE: Final = 0.5

Floats = npt.NDArray[np.float64]


def relatedness(cosine: Floats, weight: Floats, structure: Floats | None = None) -> Floats:
    """The score of pairs of codes: cosine + 3 weight + 0.5 structure.

    Args:
        cosine: of the codes' vectors, of any shape.
        weight: of the regression, of that shape; 0 where it did not select the pair.
        structure: cosine of the codes' places in the smoothed matrix, 0 where that lacks one; None if there is no such matrix.

    Both factors were chosen on one draw of real data; what they gain on others: docs/explanation/knowledge-graph.md.
    """
    score = cosine + _WEIGHT * weight
    return np.asarray(score if structure is None else score + _STRUCTURE * structure)


def unit_rows(points: npt.ArrayLike) -> Floats:
    """Rows of unit length; zero rows stay."""
    rows = np.asarray(points, dtype=np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norm > 0.0, norm, 1.0))


def structure_table(codes: Sequence[str], points: Floats, about: dict[str, object] | None = None) -> pa.Table:
    """`structure.parquet`: a row a code that has a place, by code.

    Args:
        codes: (n,).
        points: (n, k) rows of unit length; a zero row is left out.
        about: study, sums, sites and test, for a table that stays with the coordinator.
    """
    kept = sorted(np.flatnonzero(points.any(axis=1)).tolist(), key=lambda i: codes[i])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(points[kept].ravel(), pa.float32()), points.shape[1])
    table = pa.table({"code": pa.array([codes[i] for i in kept], pa.string()), "vector": vectors})
    return table if about is None else table.replace_schema_metadata({ABOUT: json.dumps(about).encode()})


def places(table: pa.Table, codes: Sequence[str]) -> Floats:
    """(n, k) rows of these codes; zero for a code that has none.

    Raises:
        ProtocolError: it is no such table.
    """
    try:
        vectors = table["vector"].combine_chunks()
        points = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), vectors.type.list_size)
        at = {code: i for i, code in enumerate(table["code"].to_pylist())}
    except (KeyError, AttributeError, ValueError) as error:
        raise ProtocolError(
            "The table of structure has another form than this software writes",
            why=f"its columns are {', '.join(table.column_names)} ({type(error).__name__})",
            do="Read it with the software that wrote it",
        ) from None
    found = np.zeros((len(codes), points.shape[1]))
    here = [i for i, code in enumerate(codes) if code in at]
    found[here] = points[[at[codes[i]] for i in here]]
    if not np.isfinite(found).all():
        raise ProtocolError("The table of structure holds a number that is none", do="Get or make it again")
    return unit_rows(found)


def read_structure(tests: Path, codes: Sequence[str]) -> Floats | None:
    """The places of a release's codes, from the table beside that of the tests; None if the tests were not smoothed.

    Args:
        tests: of `related.parquet`.
        codes: of a release.

    Raises:
        UsageError: the table cannot be read, or is from other sums than the tests.
        ProtocolError: it is of another form.
    """
    path = tests.with_name(Path(STRUCTURE).name)
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        of_tests = pq.read_schema(tests).metadata[ABOUT]
        same = (table.schema.metadata or {}).get(ABOUT) == of_tests
    except (OSError, pa.ArrowException, KeyError, TypeError) as error:
        raise UsageError(
            f"The structure of relations {path} cannot be read",
            why=str(error)[:200],
            do="Make it again with coordinator graph build, or delete it",
        ) from None
    if not same:
        raise UsageError(
            f"The structure of relations {path} is from other sums than {tests.name} beside it",
            do="Make both again with coordinator graph build",
        )
    return places(table, codes)
