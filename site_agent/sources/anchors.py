"""Anchors: a site's own word that a local code means a code of the standard system."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from protocol.errors import DataError
from protocol.vocabulary import curie


def read_anchors(path: Path, *, system: str, standard: str) -> dict[str, str]:
    """Local CURIE -> standard CURIE, from a CSV with the columns local_code and standard_code.

    A code without a prefix belongs to `system` (local) or to `standard`.

    Raises:
        DataError: no file, a missing column, an empty cell, or one local code with two meanings.
    """
    try:
        with pa_csv.open_csv(path) as probe:
            names = probe.schema.names
        text = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        table = pa_csv.read_csv(path, convert_options=text)
    except FileNotFoundError:
        raise DataError(f"There is no anchor file {path}", do="Correct data.anchors in site.toml") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"The anchor file {path} cannot be read", why=str(error).splitlines()[0][:200]
        ) from None
    for column in ("local_code", "standard_code"):
        if column not in names:
            raise DataError(
                f"The anchor file {path} has no column {column!r}",
                why=f"its columns are {', '.join(map(repr, names[:12]))}",
                do="Give it the columns local_code and standard_code",
            )
    anchors: dict[str, str] = {}
    rows = zip(table["local_code"].to_pylist(), table["standard_code"].to_pylist(), strict=True)
    for line, (local, target) in enumerate(rows, start=2):
        if not (local or "").strip() or not (target or "").strip():
            raise DataError(f"Line {line} of {path} has an empty cell", do="Fill it or remove the line")
        key, value = _with_prefix(local, system), _with_prefix(target, standard)
        if not value.startswith(f"{standard}:"):
            raise DataError(
                f"Line {line} of {path} maps to {value}, which is not a code of {standard}",
                do=f"Anchors name codes of the study's standard system {standard}",
            )
        if anchors.setdefault(key, value) != value:
            raise DataError(
                f"Line {line} of {path} maps {key} to {value}, an earlier line to {anchors[key]}",
                do="Keep the right one of the two lines",
            )
    return anchors


def _with_prefix(text: str, prefix: str) -> str:
    text = text.strip()
    return curie(prefix, text.removeprefix(f"{prefix}:"))
