"""What must hold after a round, whatever happened on the way; `Watch` remembers what has held before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator import rounds
from coordinator.client import load_release
from coordinator.flower.desk import RoundDesk
from protocol.canonical import digest, file_digest
from protocol.codeindex import CodeIndex
from protocol.published import verify_folder
from site_agent.ledger import Entry
from site_agent.state import load_state
from tests.battery.chaos.inputs import SITES
from tests.battery.chaos.stack import Federation

MAP_FILES = ("clusters.parquet", "embeddings.parquet", "evidence.parquet")
"""What of a version must be the same, byte for byte, whenever the same releases are fitted."""

_PARTS = (".part-", ".sealed.new", "leaving.sealed")


@dataclass
class Watch:
    """All rounds of a federation so far.

    Attributes:
        contents: (site, sequence) -> digest of the one manifest that ever had it.
        maps: digests of the accepted manifests -> digest of the map's files, and the round that made it first.
    """

    federation: Federation
    contents: dict[tuple[str, int], str] = field(default_factory=dict)
    maps: dict[tuple[str, ...], tuple[str, str]] = field(default_factory=dict)
    undisturbed: set[tuple[str, ...]] = field(default_factory=set)

    def check(self, name: str, *, disturbed: bool) -> None:
        """A round that was delivered; raises AssertionError with what does not hold."""
        fed = self.federation
        store = fed.store()
        assert store.round(name).state == "delivered", store.round(name).state
        submissions = store.submissions(name)
        assert [s.site for s in submissions] == list(SITES), "one submission for each site"
        assert {s.state for s in submissions} == {"accepted"}, [s.detail for s in submissions]
        for one in submissions:
            received = RoundDesk(fed.hub.round_folder(name)).received(one.site)
            assert file_digest(received) == one.envelope_digest, f"{one.site}: another file than was accepted"
        opened = rounds.accepted_releases(fed.hub, store, name)
        assert [r.manifest.digest for r in opened] == [s.manifest_digest for s in submissions]
        for site in SITES:
            self._site(site)
        self._versions(name)
        self._map(name, tuple(s.manifest_digest for s in submissions), disturbed=disturbed)

    def _site(self, site: str) -> None:
        """The sequence moved once for each release, and both sides remember the same."""
        store, agent = self.federation.store(), self.federation.agent(site)
        accepted = [s for r in store.rounds() for s in store.submissions(r.name) if s.site == site]
        for one in accepted:
            key = (site, one.sequence)
            assert self.contents.setdefault(key, one.manifest_digest) == one.manifest_digest, (
                f"{key}: two contents"
            )
        last, row = max(accepted, key=lambda s: s.sequence), store.site(site)
        numbers = sorted({s.sequence for s in accepted})
        assert numbers == list(range(1, len(numbers) + 1)), f"{site}: {numbers} were accepted"
        assert (row.accepted_sequence, row.accepted_digest) == (last.sequence, last.manifest_digest)
        state = load_state(agent.home.folder)
        assert (state.accepted_sequence, state.accepted_digest) == (last.sequence, last.manifest_digest)
        entries = agent.ledger.verify()
        noted = {(int(e.facts["sequence"]), str(e.facts["manifest"])) for e in _of(entries, "accepted")}
        assert noted == {(s.sequence, s.manifest_digest) for s in accepted}, (
            f"{site}: its ledger says {noted}"
        )
        sealed = {str(e.facts["sha256"]) for e in _of(entries, "sealed")}
        assert {s.envelope_digest for s in accepted} <= sealed, f"{site}: what left is not in its ledger"

    def _versions(self, name: str) -> None:
        """Numbers without a gap, each one published once, signed and whole, each naming the one before."""
        fed = self.federation
        store, trust = fed.store(), fed.hub.keys.public()
        versions = store.versions()
        assert [v.version for v in versions] == list(range(1, len(versions) + 1))
        assert [v.round for v in versions].count(name) == 1, f"{name} was published more than once"
        folders = {p.name for p in fed.hub.release_folder(1).parent.iterdir() if not p.name.startswith(".")}
        named = {f"v{v.version}" for v in versions}
        assert folders - {f"{n}-sites" for n in named} == named, folders
        last = versions[-1]
        folder = fed.hub.release_folder(last.version)
        manifest = verify_folder(folder, trust)
        assert (manifest.digest, manifest.round) == (last.manifest_digest, name)
        assert manifest.previous == (versions[-2].manifest_digest if len(versions) > 1 else "")
        CodeIndex.load(folder, trust=trust)
        assert load_release(folder, trust=trust).version == last.version
        assert {d.site for d in store.deliveries(last.version)} == set(SITES)
        for site in SITES:
            arrived = verify_folder(fed.home(site) / "results" / f"v{last.version}", trust)
            assert arrived.version == load_state(fed.home(site)).result_version == last.version

    def _map(self, name: str, releases: tuple[str, ...], *, disturbed: bool) -> None:
        folder = self.federation.hub.release_folder(self.federation.store().versions()[-1].version)
        found = digest("".join(file_digest(folder / file) for file in MAP_FILES).encode())
        before, first = self.maps.setdefault(releases, (found, name))
        assert found == before, f"the map of {name} differs from that of {first} with the same releases"
        if not disturbed:
            self.undisturbed.add(releases)

    def compared(self) -> bool:
        """Whether each map of a disturbed round was compared with one of an undisturbed round."""
        return set(self.maps) == self.undisturbed


def leftovers(fed: Federation) -> list[Path]:
    """What processes that were killed began, and nobody took away.

    The transport's own notes are let pass: parts of progress files at the coordinator and of calls at a site, a few
    hundred bytes of what is signed or public. All else could hold what a withdrawal must erase.
    """
    homes = [fed.home(name) for name in ("hub", *SITES)]
    found = [p for home in homes for p in home.rglob("*") if any(b in p.name for b in _PARTS)]
    return [p for p in found if p.parent.name not in {"progress", "calls"}]


def _of(entries: Sequence[Entry], event: str) -> list[Entry]:
    return [e for e in entries if e.event == event]
