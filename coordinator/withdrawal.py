"""A site leaves: its keys are revoked, its data erased, and the map is fitted again as if it had never joined.

The steps, each stored before the next begins, so that a withdrawal that was interrupted is gone on with
by the same command:

1. `begun`: in one transaction the site's keys are revoked, its releases no longer count, and the versions
   that were fitted with them are withdrawn. Nothing of the site is taken in from here on.
2. `rekeyed`: each round to which something of the site came gets a new key (`keychange.change_round_key`);
   with the old one goes the only way to read what the site had sealed, wherever a copy of it is left.
3. `erased`: its envelopes, what was refused of them, fits and whatever else was computed with them, and
   results that were not delivered yet.
4. `marked`: each withdrawn version gets its signed mark, or is erased but for the mark.
5. `refitted`: without the site, every published round from the first on to which it released: what a
   round's releases are held against are the rounds before it.
6. `published`: the new version, whose manifest carries a tombstone.

If fewer sites than the study's minimum remain, there is no refit and no new version; the rest stands.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coordinator import publish, rounds
from coordinator.config import Home
from coordinator.fitting import fit_accepted
from coordinator.flower.desk import RoundDesk
from coordinator.harmonize import load_fit, load_screening
from coordinator.keychange import change_round_key
from coordinator.store import Store, Withdrawal
from protocol.errors import FitError, RoundError, UsageError
from protocol.published import mark_withdrawn

STEPS = ("begun", "rekeyed", "erased", "marked", "refitted", "published")
Tell = Callable[[str], None]
_TRANSPORT = frozenset(
    {"call.json", "sites.json", "transport.log", "run.json", "received", "refused", "outgoing", "progress"}
)
"""What lies in a round's folder before anything is computed; all else was made from releases."""


@dataclass(frozen=True)
class Plan:
    """What a withdrawal would do.

    Attributes:
        site: who leaves.
        rounds: to which something of it came.
        sums: in which it took part; the sums themselves are erased.
        versions: that were fitted with its release.
        files: that would be erased, with their folders' content.
        bytes: of these files.
        fits: rounds whose fit would be erased; those that were published are fitted again, the first one first.
        refit_round: the round of the new version; empty if no version held the site.
        remaining: accepted releases of that round without the site.
        needed: the study's minimum.
    """

    site: str
    rounds: tuple[str, ...]
    sums: tuple[str, ...]
    versions: tuple[int, ...]
    files: tuple[Path, ...]
    bytes: int
    fits: tuple[str, ...]
    refit_round: str
    remaining: int
    needed: int

    @property
    def refits(self) -> bool:
        """Whether enough sites remain for a new version."""
        return bool(self.refit_round) and self.remaining >= self.needed


def unfinished(store: Store, site: str) -> Withdrawal | None:
    """The withdrawal of a site that was interrupted."""
    return next((w for w in store.withdrawals() if w.site == site and w.step != STEPS[-1]), None)


def plan(home: Home, store: Store, name: str, *, erase_versions: bool = False) -> Plan:
    """What would happen; nothing is changed.

    Raises:
        UsageError: the site is not enrolled, or has withdrawn.
    """
    site = store.site(name)
    if site.withdrawn is not None:
        raise UsageError(
            f"Site {name} withdrew on {site.withdrawn:%Y-%m-%d}",
            do="Nothing was changed; coordinator sites shows it",
        )
    affected = tuple(r.name for r in store.rounds() if _came(home, store, r.name, name))
    sums = tuple(p.name for p in sorted((home.folder / "sums").glob("*")) if any(p.rglob(f"{name}.*")))
    found = store.versions()
    versions = tuple(v.version for v in found if name in v.sites)
    refit, fits = found[-1].round if versions else "", _fits(home, store, name)
    remaining = (
        sum(s.state == "accepted" and s.site != name for s in store.submissions(refit)) if refit else 0
    )
    draft = Withdrawal(
        site=name,
        affected_rounds=" ".join(affected),
        affected_sums=" ".join(sums),
        affected_versions=" ".join(map(str, versions)),
        affected_fits=" ".join(fits),
        erase_versions=erase_versions,
    )
    files = tuple(_to_erase(home, store, draft))
    if erase_versions:
        files += tuple(f for v in versions for f in _version_folders(home, v))
    size = sum(_bytes(f) for f in files)
    return Plan(name, affected, sums, versions, files, size, fits, refit, remaining, home.study.minimum_sites)


