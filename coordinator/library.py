"""Published versions as readers meet them: listed, verified once, and held open for questions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from coordinator.config import Home
from coordinator.exports.table import Entry, PublishedMap, read_map
from coordinator.store import Store
from protocol.arrays import FloatVector
from protocol.codeindex import CodeIndex, Hit
from protocol.errors import UsageError
from protocol.messages import PublishedManifest
from protocol.published import Trust, verify_folder

_HELD_OPEN = 4


@dataclass(frozen=True)
class Version:
    """A published version as the coordinator's database knows it.

    Attributes:
        number: 1, 2, ...
        round: that it was fitted from.
        created: UTC.
        digest: of its manifest.
        sites: whose releases it was fitted with.
        withdrawn: since when nobody should use it; None for a version that stands.
        erased: its files are gone.
        folder: of its files.
    """

    number: int
    round: str
    created: datetime
    digest: str
    sites: tuple[str, ...]
    withdrawn: datetime | None
    erased: bool
    folder: Path


@dataclass(frozen=True, eq=False)
class OpenRelease:
    """A verified release, read once.

    Attributes:
        folder: where its files lie.
        manifest: what was signed.
        map: its codes.
        index: their vectors.
    """

    folder: Path
    manifest: PublishedManifest
    map: PublishedMap
    index: CodeIndex

    @classmethod
    def load(cls, folder: Path, *, trust: Trust, exact: bool = False) -> OpenRelease:
        """Verify a release folder and read it.

        Args:
            folder: of one version.
            trust: who may have signed.
            exact: search exactly, without hnswlib.

        Raises:
            ProtocolError: the folder is not what its manifest says, or withdrawn.
            EnvelopeError: the signature does not hold.
        """
        manifest = verify_folder(folder, trust)
        return cls(
            folder, manifest, read_map(folder, manifest), CodeIndex.load(folder, trust=trust, exact=exact)
        )

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """CURIE -> its row."""
        return {entry.code: entry for entry in self.map.entries}

    @cached_property
    def clusters(self) -> Mapping[int, tuple[Entry, ...]]:
        """Cluster -> its codes, sorted."""
        found: dict[int, list[Entry]] = {}
        for entry in self.map.entries:
            found.setdefault(entry.cluster, []).append(entry)
        return {number: tuple(entries) for number, entries in found.items()}

    @cached_property
    def sources(self) -> Mapping[str, tuple[Entry, ...]]:
        """Standard code -> every other code that is mapped to it, most probable first."""
        found: dict[str, list[Entry]] = {}
        for entry in self.map.mappings:
            if entry.standard_code:
                found.setdefault(entry.standard_code, []).append(entry)
        return {
            code: tuple(sorted(entries, key=lambda e: (-e.probability, e.code)))
            for code, entries in found.items()
        }

    def entry(self, code: str) -> Entry:
        """The row of a CURIE, or of a bare code that only one system has.

        Raises:
            UsageError: no code, or several, are meant.
        """
        return self.entries.get(code) or self.entries[self.index.codes[self.index.row(code)]]

    def neighbours(
        self,
        query: str | FloatVector,
        k: int = 10,
        *,
        systems: Collection[str] = (),
        categories: Collection[str] = (),
    ) -> list[Hit]:
        """The k codes with the largest cosine to a code or a vector, best first; the code itself is left out.

        Args:
            query: a code as for `entry`, or (d,).
            k: how many.
            systems: prefixes to which hits are limited; all if empty.
            categories: the same for categories of code systems.

        Raises:
            UsageError: no such code, system or category, or the vector has another length.
        """
        wanted = self.prefixes(systems, categories)
        query = self.entry(query).code if isinstance(query, str) else np.asarray(query, dtype=np.float32)
        return self.index.search(query, k, systems=wanted)

    def prefixes(self, systems: Collection[str], categories: Collection[str]) -> frozenset[str]:
        """The code systems that are of `systems` and of `categories`; none for no limit.

        Raises:
            UsageError: the study has no such system or category, or none is both.
        """
        study = self.map.study
        known = {s.prefix: s.category for s in study.code_systems}
        for given, have, what in (
            (systems, set(known), "code system"),
            (categories, set(known.values()), "category"),
        ):
            unknown = sorted(set(given) - have)
            if unknown:
                raise UsageError(
                    f"The study has no {what} {unknown[0]!r}", do=f"Take one of {', '.join(sorted(have))}"
                )
        if not systems and not categories:
            return frozenset()
        found = frozenset(
            p
            for p, c in known.items()
            if (not systems or p in systems) and (not categories or c in categories)
        )
        if not found:
            raise UsageError(
                f"No code system is of {', '.join(sorted(systems))} and of {', '.join(sorted(categories))}"
            )
        return found


class Library:
    """The versions of one study, each verified when it is first asked for.

    Args:
        home: the coordinator's.

    Safe for threads. A version that was verified is held open; it is read again if the database names another
    manifest, and refused as soon as it is withdrawn.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.store = Store(home.database_url)
        self._open: OrderedDict[str, OpenRelease] = OrderedDict()
        self._lock = Lock()

    def versions(self) -> list[Version]:
        """All of them, the first one first."""
        return [
            Version(
                number=p.version,
                round=p.round,
                created=p.created,
                digest=p.manifest_digest,
                sites=p.sites,
                withdrawn=p.withdrawn,
                erased=p.erased,
                folder=self.home.release_folder(p.version),
            )
            for p in self.store.versions()
        ]

    def version(self, number: int | None = None) -> Version:
        """One version; without a number the newest that stands.

        Raises:
            UsageError: there is none.
        """
        known = self.versions()
        found = [v for v in known if (v.withdrawn is None if number is None else v.number == number)]
        if found:
            return found[-1]
        have = ", ".join(str(v.number) for v in known) or "none"
        what = "published version" if number is None else f"version {number}"
        raise UsageError(f"There is no {what}", why=f"published are: {have}")

    def open(self, number: int | None = None) -> OpenRelease:
        """A version's release, verified.

        Raises:
            UsageError: there is none.
            ProtocolError: its folder is not what its manifest says, or it is withdrawn.
            EnvelopeError: its signature does not hold.
        """
        version = self.version(number)
        with self._lock:
            found = self._open.get(version.digest) if version.withdrawn is None else None
            if found is None:
                found = OpenRelease.load(version.folder, trust=self.home.keys.public())
                self._open[version.digest] = found
            self._open.move_to_end(version.digest)
            while len(self._open) > _HELD_OPEN:
                self._open.popitem(last=False)
        return found
