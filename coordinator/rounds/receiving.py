"""Taking in what sites send: verified, and its verdict stored, before it is used."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.intake import Expected, verify_release
from coordinator.roundstates import COLLECTING
from coordinator.store import Round, Site, Store, Submission
from protocol.canonical import file_digest
from protocol.envelope import read_header, read_sealed
from protocol.errors import EnvelopeError, FederationError, RoundError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.release import VerifiedRelease, decode_release


def take_in(home: Home, store: Store, name: str) -> list[Submission]:
    """Verify every release that has arrived and store the verdict; what is refused is kept apart.

    What comes of a site that has withdrawn is erased, unopened. What comes after the round was closed, or
    of a site that it does without, is left where it is, unopened too.

    Returns:
        the round's submissions after this call.
    """
    found, excluded = store.round(name), store.exclusions(name)
    desk = RoundDesk(home.round_folder(name))
    known = {s.site: s for s in store.submissions(name)}
    for site in store.sites():
        path, keys = desk.received(site.name), site.public_keys.digest
        refused, refused_by = desk.refused(site.name)
        if refused and refused_by != keys:
            desk.forgive(site.name)  # with its new keys the same file may hold
        if not path.exists():
            continue
        if site.withdrawn is not None:
            path.unlink()
            continue
        if found.state not in COLLECTING or site.name in excluded:
            continue
        sha256, before = file_digest(path), known.get(site.name)
        if before is not None and before.envelope_digest == sha256:
            if before.state != "refused":
                continue
            if (refused, refused_by) == (sha256, keys):
                _put_aside(home, name, site.name, path, sha256)  # killed before it was
                continue
        if found.state == "open":
            store.move_round(name, "collecting")
            found = store.round(name)
        submission = _judge(home, store, name, site.name, path, sha256)
        store.record_submission(submission)
        if submission.state == "refused":
            desk.refuse(site.name, sha256, keys)
            _put_aside(home, name, site.name, path, sha256)
    return store.submissions(name)


def _judge(home: Home, store: Store, name: str, site: str, path: Path, sha256: str) -> Submission:
    """The verdict on a file; the release itself is let go, so that one is in memory at a time."""
    submission = Submission(round=name, site=site, envelope_digest=sha256, state="accepted")
    submission.received = _came(path).replace(tzinfo=None)
    try:
        release, submission.ledger_head = _open(home, store, name, site)
        submission.sequence, submission.signer = release.manifest.sequence, release.signer
        submission.manifest_digest = release.manifest.digest
    except FederationError as error:
        submission.state, submission.detail = "refused", str(error)[:2000]
    return submission


def _put_aside(home: Home, name: str, site: str, path: Path, sha256: str) -> None:
    quarantine = home.folder / "quarantine" / name
    quarantine.mkdir(parents=True, exist_ok=True)
    path.rename(quarantine / f"{site}-{sha256[:16]}.sealed")


def accepted_releases(home: Home, store: Store, name: str) -> list[VerifiedRelease]:
    """Open and verify again what the round accepted.

    Raises:
        RoundError: there are fewer than the study's minimum.
    """
    store.round(name)
    excluded = store.exclusions(name)
    accepted = [s for s in store.submissions(name) if s.state == "accepted" and s.site not in excluded]
    needed = home.study.minimum_sites
    if len(accepted) < needed:
        waiting = sorted(set(home.study.sites) - {s.site for s in accepted} - set(excluded))
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
    # Held against its expiry is when it came, not when somebody looked.
    now = accepted.received.replace(tzinfo=UTC) if accepted else _came(path)
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


def _came(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


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
