"""From what the sources assert to one row a pair: kin from hierarchies, both directions as one, contradictions apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.assertions import IS_A, RELATED, SAME_AS, SIMILAR, Assertions
from coordinator.knowledge.hierarchy import kin, parent_matrix, without_cycles
from coordinator.knowledge.systems import Systems

PAIRS: Final = pa.schema(
    [
        ("code_1", pa.string()),
        ("code_2", pa.string()),
        ("kind", pa.string()),
        ("label", pa.bool_()),
        ("weight", pa.float64()),
        ("sources", pa.list_(pa.string())),
    ]
)
"""pairs.parquet: code_1 < code_2 as text; kind `similar` or `related:KIND`; the greatest weight of the sources."""

LINKS: Final = pa.schema([(n, pa.string()) for n in ("code_1", "code_2", "relation", "source")])
"""links.parquet: `is-a`, code_1 the narrower one, within the source that says so; and `same-as`."""

_SAID: Final = pa.schema([*(PAIRS.field(n) for n in PAIRS.names[:5]), pa.field("source", pa.string())])

NOT_IS_A: Final = "an is-a that is denied: it says neither similar nor not"
CYCLE: Final = "an is-a inside a cycle"
UNKNOWN: Final = "a code of a system that the study does not have"
CATEGORIES: Final = "similar codes of different categories"


@dataclass(frozen=True)
class KinOptions:
    """How a source's hierarchy becomes pairs; see `hierarchy.kin`."""

    shared_depth: int
    weight: float
    most_per_family: int
    seed: int


@dataclass(frozen=True, eq=False)
class Said:
    """What one source says of pairs of the study's codes.

    Attributes:
        table: code_1 < code_2, kind, label, weight, source.
        links: of schema `LINKS`: the hierarchy, codes of other systems included, and what is the same.
        skipped: reason -> rows or pairs that were left out.
        unknown: prefix that the study does not have -> codes of it.
        notes: sentences for the report.
    """

    table: pa.Table
    links: pa.Table
    skipped: Mapping[str, int]
    unknown: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """All sources' pairs.

    Attributes:
        pairs: of schema `PAIRS`, sorted, without contradictions.
        contradictions: of schema `PAIRS`, both labels of each pair on which sources disagree.
    """

    pairs: pa.Table
    contradictions: pa.Table


def pairs_of(assertions: Assertions, systems: Systems, name: str, options: KinOptions) -> Said:
    """The pairs of one source: as asserted, and as kin of its hierarchy.

    A hierarchy counts within its source only: links of two sources together would make cousins that neither knows.
    """
    table, skipped = assertions.table, Counter(assertions.skipped)
    hierarchical = pc.equal(table["relation"], IS_A)
    flat = table.filter(pc.invert(hierarchical))
    kind = pc.if_else(pc.equal(flat["relation"], SAME_AS), SIMILAR, flat["relation"])
    links = table.filter(hierarchical)
    skipped[NOT_IS_A] += int(pc.sum(pc.invert(links["label"])).as_py() or 0)
    kinship, notes = _kinship(links.filter(links["label"]), systems, options, skipped)
    columns = [flat["code_1"], flat["code_2"], kind, flat["label"], flat["weight"], flat["source"]]
    asserted = pa.table([c.combine_chunks() for c in columns], schema=_SAID)
    derived = kinship.append_column("source", pa.repeat(pa.scalar(f"{name} (kin)"), kinship.num_rows))
    said, unknown = _of_study(asserted, systems, skipped)
    unknown.update(_unknown_codes(links, systems))
    both = pa.concat_tables([said, derived.cast(_SAID)])
    kept = _within_category(both, systems, skipped)
    return Said(
        kept,
        _links(table, name),
        {k: v for k, v in sorted(skipped.items()) if v},
        dict(sorted(unknown.items())),
        notes,
    )


def _links(table: pa.Table, name: str) -> pa.Table:
    """What the source says of broader, narrower and same codes; one source, whichever of its parts says it."""
    true = table.filter(
        pc.and_(table["label"], pc.is_in(table["relation"], pa.array([IS_A, SAME_AS], pa.string())))
    )
    columns = [true["code_1"], true["code_2"], true["relation"], pa.repeat(pa.scalar(name), true.num_rows)]
    found = pa.table(columns, names=LINKS.names).cast(LINKS)
    keys = [(column, "ascending") for column in LINKS.names]
    return found.group_by(LINKS.names, use_threads=False).aggregate([]).sort_by(keys).combine_chunks()


