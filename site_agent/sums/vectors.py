"""The vectors that go into sums, from a site's counts; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.messages import Policy
from protocol.secure_sum.fixed import Int64Vector
from protocol.sums import CellIndex
from site_agent.cooccurrence import PairCounts


class VocabularyCounts(NamedTuple):
    """Counts over the vocabulary V of n codes.

    Attributes:
        row: (m,) int64, row <= column of each pair that has a count, in order of row and column.
        column: (m,) int64.
        pairs: (m,) int64, C_jk, co-occurring pairs of events.
        pair_patients: (m,) int64, distinct patients that have the pair.
        code_patients: (n,) int64.
        patients: distinct patients of the site, whether or not they have a code of V.
        withheld_codes: codes of V below the floor, set to zero.
        withheld_pairs: pairs over V below a floor, set to zero, as far as they can still be seen.
        other_codes: codes of the site that V does not have; they are in no sum.
    """

    row: Int64Vector
    column: Int64Vector
    pairs: Int64Vector
    pair_patients: Int64Vector
    code_patients: Int64Vector
    patients: int
    withheld_codes: int
    withheld_pairs: int
    other_codes: int


def over_vocabulary(
    counts: PairCounts, codes: Sequence[str], vocabulary: Sequence[str], policy: Policy | None
) -> VocabularyCounts:
    """The counts of a site's codes that are in the vocabulary.

    Args:
        counts: of the site, anchors applied.
        codes: CURIEs of its rows.
        vocabulary: sorted CURIEs.
        policy: floors below which a code or a pair is zero; None keeps every count.

    Law: with a policy, the result does not depend on any count below its floor.
    """
    place = {code: i for i, code in enumerate(vocabulary)}
    position = np.array([place.get(code, -1) for code in codes], dtype=np.int64)
    inside = np.flatnonzero(position >= 0)
    code_patients = np.zeros(len(vocabulary), dtype=np.int64)
    code_patients[position[inside]] = counts.code_patients[inside]
    events = counts.events[inside][:, inside].tocoo()
    pair_patients = counts.pair_patients[inside][:, inside].tocoo()
    a, b = position[inside][events.row], position[inside][events.col]
    keep = np.ones(len(a), dtype=bool)
    low = np.zeros(len(vocabulary), dtype=bool)
    if policy is not None:
        low = code_patients < policy.min_code_patients
        keep = (pair_patients.data >= policy.min_pair_patients) & ~low[a] & ~low[b]
    row, column, pairs = np.minimum(a, b)[keep], np.maximum(a, b)[keep], events.data[keep].astype(np.int64)
    order = np.lexsort((column, row))
    return VocabularyCounts(
        row=row[order],
        column=column[order],
        pairs=pairs[order],
        pair_patients=pair_patients.data[keep].astype(np.int64)[order],
        code_patients=np.where(low, 0, code_patients),
        patients=counts.n_patients,
        withheld_codes=int((low & (code_patients > 0)).sum()),
        withheld_pairs=int((~keep).sum()),
        other_codes=int(((position < 0) & (counts.code_patients > 0)).sum()),
    )


def margins_vector(found: VocabularyCounts, *, private: bool = False) -> Int64Vector:
    """(2n + 1,): patients of each code, row sums of the symmetric C, patients.

    With `private`, the patients of each code stand for the row sums too: nothing bounds what one patient adds to these.
    """
    if private:
        return np.concatenate([found.code_patients, found.code_patients, [found.patients]])
    rows = np.zeros(len(found.code_patients), dtype=np.int64)
    np.add.at(rows, found.row, found.pairs)
    off = found.row != found.column
    np.add.at(rows, found.column[off], found.pairs[off])
    return np.concatenate([found.code_patients, rows, np.array([found.patients], dtype=np.int64)])


def cells_vector(found: VocabularyCounts, agreed: CellIndex, *, private: bool = False) -> Int64Vector:
    """(m,) C_jk of the agreed pairs; 0 for a pair that the site does not have. With `private`, distinct patients."""
    n = len(found.code_patients)
    have = found.row * n + found.column
    asked: npt.NDArray[np.int64] = agreed.row.astype(np.int64) * n + agreed.column
    values = np.zeros(len(asked), dtype=np.int64)
    if len(have):
        at = np.minimum(np.searchsorted(have, asked), len(have) - 1)
        hit = have[at] == asked
        values[hit] = (found.pair_patients if private else found.pairs)[at[hit]]
    return values
