"""A hospital's patients without end, and what a site of some of them releases.

The patients are those of the generated consortium (`coordinator.demo`): one hospital, one code a diagnosis. A site is any
set of them; another set, drawn independently, is what an attacker knows of such patients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from coordinator.demo.codesystems import choose_concepts, load_code_systems
from coordinator.demo.medicine import make_hospital, make_medicine
from coordinator.demo.patients import draw_patients
from protocol.release import encode_release
from protocol.sections import DEFAULT_SMALL_SITE_PATIENTS
from protocol.study import StudySpec
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import Reference as GateReference
from site_agent.gate import allowed_dim, make_release, sticky_counts, suppress
from site_agent.gate.suppression import in_force
from site_agent.views.cooccurrence import cooccurrence_view
from tests.inprocess import policy
from tests.synthetic import study

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

PREFIX = "ICD10CM"
_BATCH = 5_000
MEAN_AGE, INTENSITY = 58.0, 1.0


@dataclass(frozen=True)
class Population:
    """m patients of one hospital, in order, and the events of each.

    Attributes:
        start: (m + 1,), the first row of each patient in the other columns.
        day: (rows,).
        code: (rows,), in [0, n_codes).
        codes: the codes as they are spelled.
    """

    start: Index
    day: Index
    code: Index
    codes: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.start) - 1

    @property
    def n_codes(self) -> int:
        return len(self.codes)

    def rows(self, who: Index) -> tuple[Index, Index, Index]:
        """Patient (numbered from 0), day and code of each event of these patients."""
        length = self.start[who + 1] - self.start[who]
        owner = np.repeat(np.arange(len(who)), length)
        row = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length - self.start[who], length)
        return owner, self.day[row], self.code[row]

    def count(self, who: Index) -> PairCounts:
        return count_pairs(*self.rows(who), self.n_codes, threads=2)

    def has(self, who: Index) -> Flags:
        """(len(who), n_codes), which patient has which code."""
        found = np.zeros((len(who), self.n_codes), dtype=bool)
        owner, _, code = self.rows(who)
        found[owner, code] = True
        return found

    def pairs(self, who: Index) -> sparse.csr_array[Any, tuple[int, int]]:
        """(len(who), n_codes^2) float32, 1 where the patient has the pair j < k; column j n_codes + k."""
        found = []
        for one in who:
            cells = count_pairs(
                *self.rows(np.array([one])), self.n_codes, threads=1, memory=2**22
            ).pair_patients.tocoo()
            off = cells.row != cells.col
            found.append(cells.row[off].astype(np.int64) * self.n_codes + cells.col[off])
        pointer = np.concatenate([[0], np.cumsum([len(f) for f in found])])
        columns = np.concatenate(found)
        shape = (len(who), self.n_codes**2)
        return sparse.csr_array((np.ones(len(columns), np.float32), columns, pointer), shape=shape)


def draw_population(size: int, *, seed: int) -> Population:
    """A hospital and its patients; equal seeds draw the same."""
    rng = np.random.default_rng([seed, 7])
    concepts = choose_concepts(load_code_systems(), rng)
    medicine = make_medicine(concepts, rng)
    everything = np.ones(len(concepts), dtype=bool)
    hospital = make_hospital(medicine, everything, rng, mean_age=MEAN_AGE, intensity=INTENSITY)
    day, code, length = [], [], []
    for first in range(0, size, _BATCH):
        n = min(_BATCH, size - first)
        batch = draw_patients(medicine, hospital, n, rng)
        day.append(batch.day)
        code.append(batch.concept)
        length.append(np.bincount(batch.patient, minlength=n))
    start = np.concatenate([[0], np.cumsum(np.concatenate(length))])
    names = np.array([f"{PREFIX}:{codes[0]}" for codes in concepts.icd10])
    # Counts are held against earlier ones by codes in order of text.
    order = np.argsort(names)
    place = np.argsort(order)
    return Population(start, np.concatenate(day), place[np.concatenate(code)], tuple(names[order].tolist()))


@dataclass(frozen=True)
class Rules:
    """What the site is asked for.

    Attributes:
        dim: largest dimension of its embedding.
        codes_per_dim: released codes that a dimension needs (2 is the least that a study may ask for).
        code_floor: distinct patients of a code.
        pair_floor: distinct patients of a pair.
        rounding: step of the released patient counts.
        small_site: a site that may have fewer patients has the pair floor of small sites.
    """

    dim: int = 128
    codes_per_dim: int = 20
    code_floor: int = 20
    pair_floor: int = 11
    rounding: int = 100
    small_site: int = DEFAULT_SMALL_SITE_PATIENTS

    @cached_property
    def study(self) -> StudySpec:
        open_data = (
            self.code_floor < 20 or self.pair_floor < 11 or self.small_site < DEFAULT_SMALL_SITE_PATIENTS
        )
        return study(
            embedding={"dim": self.dim, "codes_per_dim": self.codes_per_dim},
            privacy={
                "min_code_patients": self.code_floor,
                "min_pair_patients": self.pair_floor,
                "margin_rounding": self.rounding,
                "small_site_patients": self.small_site,
                "public_data": open_data,
            },
        )

    def pair_floor_at(self, size: int) -> int:
        """Patients that a pair needs at a site of this size."""
        return in_force(policy(self.study), size).min_pair_patients


@dataclass(frozen=True)
class Site:
    """A site's released bytes, and what they were made of."""

    patients: Index
    counts: PairCounts = field(repr=False)
    released: bytes = field(repr=False)


DEFAULT = Rules()
ONE_FLOOR = Rules(small_site=0)
"""The floor of large sites at small ones too, as only a study of public data may have it."""
OPEN = Rules(code_floor=1, pair_floor=1, rounding=1, small_site=0)
"""No floor and no rounding: what the attacks must succeed on."""


def make_site(population: Population, patients: Index, rules: Rules = DEFAULT) -> Site:
    """Count, suppress, embed and encode a first release as a site does; the bytes are those that would be sealed."""
    counts = population.count(patients)
    first = sticky_counts(counts, population.codes, None, policy(rules.study))
    return Site(patients, counts, release_bytes(first, rules))


def release_bytes(reference: GateReference, rules: Rules, *, site: str = "north") -> bytes:
    """The bytes of a release of these counts."""
    spec = rules.study
    floors, shift = policy(spec), spec.embedding.ppmi_shift
    kept = suppress(reference.counts, floors, shift=shift)
    dim = allowed_dim(len(kept.rows), floors, spec)
    view = cooccurrence_view(kept, dim=dim, shift=shift, seed=spec.embedding.seed)
    identity = {"site": site, "sequence": 1, "previous": "", "agent_version": "0", "agent_digest": "0" * 64}
    return encode_release(
        make_release(kept, (view,), reference.codes, {}, policy=floors, study=spec, identity=identity)
    )
