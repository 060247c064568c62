"""Reconstruction: which pairs below the floor have 1 to floor - 1 patients, and which have none?

The attacker holds a release and learns on shadow sites of the same population, whose counts it knows, how small cells
go together with what is released. Patient counts of the two codes alone tell much: of two common codes some patient has
both. So each figure stands beside what counts alone give, and beside what counts and the vectors of *another* site of the
same population give: such vectors know medicine, and nothing of this site's cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from site_agent.cooccurrence import PairCounts
from tests.battery.attacks.membership import Seen, auc
from tests.battery.attacks.population import Flags, Floats, Index


@dataclass(frozen=True)
class Cells:
    """Pairs below the floor, of codes that two releases have in common.

    Attributes:
        row: (m,) of the population's codes.
        column: (m,), above row.
        small: (m,), whether any patient has the pair.
    """

    row: Index
    column: Index
    small: Flags


def hidden_cells(counts: PairCounts, released: Sequence[Seen], floor: int) -> Cells:
    """Every pair of codes that all these releases hold, with fewer patients than the floor at the site."""
    held = np.logical_and.reduce([~np.isnan(s.margins) for s in released])
    dense = counts.pair_patients.toarray()
    inside = np.triu(np.outer(held, held) & (dense < floor), 1)
    row, column = np.nonzero(inside)
    return Cells(row, column, dense[row, column] > 0)


def some_of(cells: Cells, most: int, *, seed: int) -> Cells:
    """So many of the cells, at random."""
    some = np.random.default_rng(seed).permutation(len(cells.small))[:most]
    return Cells(cells.row[some], cells.column[some], cells.small[some])


def clues(cells: Cells, margins: Floats, vectors: Seen | None) -> Floats:
    """(m, p) what the attacker knows of each cell.

    Of the counts: both, in order of size, and the patients that chance expects, up to a constant. Of the vectors: the
    pair's cosine, its square, its rank among those of either code, and how alike the two codes are to third ones.
    """
    a, b = margins[cells.row], margins[cells.column]
    found = [np.log(np.minimum(a, b)), np.log(np.maximum(a, b)), np.log(a) + np.log(b)]
    if vectors is not None:
        held = np.flatnonzero(~np.isnan(vectors.margins))
        cosine = np.nan_to_num(vectors.values)
        inside = cosine[np.ix_(held, held)]
        place = np.zeros(len(cosine), dtype=np.int64)
        place[held] = np.arange(len(held))
        rank = np.argsort(np.argsort(inside, axis=1), axis=1) / len(held)
        third = np.maximum(inside, 0) @ np.maximum(inside, 0) / len(held)
        i, j = place[cells.row], place[cells.column]
        direct = inside[i, j]
        found += [direct, direct**2, rank[i, j] + rank[j, i], np.abs(rank[i, j] - rank[j, i]), third[i, j]]
    return np.stack(found, axis=1).astype(np.float64)


def guess(known: Floats, small: Flags, wanted: Floats, *, seed: int, most: int = 25_000) -> Floats:
    """Learn on cells that are known, score those that are wanted: gradient-boosted trees."""
    some = np.random.default_rng(seed).permutation(len(small))[:most]
    model = HistGradientBoostingClassifier(max_iter=60, min_samples_leaf=100, random_state=seed)
    model.fit(known[some], small[some])
    return np.asarray(model.predict_proba(wanted)[:, 1])


@dataclass(frozen=True)
class Reconstruction:
    """AUC of small against zero by what the attacker uses: 0.5 is chance.

    Attributes:
        margins: patient counts.
        elsewhere: these and the vectors of another site of the same population.
        vectors: counts and the site's own vectors.
        cells: cells in question.
    """

    margins: float
    elsewhere: float
    vectors: float
    cells: int

    @property
    def gain(self) -> float:
        """What the site's vectors add to its counts."""
        return self.vectors - self.margins

    @property
    def own(self) -> float:
        """What the site's vectors add to its counts and to another site's vectors."""
        return self.vectors - self.elsewhere


def reconstruct(
    target: tuple[PairCounts, Seen], shadow: tuple[PairCounts, Seen], other: Seen, *, floor: int, seed: int
) -> Reconstruction:
    """Learn on the shadow site, attack the target; `other` is a third site, of which only the release is known."""
    known = hidden_cells(shadow[0], (shadow[1], other), floor)
    wanted = some_of(hidden_cells(target[0], (target[1], other), floor), 60_000, seed=seed)

    def score(own: bool | None) -> float:
        sides = []
        for cells, seen in ((known, shadow[1]), (wanted, target[1])):
            vectors = None if own is None else seen if own else other
            sides.append(clues(cells, seen.margins, vectors))
        return auc(guess(sides[0], known.small, sides[1], seed=seed), wanted.small)

    return Reconstruction(score(None), score(False), score(True), len(wanted.small))


def stir(counts: PairCounts, floor: int, *, seed: int) -> PairCounts:
    """The same counts with everything below the floor dealt out anew among the cells below it, off the diagonal.

    Margins of code patients, cells over the floor and totals are as they were: a release that tells anything of a cell
    below the floor differs from that of the true counts.
    """
    rng = np.random.default_rng(seed)
    patients, events = counts.pair_patients.toarray(), counts.events.toarray()
    row, column = np.nonzero(np.triu(patients < floor, 1))
    order = rng.permutation(len(row))
    for dense in (patients, events):
        dense[row, column] = dense[row[order], column[order]]
    kind = type(counts.events)
    return replace(counts, pair_patients=kind(patients), events=kind(events))