def check_reason(reason: str) -> str:
    """The reason on one line.

    Raises:
        UsageError: none is given, or it is too long to be published.
    """
    reason = " ".join(reason.split())
    if not 0 < len(reason) <= 500 or not reason.isprintable():
        raise UsageError(
            "A withdrawal needs a reason of 1 to 500 characters",
            why="every later version tells it to all sites",
            do='Write for example --because "the ethics board ended its consent"',
        )
    return reason


def begin(
    home: Home, store: Store, found: Plan, *, reason: str, erase_versions: bool, now: datetime
) -> Withdrawal:
    """Revoke the site's keys; from here on there is no way back.

    Raises:
        UsageError: as `check_reason`.
    """
    reason, reviewed = check_reason(reason), {}
    for name in found.fits:
        screening = load_screening(home.fit_path(name))
        verdicts = screening.sites if screening else ()
        reviewed[name] = {v.site: v.accepted for v in verdicts if v.accepted and v.site != found.site}
    withdrawal = Withdrawal(
        site=found.site,
        reason=reason,
        at=now.astimezone(UTC).replace(tzinfo=None, microsecond=0),
        node_key=store.site(found.site).node_key,
        node_denied=False,
        erase_versions=erase_versions,
        affected_rounds=" ".join(found.rounds),
        affected_sums=" ".join(found.sums),
        affected_versions=" ".join(map(str, found.versions)),
        affected_fits=" ".join(found.fits),
        reviewed=json.dumps(reviewed),
        refit_round=found.refit_round,
        step="begun",
        erased_bytes=0,
        new_version=0,
        outcome="" if found.refit_round else "No version was fitted with it, so none had to be made anew.",
    )
    store.begin_withdrawal(withdrawal)
    return unfinished(store, found.site) or withdrawal


def carry_out(
    home: Home, store: Store, withdrawal: Withdrawal, *, now: datetime | None = None, tell: Tell | None = None
) -> Withdrawal:
    """Do the steps that are left.

    Args:
        home: of the coordinator.
        store: its store.
        withdrawal: from `begin`, or an `unfinished` one.
        now: the time of the new version; the present if not given.
        tell: told the name of each step once it is stored.

    Returns:
        the withdrawal as it is stored.

    Raises:
        EnvelopeError: an accepted release of another site does not open.
    """
    created = (now or datetime.now(UTC)).replace(microsecond=0)
    work: dict[str, Callable[[Home, Store, Withdrawal], None]] = {
        "rekeyed": _change_keys,
        "erased": _erase,
        "marked": _mark,
        "refitted": _refit,
        "published": lambda h, s, w: _publish(h, s, w, created),
    }
    for name in STEPS[STEPS.index(withdrawal.step) + 1 :]:
        work[name](home, store, withdrawal)
        withdrawal.step = name
        store.save_withdrawal(withdrawal)
        if tell is not None:
            tell(name)
    return withdrawal


# --- The steps -----------------------------------------------------------------------------------------


def _change_keys(home: Home, store: Store, withdrawal: Withdrawal) -> None:
    for found in store.rounds():
        if found.name in withdrawal.rounds:
            change_round_key(home, store, found, without=withdrawal.site)
            continue
        if not found.call:
            continue  # planned: nobody is called yet
        desk = RoundDesk(home.round_folder(found.name))
        desk.open(found.call, {s: node for s, node in desk.sites().items() if s != withdrawal.site})


def _erase(home: Home, store: Store, withdrawal: Withdrawal) -> None:
    for path in _to_erase(home, store, withdrawal):
        withdrawal.erased_bytes += _bytes(path)
        _remove(path)


def _mark(home: Home, store: Store, withdrawal: Withdrawal) -> None:
    tombstone = next(t for t in publish.tombstones(store)[::-1] if t.site == withdrawal.site)
    for version in withdrawal.versions:
        if withdrawal.erase_versions:
            for folder in _version_folders(home, version):
                withdrawal.erased_bytes += _bytes(folder)
                shutil.rmtree(folder)
            store.mark_erased(version)
        target = home.release_folder(version)
        copies = publish.site_copies(target)
        _remove(copies / withdrawal.site)
        for folder in (target, *sorted(copies.glob("*"))):
            mark_withdrawn(folder, tombstone, home.keys)


