"""New keys: the coordinator's own, and those of a round that go on without one of its sites."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.rounds import rewrapped_path
from coordinator.store import Round, Store
from protocol.enrolment import Authority
from protocol.envelope import read_header, rewrap
from protocol.errors import EnvelopeError, FederationError, KeyFileError, ProtocolError
from protocol.files import sync_folder, write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Invitation, RoundCall
from protocol.published import mark_withdrawn, marks, sign_manifest, verify_folder
from protocol.rotation import COORDINATOR, erase_key
from protocol.signed import open_signed, parse, sign_message

# --- The coordinator's identity ------------------------------------------------------------------------


def rotate(home: Home, *, now: datetime, lost_since: datetime | None = None) -> tuple[Home, Path]:
    """New keys for the coordinator, and `key-list-coordinator.json` to hand to every site.

    Args:
        home: as it was; it still holds the old keys.
        now: UTC.
        lost_since: the present keys may be in other hands since then.

    Returns:
        the home with the new keys, and the file.

    Raises:
        KeyFileError: the key file does not open.
        ProtocolError: `lost_since` is still to come.
    """
    listed = home.identity.rotate(home.passphrase, now=now, lost_since=lost_since)
    after = Home(home.folder)
    sign_again(after, Store(after.database_url))
    path = after.folder / f"key-list-{COORDINATOR}.json"
    write_atomic(path, listed.model_dump_json(indent=1), mode=0o644)
    # The old keys sign nothing any more, and nothing is ever sealed to a coordinator's identity.
    for old in after.identity.previous():
        erase_key(old)
    return after, path


def sign_again(home: Home, store: Store) -> None:
    """Sign with the present keys whatever is still sent or read: invitation, calls, published versions.

    May be run at any time; what is signed with them already stays as it is.
    """
    from coordinator.publish import site_copies  # noqa: PLC0415 - torch takes seconds to import

    keys, path = home.keys.public(), home.folder / "invitation.json"
    before = parse(path.read_bytes(), Invitation)
    if before.keys != keys:
        write_atomic(path, before.model_copy(update={"keys": keys}).model_dump_json(indent=1), mode=0o644)
    listed = home.identity.trust(keys).listed
    for found in store.rounds():
        if not found.call:
            continue  # planned: nobody is called yet
        if not _signed_by(found.call, keys):
            call = next(open_signed(found.call, RoundCall, k) for k in listed if _signed_by(found.call, k))
            found.call = sign_message(call, home.keys)
            store.set_call(found.name, found.call)
        desk = RoundDesk(home.round_folder(found.name))
        desk.open(found.call, desk.sites())
    for version in store.versions():
        folder = home.release_folder(version.version)
        for each in (folder, *sorted(site_copies(folder).glob("*"))):
            _sign_version_again(each, home.keys, listed)


def sign_calls_again(home: Home, store: Store, *, without_head: str) -> None:
    """Sign the calls of all rounds without the head of one site's ledger: that ledger was lost with its machine."""
    for found in store.rounds():
        if not found.call:
            continue  # planned: nobody is called yet
        call = open_signed(found.call, RoundCall, home.keys.public())
        if without_head not in call.ledger_heads:
            continue
        heads = {site: head for site, head in call.ledger_heads.items() if site != without_head}
        found.call = sign_message(call.model_copy(update={"ledger_heads": heads}), home.keys)
        store.set_call(found.name, found.call)
        desk = RoundDesk(home.round_folder(found.name))
        desk.open(found.call, desk.sites())


def issue_authority(home: Home, certificates: str, *, now: datetime) -> Path:
    """`authority-coordinator.json`, signed, and an invitation with the same certificates.

    Args:
        home: of the coordinator.
        certificates: PEM of the authorities that sites must trust.
        now: UTC.

    Returns:
        the file for every site.
    """
    issued = Authority(study_digest=home.study.digest, certificates=certificates, issued=now)
    path = home.folder / f"authority-{COORDINATOR}.json"
    write_atomic(path, sign_message(issued, home.keys), mode=0o644)
    invitation = home.folder / "invitation.json"
    before = parse(invitation.read_bytes(), Invitation)
    after = before.model_copy(update={"certificate": certificates})
    write_atomic(invitation, after.model_dump_json(indent=1), mode=0o644)
    return path


