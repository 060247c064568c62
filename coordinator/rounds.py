"""Rounds: every step is stored before the next begins."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.intake import Expected, verify_release
from coordinator.store import Round, Store, Submission
from protocol.canonical import file_digest
from protocol.envelope import open_sealed
from protocol.errors import EnvelopeError, FederationError, RoundError, UsageError
from protocol.keys import PrivateKeys
from protocol.messages import Receipt, RoundCall
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
    sites = store.sites()
    if not sites:
        raise RoundError("No site is enrolled", do="Run coordinator enroll with the sites' enrolment files")
    key_path = home.round_key_path(name)
    # A key without a stored round is left from a call that failed: nothing was ever sealed to it.
    key_path.unlink(missing_ok=True)
    keys = PrivateKeys.generate()
    keys.save(key_path)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    call = RoundCall(
        round=name,
        study_digest=home.study.digest,
        study=home.study.model_dump(mode="json"),
        recipient=keys.public(),
        expected={s.name: (s.accepted_sequence, s.accepted_digest) for s in sites},
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
        sha256 = file_digest(path)
        before = known.get(site.name)
        if before is not None and before.envelope_digest == sha256:
            continue
        submission = Submission(round=name, site=site.name, envelope_digest=sha256, state="accepted")
        try:
            release, submission.ledger_head = _open(home, store, name, site.name)
            submission.sequence = release.manifest.sequence
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

    A release that was accepted is held against what was accepted then: later releases of the site, and the
    envelope's expiry, do not matter to a refit. The plain text is a private temporary file that is deleted at once.
    """
    site = next(s for s in store.sites() if s.name == site_name)
    keys = PrivateKeys.load(home.round_key_path(name))
    path = RoundDesk(home.round_folder(name)).received(site_name)
    now = accepted.received.replace(tzinfo=UTC) if accepted else None
    with tempfile.TemporaryDirectory(dir=home.folder) as work:
        plain = Path(work) / "release"
        header = open_sealed(path, plain, keys=keys, signer=site.public_keys, now=now)
        release = decode_release(plain.read_bytes())
    expected = Expected(
        site=site_name,
        round=name,
        sequence=accepted.sequence if accepted else site.accepted_sequence,
        digest=accepted.manifest_digest if accepted else site.accepted_digest,
        signer=site.public_keys.digest,
    )
    return verify_release(header, release, study=home.study, expected=expected), header.ledger_head


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
    for site in store.sites():
        text = desk.progress(site.name).receipt
        if site.name in have or not text:
            continue
        receipt = open_signed(text.encode(), Receipt, site.public_keys)
        if (receipt.site, receipt.round, receipt.version) == (site.name, name, published.version):
            store.record_delivery(published.version, site.name, text, receipt.manifest_digest)
            have.add(site.name)
    if have >= {s.site for s in store.submissions(name) if s.state == "accepted"}:
        store.set_round_state(name, "delivered")
    return sorted(have)
