"""The tables of a release folder: `clusters.parquet` and `evidence.parquet`, written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coordinator.mapping import NO_CLUES, Candidate, Clues, Evidence, KnownPair, MappedCode, MappingSet

CLUSTERS: Final = "clusters.parquet"
EVIDENCE: Final = "evidence.parquet"
CLUE_STEP: Final = 0.5
SHARE_STEP: Final = 0.05
"""Log odds and shares are published in these steps: enough to see what decided. Finer ones would tell every site what another
released to the coordinator alone."""
_SUPPORT: Final = "support"
"""How common a code is: published as for (2), against (-2) or neither, since its size tells a site's patient counts."""
_SIDE: Final = 2.0

_CANDIDATES: Final = pa.list_(
    pa.struct({"code": pa.string(), "name": pa.string(), "share": pa.float64(), "similarity": pa.float32()})
)
_BY_SITE: Final = pa.list_(pa.struct({"site": pa.string(), "members": pa.int32(), "cosine": pa.float32()}))
_PAIRS: Final = pa.list_(
    pa.struct(
        {
            "left": pa.string(),
            "right": pa.string(),
            "relation": pa.string(),
            "weight": pa.float64(),
            "source": pa.string(),
        }
    )
)
_LOG_ODDS: Final = pa.map_(pa.string(), pa.float32())


def clusters_table(mappings: MappingSet) -> pa.Table:
    """One row a code: name, cluster, probability, standard code, candidates and evidence by site."""
    rows = mappings.rows
    return pa.table(
        {
            "code": pa.array([r.code for r in rows], pa.string()),
            "name": pa.array([r.name for r in rows], pa.string()),
            "category": pa.array([r.category for r in rows], pa.string()),
            "sites": pa.array([list(r.sites) for r in rows], pa.list_(pa.string())),
            "cluster": pa.array([r.cluster for r in rows], pa.int32()),
            "posterior": pa.array([r.posterior for r in rows], pa.float32()),
            "probability": pa.array([r.probability for r in rows], pa.float32()),
            "anchored": pa.array([r.anchored for r in rows], pa.bool_()),
            "standard_code": pa.array([r.standard_code for r in rows], pa.string()),
            "similarity": pa.array([r.similarity for r in rows], pa.float32()),
            "kinship": pa.array([r.kinship or "" for r in rows], pa.string()),
            "candidates": _structs(
                [[(c.code, c.name, shown_share(c.share), c.similarity) for c in r.candidates] for r in rows],
                _CANDIDATES,
            ),
            "evidence": by_site(rows),
        }
    )


def evidence_table(mappings: MappingSet) -> pa.Table:
    """One row a code and candidate, as these follow each other in `clusters_table`.

    What each clue adds, the latent clue by source, and the known pairs that were used.
    """
    every = [(r.code, rank, c) for r in mappings.rows for rank, c in enumerate(r.candidates, start=1)]
    pairs = [[(p.left, p.right, p.relation, p.weight, p.source) for p in c.pairs] for _, _, c in every]
    return pa.table(
        {
            "code": pa.array([code for code, _, _ in every], pa.string()),
            "candidate": pa.array([c.code for _, _, c in every], pa.string()),
            "rank": pa.array([rank for _, rank, _ in every], pa.int32()),
            "clues": _log_odds([shown_clues(c.clues) for _, _, c in every]),
            "sources": _log_odds([[s for s in shown_clues(c.sources) if s[1]] for _, _, c in every]),
            "pairs": _structs(pairs, _PAIRS),
        }
    )


def by_site(rows: Iterable[MappedCode]) -> pa.Array:
    """The column `evidence` of `clusters.parquet`."""
    return _structs([[(e.site, e.members, e.cosine) for e in r.evidence] for r in rows], _BY_SITE)


