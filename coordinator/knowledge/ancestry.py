"""Is one code broader or narrower than another? From the hierarchies that knowledge sources bring."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.assertions import IS_A, SAME_AS
from coordinator.knowledge.systems import canonical
from coordinator.mapping import Kinship

Parents = Mapping[str, list[str]]


def kinship(links: pa.Table, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Kinship]:
    """What each target is to its code, for those pairs (code, target) of which a hierarchy knows it.

    A code's own concepts are itself and those that are the same as it. A target that is none of them is the code's ancestor
    (descendant) if a source's hierarchy makes it that of one of them. Sources that contradict each other say nothing.

    Args:
        links: of schema `merge.LINKS`.
        pairs: in either spelling of ICD.

    Law: what holds of (code, target) holds the other way round of (target, code), where neither has a same code.
    """
    asked = {pair: (canonical(pair[0]), canonical(pair[1])) for pair in pairs}
    same = _same(links, {code for code, _ in asked.values()})
    open_ = {pair: ends for pair, ends in asked.items() if ends[1] not in same[ends[0]]}
    said: dict[tuple[str, str], set[Kinship]] = defaultdict(set)
    for parents in _hierarchies(links):
        above: dict[str, set[str]] = {}
        for pair, (code, target) in open_.items():
            own = same[code]
            for one in (*own, target):
                if one not in above:
                    above[one] = _ancestors(parents, one)
            if any(target in above[one] for one in own):
                said[pair].add("ancestor")
            if above[target] & own:
                said[pair].add("descendant")
    return {pair: next(iter(found)) for pair, found in said.items() if len(found) == 1}


def _same(links: pa.Table, codes: set[str]) -> dict[str, set[str]]:
    """Each code's own concepts."""
    found = {code: {code} for code in codes}
    wanted = pa.array(sorted(codes), pa.string())
    rows = links.filter(pc.equal(links["relation"], SAME_AS))
    rows = rows.filter(pc.or_(pc.is_in(rows["code_1"], wanted), pc.is_in(rows["code_2"], wanted)))
    for one, other in zip(rows["code_1"].to_pylist(), rows["code_2"].to_pylist(), strict=True):
        for code, twin in ((one, other), (other, one)):
            if code in found:
                found[code].add(twin)
    return found


def _hierarchies(links: pa.Table) -> Iterable[Parents]:
    """Child -> parents, of each source by itself: links of two sources together would make kin that neither knows."""
    rows = links.filter(pc.equal(links["relation"], IS_A))
    for source in pc.unique(rows["source"]).to_pylist():
        own = rows.filter(pc.equal(rows["source"], source))
        parents: dict[str, list[str]] = defaultdict(list)
        for child, parent in zip(own["code_1"].to_pylist(), own["code_2"].to_pylist(), strict=True):
            parents[child].append(parent)
        yield parents


def _ancestors(parents: Parents, code: str) -> set[str]:
    found: set[str] = set()
    front = [code]
    while front:
        above = {parent for one in front for parent in parents.get(one, ())} - found
        found |= above
        front = list(above)
    # On a cycle a code would be above itself.
    return found - {code}