def _sign_version_again(folder: Path, keys: PrivateKeys, listed: Sequence[PublicKeys]) -> None:
    """What an earlier key of ours signed; what none of them signed is left for its reader to refuse."""
    for old in listed:
        if old == keys.public():
            continue
        with suppress(ProtocolError):
            for mark in marks(folder, old):
                mark_withdrawn(folder, mark, keys)
        with suppress(ProtocolError):
            sign_manifest(folder, verify_folder(folder, old, withdrawn=True), keys)


def _signed_by(call: bytes, keys: PublicKeys) -> bool:
    try:
        open_signed(call, RoundCall, keys)
    except EnvelopeError:
        return False
    return True


# --- A round's key -------------------------------------------------------------------------------------


def change_round_key(home: Home, store: Store, found: Round, *, without: str) -> None:
    """Replace a round's key by a new one that opens the other sites' releases, and erase the old one.

    What the leaving site has sealed for the round can then be read by nobody, wherever copies of it are
    left: in Flower's database, in a capture of the network. The others' envelopes stay byte for byte as
    their sites signed them; beside each lies its content key, wrapped to the new key. The call is signed
    anew with the new key, so that sites which have not released yet can go on.

    May be interrupted at any point and run again.

    Args:
        home: of the coordinator.
        store: its store.
        found: the round.
        without: the site that leaves.

    Raises:
        EnvelopeError: an accepted release of another site does not open; the old key is still there.
    """
    key = home.round_key_path(found.name)
    following, old = key.with_suffix(".next"), key.with_suffix(".old")
    _finish_swap(key, following, old)
    desk = RoundDesk(home.round_folder(found.name))
    if not following.exists():
        _finish_rewraps(desk)
    if key.exists():
        current, new = PrivateKeys.load(key, home.passphrase), _following(home, following)
        for site in store.members():
            if site.name != without and desk.received(site.name).exists():
                _rewrap(home, store, found, site.name, current=current, to=new.public())
        key.rename(old)
        _finish_swap(key, following, old)
    _finish_rewraps(desk)
    if key.exists():
        call = open_signed(found.call, RoundCall, home.keys.public())
        recipient = PrivateKeys.load(key, home.passphrase).public()
        expected = {site: last for site, last in call.expected.items() if site != without}
        heads = {site: head for site, head in call.ledger_heads.items() if site != without}
        changed = {"recipient": recipient, "expected": expected, "ledger_heads": heads}
        found.call = sign_message(call.model_copy(update=changed), home.keys)
        store.set_call(found.name, found.call)
    desk.open(found.call, {site: node for site, node in desk.sites().items() if site != without})


def _following(home: Home, path: Path) -> PrivateKeys:
    """The next key: one that an interrupted run has made already, or a new one."""
    if path.exists():
        try:
            return PrivateKeys.load(path, home.passphrase)
        except KeyFileError:
            erase_key(path)  # killed while it was written
    keys = PrivateKeys.generate()
    keys.save(path, home.passphrase)
    return keys


def _finish_swap(key: Path, following: Path, old: Path) -> None:
    if old.exists():
        if following.exists():
            following.rename(key)
            sync_folder(key.parent)
        erase_key(old)


def _rewrap(
    home: Home, store: Store, found: Round, site: str, *, current: PrivateKeys, to: PublicKeys
) -> None:
    path = RoundDesk(home.round_folder(found.name)).received(site)
    before = rewrapped_path(home, found.name, site)
    accepted = any(s.site == site and s.state == "accepted" for s in store.submissions(found.name))
    try:
        header = read_header(path)
        signer = next((k.public_keys for k in store.site_keys(site) if k.digest == header.signer_key), None)
        if signer is None:
            raise EnvelopeError(f"The release is signed by a key that site {site} has not enrolled")
        direct = header.recipient_key == current.public().digest
        wrapped = rewrap(
            path,
            keys=current,
            signer=signer,
            to=to,
            rewrapped=b"" if direct or not before.exists() else before.read_bytes(),
        )
    except FederationError:
        if accepted:
            raise
        return  # nothing that was ever used: the site seals again for the new call
    write_atomic(before.with_suffix(".rewrapped-next"), wrapped)


def _finish_rewraps(desk: RoundDesk) -> None:
    for path in (desk.folder / "received").glob("*.rewrapped-next"):
        path.replace(path.with_suffix(".rewrapped"))
