"""What a cohort is asked for with, and which patients may be in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.codeindex import CodeIndex
from protocol.cohort import Profile
from protocol.errors import UsageError
from protocol.published import verify_folder
from protocol.textindex import TextIndex
from site_agent.cli_search import read_texts
from site_agent.cohort.files import NO_DAY, CohortStore, Space
from site_agent.cohort.gathering import YEAR
from site_agent.cohort.own import joined
from site_agent.config import Home
from site_agent.keys import coordinator_keys
from site_agent.sources.columns import EPOCH, patient_number

Flags = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float32]

TEXT_CODES, TEXT_SHARE = 20, 0.5
"""A text stands for up to 20 codes, those that it finds at least half as well as the best."""


@dataclass(frozen=True, eq=False)
class Query:
    """A direction among the joined vectors of a build, or among its harmonised ones.

    Attributes:
        vector: (d + q,) of unit length; (d,) among the harmonised ones.
        said: the question in words.
        codes: the codes that it was made of, if any.
        row: the patient that it was made of, who is not found; None otherwise.
    """

    vector: Vector
    said: str
    codes: tuple[str, ...] = ()
    row: int | None = None


class Asking:
    """Makes queries for a build, with the release that it was made with.

    Args:
        home: of the site.
        store: its build.
        space: "joined" finds more within the site; "harmonised" finds alike at all sites. Without own vectors both are the
            harmonised one.
    """

    def __init__(self, home: Home, store: CohortStore, space: Space = "joined") -> None:
        self._home, self._store = home, store
        self.space = store.space(space)

    def patient(self, name: str, vectors: npt.NDArray[np.float32] | None = None) -> Query:
        """The vector of one patient, written as in the events; with the site's own codes, if the build has their vectors.

        Args:
            name: of the patient.
            vectors: (n, k) other vectors of the build's patients, as `FusedVectors` has them, to take it from.

        Raises:
            UsageError: there is no such patient in the window, or none of the patient's codes has a vector.
        """
        numbers = self._store.array("patients")
        number = patient_number(name.strip())
        if not self._store.has("labels.parquet") and name.strip().lstrip("-").isdigit():
            number = int(name)
        rows = np.flatnonzero(numbers == number)
        if not rows.size:
            raise UsageError(
                "There is no such patient", why="or no event in the window", do="Write it as in the events"
            )
        vector = np.array((self._store.of(self.space) if vectors is None else vectors)[rows[0]])
        if not vector.any():
            raise UsageError(
                "This patient has no vector",
                why="none of the patient's codes has one: they are not in the release",
            )
        return Query(vector, "a patient", row=int(rows[0]))

    def codes(self, codes: Sequence[str]) -> Query:
        """The sum of the codes' vectors, all of one weight.

        Raises:
            UsageError: a code has no vector, or is one of several systems.
        """
        found = tuple(self._meant(code) for code in codes)
        return self._weighted(dict.fromkeys(found, 1.0), "the codes " + ", ".join(found))

    def text(self, text: str) -> Query:
        """The codes whose code or name a text finds, weighted by how well.

        Raises:
            UsageError: it finds none.
        """
        found = [f for f in self._texts.find(text, TEXT_CODES) if f.code in self._index.codes]
        if not found:
            raise UsageError(
                f"Nothing in this release is found by {text[:80]!r}", do="Try site-agent search first"
            )
        weights = {f.code: f.score for f in found if f.score >= TEXT_SHARE * found[0].score}
        return self._weighted(weights, f"the text {text[:80]!r}")

    def profile(self, path: Path) -> Query:
        """The weighted sum of a profile's codes.

        Raises:
            UsageError: it cannot be read, or a code has no vector.
        """
        found = Profile.read(path)
        weights = {self._meant(code): weight for code, weight in found.codes.items()}
        return self._weighted(weights, f"the profile {(found.name or path.name)[:80]!r}")

    def _weighted(self, weights: Mapping[str, float], said: str) -> Query:
        total = np.array(list(weights.values())) @ np.stack([self._vector(code) for code in weights])
        length = float(np.linalg.norm(total))
        if not 0.0 < length < np.inf:
            raise UsageError("The query has no direction", why="its codes cancel each other out")
        return Query((total / length).astype(np.float32), said, tuple(weights))

    def _meant(self, code: str) -> str:
        """The CURIE of a code of the release or, among joined vectors, of one that the site alone has a vector of."""
        if self.space == "joined" and code not in self._known:
            alone = [curie for curie in self._own if code in (curie, curie.partition(":")[2])]
            if len(alone) == 1:
                return alone[0]
        return self._index.codes[self._index.row(code)]

    def _vector(self, code: str) -> Vector:
        """The vector of a CURIE; its own part is that of the site's code or, without such, of those mapped to it."""
        harmonised = np.zeros(self._index.vectors.shape[1], dtype=np.float32)
        if code in self._known:
            harmonised = self._index.vectors[self._index.row(code)]
        if self.space == "harmonised":
            return harmonised
        standard = self._store.codes["standard"]
        rows = (
            [self._own[code]] if code in self._own else [r for r in self._own.values() if standard[r] == code]
        )
        own = np.asarray(self._store.array("code_vectors")[rows])[:, len(harmonised) :].sum(axis=0)
        own = own / max(float(np.linalg.norm(own)), 1e-12)
        return np.asarray(joined(harmonised[None], own[None])[0], dtype=np.float32)

    @cached_property
    def _own(self) -> Mapping[str, int]:
        """Row of each of the site's codes that has a vector of its own."""
        columns = self._store.codes
        return {
            code: i for i, (code, own) in enumerate(zip(columns["code"], columns["own"], strict=True)) if own
        }

    @cached_property
    def _known(self) -> frozenset[str]:
        """The release's codes, with their systems and without."""
        return frozenset(self._index.codes) | {code.partition(":")[2] for code in self._index.codes}

    @cached_property
    def _release(self) -> Path:
        told = self._store.manifest
        return self._home.folder / "results" / f"v{told.release}"

    @cached_property
    def _index(self) -> CodeIndex:
        told = self._store.manifest
        manifest = verify_folder(self._release, coordinator_keys(self._home))
        if manifest.digest != told.release_digest:
            raise UsageError(
                f"The patient vectors were made with another version {told.release}",
                do="Run site-agent cohort build again",
            )
        return CodeIndex.read(self._release, manifest, exact=True)

    @cached_property
    def _texts(self) -> TextIndex:
        return read_texts(self._release, coordinator_keys(self._home))[1]


