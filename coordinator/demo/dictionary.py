"""One site's way to write a diagnosis: which codes it has, and which of two a coder takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.demo.abbreviate import HABITS, abbreviate
from coordinator.demo.codesystems import CodeSystems, Concepts
from coordinator.demo.patients import N_DAYS, Batch

Ints = npt.NDArray[np.int64]

TWICE_SHARE = 0.15
"""Share of a site's concepts that have two codes there, as far as the code system has a second one."""
_ID_FORMS = ("D{:05d}", "LX-{:06d}", "{:06d}.1", "Q{:05d}Z")


@dataclass(frozen=True)
class Dictionary:
    """A site's codes, numbered from 0.

    Attributes:
        prefix: CURIE prefix of the codes.
        codes: the bare codes.
        titles: their descriptions.
        concept: int64 (m,), the concept of each code.
        first: int64 (n,), the code of each concept; -1 where the site does not see it.
        second: int64 (n,), a further code of the concept, or -1.
        share: float64 (n,), share of the patients whose records keep to the first code.
        reissued: int64 (n,), the day from which everyone uses the second code instead, or -1 if `share` decides.
    """

    prefix: str
    codes: tuple[str, ...]
    titles: tuple[str, ...]
    concept: Ints
    first: Ints
    second: Ints
    share: npt.NDArray[np.float64]
    reissued: Ints

    def encode(self, batch: Batch) -> Ints:
        """The code of each record."""
        concept = batch.concept
        by_day = self.reissued[concept] >= 0
        other = np.where(by_day, batch.day >= self.reissued[concept], batch.draw >= self.share[concept])
        return np.where(other & (self.second[concept] >= 0), self.second[concept], self.first[concept])


def make_dictionary(
    systems: CodeSystems,
    concepts: Concepts,
    present: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    number: int,
    name: str,
) -> Dictionary:
    """Codes and titles of site `number`: ICD-10-CM for 0, ICD-9-CM for 1, opaque local ids for all others.

    Args:
        systems: the code systems.
        concepts: the n diagnoses of the consortium.
        present: bool (n,), those that the site sees.
        rng: the site's stream.
        number: running number of the site.
        name: the site's name; in capitals it is the prefix of local ids.
    """
    official = (concepts.icd10, concepts.icd9)[number] if number < 2 else None
    twice = _twice(official, present, rng)
    concept = np.sort(np.concatenate([np.flatnonzero(present), np.flatnonzero(twice)]))
    is_second = np.diff(concept, prepend=-1) == 0
    which = list(zip(concept.tolist(), is_second.astype(int).tolist(), strict=True))
    if official is not None:
        codes = [official[c][k] for c, k in which]
        titles = [(systems.icd10, systems.icd9)[number][code] for code in codes]
    else:
        form = _ID_FORMS[(number - 2) % len(_ID_FORMS)]
        codes = [form.format(i) for i in rng.choice(90_000, size=len(concept), replace=False) + 10_000]
        # The second entry of a local dictionary was typed by another clerk.
        habits = [HABITS[(number - 2 + k) % len(HABITS)] for k in range(2)]
        titles = [abbreviate(systems.icd10[concepts.icd10[c][0]], habits[k]) for c, k in which]
    first, second = np.full(len(concepts), -1), np.full(len(concepts), -1)
    first[concept[~is_second]] = np.flatnonzero(~is_second)
    second[concept[is_second]] = np.flatnonzero(is_second)
    reissued = rng.integers(N_DAYS // 4, 3 * N_DAYS // 4, len(concepts))
    return Dictionary(
        prefix=("ICD10CM", "ICD9CM")[number] if number < 2 else name.upper(),
        codes=tuple(codes),
        titles=tuple(titles),
        concept=concept,
        first=first,
        second=second,
        share=rng.uniform(0.55, 0.85, len(concepts)),
        reissued=reissued if official is None else np.full(len(concepts), -1),
    )


def _twice(
    official: tuple[tuple[str, ...], ...] | None, present: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which concepts have two codes; in a public system only variants within one category qualify."""
    can = present.copy()
    if official is not None:
        can &= np.array([len(codes) > 1 and codes[1][:3] == codes[0][:3] for codes in official])
    twice = np.zeros_like(present)
    twice[rng.permutation(np.flatnonzero(can))[: round(TWICE_SHARE * int(present.sum()))]] = True
    return twice
