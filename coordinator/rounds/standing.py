"""How far each site of a round is, and which have the result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.roundstates import COLLECTING
from coordinator.store import Site, Store
from protocol.errors import EnvelopeError
from protocol.messages import Receipt
from protocol.processes import FolderLock
from protocol.signed import open_signed


@dataclass(frozen=True)
class SiteState:
    """One site in a round, as people see it."""

    site: str
    state: str
    detail: str
    bytes_done: int
    bytes_total: int
    contact: str
    updated: str = ""

    def same_as(self, other: SiteState | None) -> bool:
        """Whether nothing has changed but the time at which it was looked at."""
        return other is not None and replace(self, updated="") == replace(other, updated="")


def called_sites(store: Store, name: str) -> list[Site]:
    """The sites that a round waits for: enrolled, and neither withdrawn nor excluded."""
    excluded = store.exclusions(name)
    return [site for site in store.members() if site.name not in excluded]


def site_states(home: Home, store: Store, name: str) -> list[SiteState]:
    """Every site of the study: what was accepted, refused or is still on its way. Missing is never shown as zero."""
    closed = store.round(name).state not in {"planned", "aborted", *COLLECTING}
    desk = RoundDesk(home.round_folder(name))
    submissions = {s.site: s for s in store.submissions(name)}
    enrolled, excluded = {s.name: s for s in store.sites()}, store.exclusions(name)
    found = []
    for site in home.study.sites:
        if site not in enrolled:
            found.append(SiteState(site, "not enrolled", "", 0, 0, ""))
            continue
        contact = enrolled[site].contact
        if (left := enrolled[site].withdrawn) is not None:
            found.append(SiteState(site, "withdrawn", f"since {left:%Y-%m-%d}", 0, 0, ""))
            continue
        if site in excluded:
            found.append(SiteState(site, "excluded", excluded[site].because, 0, 0, contact))
            continue
        progress, submission = desk.progress(site), submissions.get(site)
        state: str = progress.state
        detail = progress.detail
        if state not in {"sending", "delivered"}:
            if submission is not None:
                state, detail = submission.state, submission.detail
            elif closed:
                state, detail = "late", f"Nothing of it was accepted in time; last: {_last(state, detail)}"
        found.append(
            SiteState(
                site, state, detail, progress.bytes_done, progress.bytes_total, contact, progress.updated
            )
        )
    return found


def _last(state: str, detail: str) -> str:
    return f"{state} ({detail})" if detail else state


def take_receipts(home: Home, store: Store, name: str) -> list[str]:
    """Verify and store the sites' receipts for the round's version; returns the sites that have one."""
    published = next((p for p in reversed(store.versions()) if p.round == name), None)
    if published is None:
        return []
    desk = RoundDesk(home.round_folder(name))
    have = {d.site for d in store.deliveries(published.version)}
    for site in store.members():
        text = desk.progress(site.name).receipt
        if site.name in have or not text:
            continue
        receipt = _receipt(store, site, text.encode())
        if (receipt.site, receipt.round, receipt.version) == (site.name, name, published.version):
            store.record_delivery(published.version, site.name, text, receipt.manifest_digest)
            have.add(site.name)
    # A site whose release the checks refused is sent no version.
    if have >= set(published.sites) and store.round(name).state == "published":
        store.move_round(name, "delivered", f"Version {published.version}")
    return sorted(have)


def _receipt(store: Store, site: Site, data: bytes) -> Receipt:
    """A receipt that any key of the site has signed: it may have changed keys since."""
    usable = [k.public_keys for k in store.site_keys(site.name) if k.revoked is None]
    for keys in usable[:-1]:
        try:
            return open_signed(data, Receipt, keys)
        except EnvelopeError:
            continue
    return open_signed(data, Receipt, usable[-1] if usable else site.public_keys)


@contextmanager
def exclusive(home: Home) -> Iterator[None]:
    """No fit, publication or withdrawal beside this one.

    Raises:
        RoundError: another one runs.
    """
    lock = FolderLock(home.folder, "a fit, a publication or a withdrawal")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