def _refit(home: Home, store: Store, withdrawal: Withdrawal) -> None:
    reviewed, published = json.loads(withdrawal.reviewed), {v.round for v in store.versions()}
    for name in withdrawal.fits:
        if name not in published or home.fit_path(name).exists():
            continue  # what is there, an interrupted run has fitted: the step before had erased it
        try:
            fit_accepted(home, store, name, accepted=reviewed.get(name))
        except (RoundError, FitError) as error:
            if name == withdrawal.refit_round:
                withdrawal.outcome = f"There is no new version. {error}"


def _publish(home: Home, store: Store, withdrawal: Withdrawal, created: datetime) -> None:
    if withdrawal.outcome:
        return
    if withdrawal.new_version and withdrawal.new_version in {v.version for v in store.versions()}:
        return
    withdrawal.new_version = publish.next_version(store)
    store.save_withdrawal(withdrawal)
    name = withdrawal.refit_round
    releases = rounds.accepted_releases(home, store, name)
    fitted = load_fit(home.fit_path(name), releases, home.study)
    edition = publish.make_edition(home, store, name, releases, fitted, created=created)
    publish.publish(home, store, edition)


# --- What belongs to a site ----------------------------------------------------------------------------


def _came(home: Home, store: Store, round_name: str, site: str) -> bool:
    """Whether anything of a site came to a round."""
    if any(s.site == site for s in store.submissions(round_name)):
        return True
    folder = home.round_folder(round_name)
    return any(folder.glob(f"received/{site}.*")) or any(_quarantined(home, round_name, site))


def _fits(home: Home, store: Store, site: str) -> tuple[str, ...]:
    """Rounds whose fit goes: published ones from the first on that used the site, others that used it."""
    published = list(dict.fromkeys(v.round for v in store.versions()))
    using = [r.name for r in store.rounds() if _used(home, store, r.name, site)]
    first = next((i for i, name in enumerate(published) if name in using), len(published))
    return (*published[first:], *(name for name in using if name not in published))


def _used(home: Home, store: Store, round_name: str, site: str) -> bool:
    """Whether anything of a round was computed with a release of the site."""
    if any(s.site == site and s.manifest_digest for s in store.submissions(round_name)):
        return True
    if any(v.round == round_name and site in v.sites for v in store.versions()):
        return True
    # A release that came later and was refused stands in the place of the one that was fitted.
    screening = load_screening(home.fit_path(round_name))
    return screening is not None and any(v.site == site for v in screening.sites)


def _quarantined(home: Home, round_name: str, site: str) -> Iterator[Path]:
    # A name holds hyphens, and so does what follows it: north-1f... is not of the site nor.
    for path in sorted((home.folder / "quarantine" / round_name).glob(f"{site}-*.sealed")):
        if path.stem.rpartition("-")[0] == site:
            yield path


def _to_erase(home: Home, store: Store, withdrawal: Withdrawal) -> Iterator[Path]:
    """What exists and goes: the site's own files, and all that was computed with them."""
    site, withdrawn = withdrawal.site, set(withdrawal.versions)
    published = {v.round for v in store.versions() if v.version in withdrawn}
    places = (home.folder / kind / n for n in withdrawal.sums for kind in ("sums", "pooled"))
    yield from (p for p in places if p.exists())
    yield from sorted((home.flower / "nodes").glob(f"{site}.pub"))
    for name in withdrawal.rounds:
        folder = home.round_folder(name)
        yield from sorted(folder.glob(f"received/{site}.*"))
        # Results of withdrawn versions that were not delivered yet must not be.
        outgoing = "*" if name in published else site
        yield from sorted(folder.glob(f"outgoing/{outgoing}.sealed"))
        yield from sorted(folder.glob(f"progress/{site}.json"))
        yield from sorted(folder.glob(f"refused/{site}"))
        yield from _quarantined(home, name, site)
    for name in withdrawal.fits:
        folder = home.round_folder(name)
        yield from sorted(p for p in folder.glob("*") if p.name not in _TRANSPORT)
        if home.fit_path(name).exists():
            yield home.fit_path(name)
    known = {home.release_folder(v.version).name for v in store.versions()}
    for path in sorted((home.folder / "releases").glob("*")):
        if path.name.removesuffix("-sites") not in known:
            yield path  # a publication that did not end
        elif path.name.endswith("-sites") and (path / site).exists():
            yield path / site


def _version_folders(home: Home, version: int) -> Iterator[Path]:
    target = home.release_folder(version)
    for folder in (target, publish.site_copies(target)):
        if folder.exists():
            yield folder


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