def read_rows(clusters: pa.Table, evidence: pa.Table) -> Iterator[dict[str, Any]]:
    """The fields of `MappedCode` of each row.

    Raises:
        KeyError: a column is missing, or the candidates of the two tables are not the same.
        pa.ArrowException: a column is of another type.
    """
    candidates, owner = _tuples(clusters["candidates"], _CANDIDATES)
    by_rank = zip(_values(evidence["code"]), _values(evidence["candidate"]), strict=True)
    codes = _values(clusters["code"])
    if [(codes[i], c[0]) for i, c in zip(owner, candidates, strict=False)] != list(by_rank):
        raise KeyError("candidates")
    clues, sources = _maps(evidence["clues"]), _maps(evidence["sources"])
    pairs = _grouped([KnownPair(*p) for p in _tuples(evidence["pairs"], _PAIRS)[0]], evidence["pairs"])
    every = [
        Candidate(code, name, share, similarity, clue, known, source)
        for (code, name, share, similarity), clue, known, source in zip(
            candidates, clues, pairs, sources, strict=True
        )
    ]
    found = _grouped(every, clusters["candidates"])
    sites = [Evidence(*e) for e in _tuples(clusters["evidence"], _BY_SITE)[0]]
    columns = {
        **{name: _values(clusters[name]) for name in _PLAIN},
        "sites": _grouped(_values(clusters["sites"].combine_chunks().flatten()), clusters["sites"]),
        "candidates": found,
        "evidence": _grouped(sites, clusters["evidence"]),
    }
    for values in zip(*columns.values(), strict=True):
        fields = dict(zip(columns, values, strict=True))
        given = fields["anchored"] or fields["code"] == fields["standard_code"]
        yield fields | {"given": given, "kinship": fields["kinship"] or None}


_PLAIN: Final = (
    "code", "name", "category", "cluster", "posterior", "probability", "anchored", "standard_code", "similarity", "kinship",
)  # fmt: skip

# Whole columns at a time from here on: pyarrow takes a microsecond for a value by itself, and there are millions.


def _structs(lists: Sequence[Sequence[tuple[Any, ...]]], kind: pa.ListType) -> pa.Array:
    """A column of lists of structs."""
    struct = kind.value_type
    flat = list(zip(*(item for items in lists for item in items), strict=True)) or [()] * struct.num_fields
    fields = [struct.field(i) for i in range(struct.num_fields)]
    arrays = [pa.array(values, field.type) for values, field in zip(flat, fields, strict=True)]
    values = pa.StructArray.from_arrays(arrays, fields=fields)
    return pa.ListArray.from_arrays(_offsets(lists), values).cast(kind)


def _log_odds(lists: Sequence[Sequence[tuple[str, float]]]) -> pa.Array:
    keys = pa.array([key for items in lists for key, _ in items], pa.string())
    values = pa.array([value for items in lists for _, value in items], pa.float32())
    return pa.MapArray.from_arrays(_offsets(lists), keys, values)


def _offsets(lists: Sequence[Sequence[Any]]) -> pa.Array:
    return pa.array(np.cumsum([0, *(len(items) for items in lists)]), pa.int32())


def _tuples(column: pa.ChunkedArray, kind: pa.ListType) -> tuple[list[tuple[Any, ...]], list[int]]:
    """All structs of a column of lists, and the row that each is of."""
    whole = column.cast(kind).combine_chunks()
    values, n_fields = whole.flatten(), kind.value_type.num_fields
    rows = list(zip(*(_values(values.field(i)) for i in range(n_fields)), strict=True))
    return rows, pc.list_parent_indices(whole).to_numpy().tolist()


def _grouped(items: Sequence[Any], column: pa.ChunkedArray) -> list[tuple[Any, ...]]:
    """Flat items by the lists of a column."""
    ends = np.cumsum([0, *pc.list_value_length(column).to_numpy().tolist()]).tolist()
    return [tuple(items[a:b]) for a, b in pairwise(ends)]


def _maps(column: pa.ChunkedArray) -> list[Clues]:
    whole = column.cast(_LOG_ODDS).combine_chunks()
    offsets = whole.offsets.to_numpy()
    first, last = int(offsets[0]), int(offsets[-1])
    keys, values = (_values(part.slice(first, last - first)) for part in (whole.keys, whole.items))
    ends = (offsets - first).tolist()
    return [dict(zip(keys[a:b], values[a:b], strict=True)) if a < b else NO_CLUES for a, b in pairwise(ends)]


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_string(whole.type):
        return list(whole.to_numpy(zero_copy_only=False).tolist())
    # Equal texts become one object: a release names the same few thousand standard codes over and over.
    coded = whole.dictionary_encode()
    known = coded.dictionary.to_pylist()
    return [known[i] for i in coded.indices.to_numpy(zero_copy_only=False).tolist()]


def shown_share(share: float) -> float:
    """As it is published."""
    return round(round(share / SHARE_STEP) * SHARE_STEP, 2)


def shown_clues(clues: Clues) -> list[tuple[str, float]]:
    """As they are published."""
    return [
        (
            name,
            _SIDE * max(-1, min(1, round(value / _SIDE)))
            if name == _SUPPORT
            else round(value / CLUE_STEP) * CLUE_STEP,
        )
        for name, value in clues.items()
    ]