def merge(said: Sequence[pa.Table]) -> Merged:
    """One row for each pair, kind and label; pairs with both labels go to the contradictions.

    Laws: the order of the sources and of their rows does not matter; a source given twice changes nothing.
    """
    keys = ["code_1", "code_2", "kind", "label"]
    every = pa.concat_tables([_SAID.empty_table(), *said])
    single = every.group_by([*keys, "source"]).aggregate([("weight", "max")])
    single = single.sort_by([(k, "ascending") for k in [*keys, "source"]])
    rows = single.group_by(keys, use_threads=False).aggregate([("weight_max", "max"), ("source", "list")])
    rows = rows.rename_columns([*keys, "weight", "sources"]).cast(PAIRS)
    rows = rows.sort_by([(k, "ascending") for k in keys]).combine_chunks()
    # Sorted, the two labels of one pair are neighbours.
    upper, lower = rows.slice(0, max(rows.num_rows - 1, 0)), rows.slice(1)
    repeated = np.ones(lower.num_rows, dtype=bool)
    for name in keys[:3]:
        repeated &= pc.equal(upper[name], lower[name]).to_numpy().astype(bool)
    both = np.zeros(rows.num_rows, dtype=bool)
    both[:-1] |= repeated
    both[1:] |= repeated
    return Merged(rows.filter(pa.array(~both)).combine_chunks(), rows.filter(pa.array(both)).combine_chunks())


def _kinship(
    links: pa.Table, systems: Systems, options: KinOptions, skipped: Counter[str]
) -> tuple[pa.Table, tuple[str, ...]]:
    """Similar pairs and hard negatives of a hierarchy's codes that are the study's."""
    ends = pa.concat_arrays([links["code_1"].combine_chunks(), links["code_2"].combine_chunks()])
    # In the codes' order, so that the draw does not depend on the order of the file's rows.
    names = pc.unique(ends)
    names = names.take(pc.sort_indices(names))
    place = pc.index_in(ends, names).to_numpy(zero_copy_only=False).astype(np.int64)
    m = links.num_rows
    parents, cut = without_cycles(parent_matrix(place[:m], place[m:], len(names)))
    notes = []
    if len(cut):
        skipped[CYCLE] += len(cut)
        child, parent = cut[0]
        notes.append(
            f"The hierarchy has cycles: {len(cut)} links are left out, for example {names[int(child)]} is-a {names[int(parent)]}"
        )
    wanted = pc.is_in(_prefix(names), pa.array(list(systems.category), pa.string()))
    found = kin(
        parents,
        wanted=wanted.to_numpy(zero_copy_only=False).astype(bool),
        shared_depth=options.shared_depth,
        most_per_family=options.most_per_family,
        seed=options.seed,
    )
    if found.drawn:
        notes.append(
            f"Of {found.drawn} families with more pairs, {options.most_per_family} were drawn (most_per_family)"
        )
    pairs = np.concatenate([found.similar, found.negative])
    label = np.arange(len(pairs)) < len(found.similar)
    return _kin_table(names, pairs, label, options.weight), tuple(notes)


def _kin_table(names: pa.Array, pairs: np.ndarray, label: np.ndarray, weight: float) -> pa.Table:
    # Nodes are numbered in the order of their codes, so the smaller node is the smaller code.
    return pa.table(
        [
            names.take(pa.array(pairs[:, 0])),
            names.take(pa.array(pairs[:, 1])),
            pa.repeat(pa.scalar(SIMILAR), len(pairs)),
            pa.array(label),
            pa.repeat(pa.scalar(weight, pa.float64()), len(pairs)),
        ],
        names=_SAID.names[:5],
    )


def _of_study(table: pa.Table, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, Counter[str]]:
    """Pairs of two codes of the study, the smaller code first; and the codes of other systems by prefix."""
    known = pa.array(sorted(systems.category), pa.string())
    mine = [pc.is_in(_prefix(table[name]), known) for name in ("code_1", "code_2")]
    both = pc.and_(*mine)
    skipped[UNKNOWN] += table.num_rows - int(pc.sum(both).as_py() or 0)
    unknown = _unknown_codes(table, systems)
    kept = table.filter(both)
    turned = pc.greater(kept["code_1"], kept["code_2"])
    one = pc.if_else(turned, kept["code_2"], kept["code_1"])
    other = pc.if_else(turned, kept["code_1"], kept["code_2"])
    return kept.set_column(0, "code_1", one).set_column(1, "code_2", other).cast(_SAID), unknown


def _unknown_codes(table: pa.Table, systems: Systems) -> Counter[str]:
    codes = pc.unique(pa.chunked_array([*table["code_1"].chunks, *table["code_2"].chunks], pa.string()))
    counted = pc.value_counts(_prefix(codes)).to_pylist()
    return Counter({c["values"]: c["counts"] for c in counted if c["values"] not in systems.category})


def _within_category(table: pa.Table, systems: Systems, skipped: Counter[str]) -> pa.Table:
    """Similar pairs of one category, and all related ones; clusters never cross categories."""
    names = sorted(systems.category)
    kinds = pa.array([systems.category[name] for name in names], pa.string())
    one, other = (
        kinds.take(pc.index_in(_prefix(table[name]).combine_chunks(), pa.array(names, pa.string())))
        for name in ("code_1", "code_2")
    )
    good = pc.or_(pc.equal(one, other), pc.starts_with(table["kind"].combine_chunks(), RELATED))
    skipped[CATEGORIES] += table.num_rows - int(pc.sum(good).as_py() or 0)
    return table.filter(good)


def _prefix(codes: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.replace_substring_regex(codes, "(?s):.*", "")
