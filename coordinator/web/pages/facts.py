"""What pages need of a whole release, worked out once."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from coordinator.exports.table import Entry
from coordinator.library import OpenRelease
from coordinator.web.pages.layout import Flat, flat_layout
from protocol.study import StudySpec
from protocol.vocabulary import chapter

BINS: Final = 10
_ROOT: Final = 3  # letters and digits of the shortest code that can have narrower ones, as in ICD
_LOCK: Final = threading.Lock()


@dataclass(frozen=True)
class Family:
    """The codes above and below a code, as its system writes them.

    Attributes:
        chapter: of ICD; "" for other systems.
        above: the widest first.
        below: those directly below.
        beside: others directly below the nearest code above.
    """

    chapter: str
    above: tuple[Entry, ...]
    below: tuple[Entry, ...]
    beside: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which site released how many codes of which concept.

    Attributes:
        concepts: m standard codes that a released code is mapped to, sorted.
        sites: whose releases the version was fitted with.
        counts: (m, sites) codes of the site that are mapped to the concept, itself included.
    """

    concepts: tuple[str, ...]
    sites: tuple[str, ...]
    counts: npt.NDArray[np.int32]


class Facts:
    """What is shown of a release beside single codes. Safe for threads.

    Args:
        release: an open one.

    Attributes:
        failed: the layout could not be worked out.
    """

    def __init__(self, release: OpenRelease) -> None:
        # Not the release itself: it is the key under which this is kept, and would never go.
        self.map, self._vectors, self._codes = release.map, release.index.vectors, release.index.codes
        self.failed = False
        self._layout: Flat | None = None
        self._working: threading.Thread | None = None

    @cached_property
    def states(self) -> Mapping[str, int]:
        """How many codes outside the standard system were given, found, and have no standard code."""
        counted = Counter(
            "none" if not e.standard_code else "given" if e.given else "found" for e in self.map.mappings
        )
        return {name: counted[name] for name in ("given", "found", "none")}

    @cached_property
    def histogram(self) -> tuple[int, ...]:
        """Found mappings by tenths of their probability."""
        p = [e.probability for e in self.map.mappings if e.standard_code and not e.given]
        return tuple(int(c) for c in np.histogram(p, bins=BINS, range=(0.0, 1.0))[0])

    @cached_property
    def expected(self) -> float | None:
        """Share of the found mappings that is expected to be right; None without any."""
        p = [e.probability for e in self.map.mappings if e.standard_code and not e.given]
        return float(np.mean(p)) if p else None

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The sites that released a code."""
        return tuple(sorted({s for e in self.map.entries for s in e.sites}))

    @cached_property
    def coverage(self) -> Coverage:
        """Concepts by site."""
        row: dict[str, int] = {}
        column = {s: i for i, s in enumerate(self.sites)}
        cells: Counter[tuple[int, int]] = Counter()
        for entry in self.map.entries:
            if entry.standard_code:
                number = row.setdefault(entry.standard_code, len(row))
                cells.update((number, column[s]) for s in entry.sites)
        counts = np.zeros((len(row), len(self.sites)), dtype=np.int32)
        for (i, j), value in cells.items():
            counts[i, j] = value
        order = sorted(row)
        return Coverage(tuple(order), self.sites, counts[[row[c] for c in order]])

    @cached_property
    def chapters(self) -> tuple[str, ...]:
        """Of each concept of `coverage`: its chapter of ICD, or its system."""
        return tuple(chapter(code) for code in self.coverage.concepts)

    # --- Hierarchy -------------------------------------------------------------------------------------

    def family(self, entry: Entry) -> Family:
        """Codes above, below and beside a code, by the beginnings of codes."""
        if self.map.study.system(entry.system).local_to is not None:
            # What a hospital's own codes begin with says nothing for certain.
            return Family("", (), (), ())
        own = _bare(entry.local)
        above = tuple(
            found for n in range(_ROOT, len(own)) if (found := self._by_bare.get((entry.system, own[:n])))
        )
        beside: tuple[Entry, ...] = ()
        if above:
            beside = tuple(e for e in self._below(above[-1]) if e.code != entry.code)
        named = chapter(entry.code)
        return Family("" if named == entry.system else named, above, tuple(self._below(entry)), beside)

    def _below(self, entry: Entry) -> Iterator[Entry]:
        own, keys = _bare(entry.local), self._sorted[entry.system]
        if len(own) < _ROOT:
            return
        nearest = ""
        for key in keys[bisect_left(keys, own) :]:
            if not key.startswith(own):
                return
            if key == own or (nearest and key.startswith(nearest)):
                continue
            nearest = key
            yield self._by_bare[entry.system, key]

    @cached_property
    def _by_bare(self) -> Mapping[tuple[str, str], Entry]:
        return {(e.system, _bare(e.local)): e for e in self.map.entries}

    @cached_property
    def _sorted(self) -> Mapping[str, Sequence[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for system, bare in sorted(self._by_bare):
            found[system].append(bare)
        return found

    # --- Map -------------------------------------------------------------------------------------------

    def layout(self) -> Flat | None:
        """Places of `map.entries`; None while they are worked out, which another thread begins at the first question."""
        with _LOCK:
            if self._layout is None and self._working is None:
                self._working = threading.Thread(target=self._lay_out, name="layout", daemon=True)
                self._working.start()
        return self._layout

    def _lay_out(self) -> None:
        place = {code: i for i, code in enumerate(self._codes)}
        rows = [place[e.code] for e in self.map.entries]
        try:
            self._layout = flat_layout(self._vectors[rows])
        except Exception:
            # Whoever waits for the map would wait for ever.
            self.failed = True
            raise

    def wait(self) -> Flat:
        """`layout`, after it was worked out; for tests and whoever has time."""
        self.layout()
        if self._working is not None:
            self._working.join()
        found = self.layout()
        if found is None:
            raise RuntimeError("the layout failed")
        return found

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """For each of `map.entries` what the map colours it by: chapter of ICD, or category of its system."""
        return tuple(_group(self.map.study, e) for e in self.map.entries)


_KEPT: WeakKeyDictionary[OpenRelease, Facts] = WeakKeyDictionary()


def facts_of(release: OpenRelease) -> Facts:
    """The facts of a release."""
    with _LOCK:
        found = _KEPT.get(release)
        if found is None:
            found = _KEPT[release] = Facts(release)
    return found


def _bare(code: str) -> str:
    return code.replace(".", "").upper()


def _group(study: StudySpec, entry: Entry) -> str:
    about = entry.standard_code or entry.code
    system = study.system(about.partition(":")[0])
    if not entry.standard_code and system.local_to is not None:
        return "no standard code"
    named = chapter(about)
    return system.category if named == system.prefix else named