@dataclass(frozen=True)
class Filters:
    """Who may be found; all conditions hold together.

    Attributes:
        age: youngest and oldest age, in years on the day of the last event in the window; None without a bound.
        sexes: as the patients table writes them; all if empty.
        seen: first and last of days, of which one at least must lie between the patient's first and last event.
        having: codes that a patient must have in the window, all of them; with * at the end, codes that begin so.
        lacking: codes that a patient must not have.
    """

    age: tuple[int | None, int | None] = (None, None)
    sexes: tuple[str, ...] = ()
    seen: tuple[date | None, date | None] = (None, None)
    having: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()

    def population(self, store: CohortStore) -> Flags:
        """(n,) who passes age, sex and days: those with whom a cohort is compared.

        Raises:
            UsageError: the patients table does not tell, or no such sex is in it.
        """
        passed = np.ones(store.manifest.patients, dtype=bool)
        first, last = store.array("first"), store.array("last")
        begin, end = self.seen
        if begin is not None:
            passed &= last >= (begin - EPOCH).days
        if end is not None:
            passed &= first <= (end - EPOCH).days
        if self.age != (None, None):
            if not store.manifest.with_birth:
                raise _unknown("dates of birth", "birth")
            birth = store.array("birth")
            years = (last.astype(np.float64) - birth) / YEAR
            low, high = self.age
            passed &= birth != NO_DAY
            passed &= (years >= (low or 0)) & (years < (np.inf if high is None else high + 1))
        if self.sexes:
            if not store.manifest.sexes:
                raise _unknown("sexes", "sex")
            passed &= np.isin(store.array("sex"), [_place(store.manifest.sexes, s) for s in self.sexes])
        return passed

    def allowed(self, store: CohortStore) -> Flags:
        """(n,) who passes all conditions.

        Raises:
            UsageError: as `population`; or a code is none of the site's.
        """
        passed = self.population(store)
        for pattern in self.having:
            passed &= _has(store, pattern)
        for pattern in self.lacking:
            passed &= ~_has(store, pattern)
        return passed


def matching(store: CohortStore, pattern: str) -> npt.NDArray[np.intp]:
    """Rows of a build's codes that a pattern means, as `codes_matching`."""
    return codes_matching(store.codes["code"], pattern)


def codes_matching(codes: Sequence[str], pattern: str) -> npt.NDArray[np.intp]:
    """Rows of the codes that a pattern means: a CURIE or a bare code, or the beginning of one before a *.

    Raises:
        UsageError: there is none.
    """
    begin = pattern.removesuffix("*")
    whole = begin == pattern

    def fits(code: str) -> bool:
        bare = code.partition(":")[2]
        return begin in (code, bare) if whole else code.startswith(begin) or bare.startswith(begin)

    found = np.array([i for i, code in enumerate(codes) if fits(code)], dtype=np.intp)
    if not found.size or not begin:
        raise UsageError(
            f"No event of this site has a code {pattern!r}",
            do="Write it as PREFIX:code, or its beginning and *",
        )
    return found


def _has(store: CohortStore, pattern: str) -> Flags:
    wanted = np.zeros(len(store.codes["code"]), dtype=bool)
    wanted[matching(store, pattern)] = True
    start = np.asarray(store.array("start"))
    before = np.concatenate([[0], np.cumsum(wanted[store.array("code")])])
    return np.asarray(before[start[1:]] > before[start[:-1]])


def _place(sexes: tuple[str, ...], wanted: str) -> int:
    if wanted not in sexes:
        raise UsageError(f"The patients table has no sex {wanted!r}", why=f"it has {', '.join(sexes)}")
    return sexes.index(wanted)


def _unknown(what: str, column: str) -> UsageError:
    return UsageError(
        f"This site's patient vectors know no {what}",
        do=f"Name a table with the column {column} in site.toml, [cohort] patients = FILE, and run site-agent cohort build",
    )
