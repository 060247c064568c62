"""Published versions as readers meet them: listed, verified once, and held open for questions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from coordinator.config import Home
from coordinator.exports.table import Entry, PublishedMap
from coordinator.store import Store
from protocol.arrays import FloatVector
from protocol.codeindex import CodeIndex, Hit
from protocol.errors import ProtocolError, UsageError
from protocol.messages import PublishedManifest
from protocol.published import Trust, verify_folder
from protocol.textindex import Found, TextIndex

if TYPE_CHECKING:
    from coordinator.graph.queries import Graph

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
        return cls(folder, manifest, _map(folder, manifest), CodeIndex.read(folder, manifest, exact=exact))

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

    @cached_property
    def graph(self) -> Graph:
        """Which of its codes are related; read at the first question.

        Raises:
            UsageError: the release has none.
            ProtocolError: it changed since it was verified, or cannot be read.
        """
        from coordinator.graph.published import read_graph  # noqa: PLC0415 - few questions are of the graph

        return read_graph(self.folder, self.manifest, self.map.entries)

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

    @cached_property
    def texts(self) -> TextIndex:
        """Codes and names, to be searched by what people type; made at the first question."""
        return TextIndex.build(self.map.entries)

    def find(
        self, text: str, k: int = 20, *, systems: Collection[str] = (), categories: Collection[str] = ()
    ) -> list[Found]:
        """The k codes that a text finds best: by code, by name, or by the name of a synonym.

        Args:
            text: anything that a person types.
            k: how many.
            systems: prefixes to which codes are limited; all if empty.
            categories: the same for categories of code systems.

        Raises:
            UsageError: no such system or category.
        """
        return self.texts.find(text, k, systems=self.prefixes(systems, categories))

    def prefixes(self, systems: Collection[str], categories: Collection[str]) -> frozenset[str]:
        """The code systems that are of `systems` and of `categories`; none for no limit.

        Raises:
            UsageError: the study has no such system or category, or none is both.
        """
        return self.map.study.prefixes(systems, categories)


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
                _check_files_exist(version)
                found = OpenRelease.load(version.folder, trust=self.home.keys.public())
                _check_as_published(version, found.manifest)
                self._open[version.digest] = found
            self._open.move_to_end(version.digest)
            while len(self._open) > _HELD_OPEN:
                self._open.popitem(last=False)
        return found

    def read_map(self, number: int) -> PublishedMap:
        """A version's map alone, verified; unlike `open` of a withdrawn version too, as long as its files are there.

        Raises:
            UsageError: there is no such version.
            ProtocolError: its folder is not what its manifest says, or its files were erased.
            EnvelopeError: its signature does not hold.
        """
        version = self.version(number)
        return _map(version.folder, self._verified(version))

    def check(self, version: Version) -> None:
        """Return only if a version is, file by file, what was published, and follows the version before it.

        Raises:
            ProtocolError: it is not, or its files were erased.
            EnvelopeError: its signature does not hold.
        """
        manifest = self._verified(version)
        before = next((v.digest for v in self.versions() if v.number == version.number - 1), "")
        if manifest.previous != before:
            raise ProtocolError(
                f"Version {version.number} does not follow version {version.number - 1}",
                why="its manifest names another version before it than the one that was published",
                do="Restore the coordinator's home from a backup",
            )

    def _verified(self, version: Version) -> PublishedManifest:
        """The manifest of a version that is what was published; of a withdrawn one too."""
        _check_files_exist(version)
        manifest = verify_folder(version.folder, self.home.keys.public(), withdrawn=True)
        _check_as_published(version, manifest)
        return manifest


def _check_files_exist(version: Version) -> None:
    if version.erased:
        when = f" on {version.withdrawn:%Y-%m-%d}" if version.withdrawn else ""
        raise ProtocolError(
            f"The files of version {version.number} were erased",
            why=f"a site that it was fitted with has withdrawn{when}",
            do="Use the newest version",
        )


def _check_as_published(version: Version, manifest: PublishedManifest) -> None:
    """A signature alone would let another manifest take the number of this version."""
    if manifest.digest != version.digest:
        raise ProtocolError(
            f"Version {version.number} is not the one that was published",
            why=f"its manifest has digest {manifest.digest[:12]}, the database has {version.digest[:12]}",
            do="Restore the folder from a backup; a published version is never changed",
        )


def _map(folder: Path, manifest: PublishedManifest) -> PublishedMap:
    from coordinator.exports.reading import read_map  # noqa: PLC0415 - pyarrow takes 40 MB

    return read_map(folder, manifest)
