"""Rounds: every step is stored before the next begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.intake import Expected, verify_release
from coordinator.store import Round, Site, Store, Submission
from protocol.canonical import file_digest
from protocol.envelope import read_header, read_sealed
from protocol.errors import EnvelopeError, FederationError, RoundError, UsageError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Receipt, RoundCall
from protocol.processes import FolderLock
from protocol.release import VerifiedRelease, decode_release
from protocol.signed import open_signed, sign_message
from protocol.vocabulary import IDENTIFIER


def open_round(home: Home, store: Store, name: str, *, days: int, nodes: dict[str, int]) -> Round:
    """Make the round's own key, sign the call, lay out the desk.

    Args:
        days: until the call, and everything sealed for it, expires.
        nodes: site -> Flower node.

    Raises:
        UsageError: the name is not allowed or taken.
        RoundError: no site is enrolled.
    """
    if not IDENTIFIER.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a round", why="a name has 1 to 32 of a-z, 0-9 and -")
    if any(r.name == name for r in store.rounds()):
        raise UsageError(f"Round {name!r} exists", do="Take a new name; coordinator round status lists them")
    if home.study.sharing.embeddings == "none":
        raise UsageError(
            "This study collects no embeddings",
            why="its file says sharing.embeddings = none",
            do="Pool counts with coordinator sum open",
        )
    sites = store.members()
    if not sites:
        raise RoundError("No site is enrolled", do="Run coordinator enroll with the sites' enrolment files")
    key_path = home.round_key_path(name)
    # A key without a stored round is left from a call that failed: nothing was ever sealed to it.
    key_path.unlink(missing_ok=True)
    keys = PrivateKeys.generate()
    keys.save(key_path, home.passphrase)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    call = RoundCall(
        round=name,
        study_digest=home.study.digest,
        study=home.study.model_dump(mode="json"),
        recipient=keys.public(),
        expected={s.name: (s.accepted_sequence, s.accepted_digest) for s in sites},
        ledger_heads=store.ledger_heads(),
        expires=expires,
    )
    data = sign_message(call, home.keys)
    RoundDesk(home.round_folder(name)).open(data, {s.name: nodes[s.name] for s in sites if s.name in nodes})
    found = Round(name=name, call=data, expires=expires.replace(tzinfo=None), state="open")
    with store.begin() as session:
        session.add(found)
    return found


def take_in(home: Home, store: Store, name: str) -> list[Submission]:
    """Verify every release that has arrived and store the verdict; what is refused is kept apart.

    What comes of a site that has withdrawn is erased, unopened.

    Returns:
        the round's submissions after this call.
    """
    store.round(name)
    desk = RoundDesk(home.round_folder(name))
    known = {s.site: s for s in store.submissions(name)}
    for site in store.sites():
        path = desk.received(site.name)
        if not path.exists():
            continue
        if site.withdrawn is not None:
            path.unlink()
            continue
        sha256 = file_digest(path)
        before = known.get(site.name)
        if before is not None and before.envelope_digest == sha256:
            continue
        submission = Submission(round=name, site=site.name, envelope_digest=sha256, state="accepted")
        try:
            release, submission.ledger_head = _open(home, store, name, site.name)
            submission.sequence, submission.signer = release.manifest.sequence, release.signer
            submission.manifest_digest = release.manifest.digest
        except FederationError as error:
            submission.state, submission.detail = "refused", str(error)[:2000]
            quarantine = home.folder / "quarantine" / name
            quarantine.mkdir(parents=True, exist_ok=True)
            path.rename(quarantine / f"{site.name}-{sha256[:16]}.sealed")
        store.record_submission(submission)
    return store.submissions(name)


def accepted_releases(home: Home, store: Store, name: str) -> list[VerifiedRelease]:
    """Open and verify again what the round accepted.

    Raises:
        RoundError: there are fewer than the study's minimum.
    """
    store.round(name)
    accepted = [s for s in store.submissions(name) if s.state == "accepted"]
    needed = home.study.minimum_sites
    if len(accepted) < needed:
        waiting = sorted(set(home.study.sites) - {s.site for s in accepted})
        raise RoundError(
            f"Round {name} has {len(accepted)} accepted releases, the study needs {needed}",
            why=f"nothing was accepted from {', '.join(waiting)}" if waiting else "",
            do="See coordinator round status; collect again when the sites are ready",
        )
    found = []
    for submission in accepted:
        release, _ = _open(home, store, name, submission.site, submission)
        if release.manifest.digest != submission.manifest_digest:
            raise EnvelopeError(f"The stored release of site {submission.site} is not the accepted one")
        found.append(release)
    return found


def _open(
    home: Home, store: Store, name: str, site_name: str, accepted: Submission | None = None
) -> tuple[VerifiedRelease, str]:
    """One received envelope, opened, bound and checked; and the site's ledger head.

    A release that was accepted is held against what was accepted then: later releases of the site, its
    later keys, and the envelope's expiry, do not matter to a refit. The plain text is never in a file.
    """
    site, desk = store.site(site_name), RoundDesk(home.round_folder(name))
    if not home.round_key_path(name).exists():
        raise RoundError(
            f"The key of round {name} was erased", why="what was sealed for it can be opened by nobody"
        )
    keys = PrivateKeys.load(home.round_key_path(name), home.passphrase)
    path, rewrapped = desk.received(site_name), b""
    head = read_header(path)
    if head.recipient_key != keys.public().digest and rewrapped_path(home, name, site_name).exists():
        rewrapped = rewrapped_path(home, name, site_name).read_bytes()
    signer = signer_of(store, store.round(name), site, head.signer_key, accepted)
    now = accepted.received.replace(tzinfo=UTC) if accepted else None
    header, plain = read_sealed(path, keys=keys, signer=signer, now=now, rewrapped=rewrapped)
    expected = Expected(
        site=site_name,
        round=name,
        sequence=accepted.sequence if accepted else site.accepted_sequence,
        digest=accepted.manifest_digest if accepted else site.accepted_digest,
        signer=signer.digest,
    )
    release = verify_release(header, decode_release(plain), study=home.study, expected=expected)
    return release, header.ledger_head


def rewrapped_path(home: Home, name: str, site: str) -> Path:
    """Where the content key of a release lies that was sealed to a key which the round has replaced."""
    return RoundDesk(home.round_folder(name)).received(site).with_suffix(".rewrapped")


def signer_of(
    store: Store, found: Round, site: Site, key: str, accepted: Submission | None = None
) -> PublicKeys:
    """The keys of a site by which a release of a round may be signed.

    Those that the site has now, and those that it had when the round opened: it may have sealed before it
    changed them. What was accepted stands, whatever became of the key later.

    Raises:
        EnvelopeError: the key is revoked, was replaced before the round, or is not the site's.
    """
    row = next((k for k in store.site_keys(site.name) if k.digest == key), None)
    if row is None:
        raise EnvelopeError(
            f"The release is signed by a key that site {site.name} has not enrolled",
            do=f"If it has changed its keys: coordinator keys trust key-list-{site.name}.json, then collect again",
        )
    if accepted is not None and accepted.signer == key:
        return row.public_keys
    if row.revoked is not None:
        raise EnvelopeError(
            f"The release is signed by a key of site {site.name} that was revoked",
            why=f"as of {row.revoked:%Y-%m-%d %H:%M} UTC it may be in other hands",
            do="Do not use it; call the site",
        )
    if row.until is not None and row.until < found.opened:
        raise EnvelopeError(
            f"The release is signed by a key that site {site.name} had replaced before the round was opened",
            do="The site must seal it again with its present key; if it did not make this release, it must revoke the key",
        )
    return row.public_keys


@dataclass(frozen=True)
class SiteState:
    """One site in a round, as people see it."""

    site: str
    state: str
    detail: str
    bytes_done: int
    bytes_total: int
    contact: str


def site_states(home: Home, store: Store, name: str) -> list[SiteState]:
    """Every site of the study: what was accepted, refused or is still on its way. Missing is never shown as zero."""
    store.round(name)
    desk = RoundDesk(home.round_folder(name))
    submissions = {s.site: s for s in store.submissions(name)}
    enrolled = {s.name: s for s in store.sites()}
    found = []
    for site in home.study.sites:
        if site not in enrolled:
            found.append(SiteState(site, "not enrolled", "", 0, 0, ""))
            continue
        if (left := enrolled[site].withdrawn) is not None:
            found.append(SiteState(site, "withdrawn", f"since {left:%Y-%m-%d}", 0, 0, ""))
            continue
        progress, submission = desk.progress(site), submissions.get(site)
        state: str = progress.state
        detail = progress.detail
        if submission is not None and state not in {"sending", "delivered"}:
            state, detail = submission.state, submission.detail
        contact = enrolled[site].contact
        found.append(SiteState(site, state, detail, progress.bytes_done, progress.bytes_total, contact))
    return found


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
    if have >= set(published.sites):
        store.set_round_state(name, "delivered")
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
