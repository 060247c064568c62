"""A site's keys over the years: its own, which it can change, and the coordinator's, which it follows.

keys/site.key               signs releases and receipts, opens results
keys/previous-DIGEST.key    a replaced key, until the coordinator's receipt has come
keys/key-list.json          the site's signed key list, from its first change on
keys/coordinator-keys.json  the coordinator's, as far as this site has followed it
invitation.json             names the coordinator's present keys
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cryptography import x509

from protocol.canonical import digest
from protocol.enrolment import Authority, NodeKeyChange
from protocol.errors import EnvelopeError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.keyfile import Passphrase
from protocol.keylist import KeyList, KnownKeys, VerifiedKeys, verify_key_list
from protocol.keys import PrivateKeys
from protocol.messages import Message
from protocol.rotation import COORDINATOR, OwnKeys, only, party_of, passphrase_for, read_key_list
from protocol.signed import open_signed, parse, sign_message
from site_agent.config import Home
from site_agent.flower.node import new_node_key
from site_agent.ledger import Ledger


class FollowedKeys(Message):
    """coordinator-keys.json: the list, and how far it was followed."""

    known: KnownKeys
    keys: KeyList


def own_keys(home: Home) -> OwnKeys:
    """The site's key files."""
    return OwnKeys(home.folder / "keys" / "site.key", home.config.site)


def opening_keys(home: Home, key: str) -> PrivateKeys:
    """The private keys of this digest, present or replaced, for what was sealed before the coordinator knew.

    Raises:
        KeyFileError: there are none any more.
    """
    if home.keys.public().digest == key:
        return home.keys
    own = own_keys(home)
    return own.opening(key, passphrase_for(own.key))


def coordinator_keys(home: Home) -> VerifiedKeys:
    """The coordinator's keys, past ones too: those of the invitation, or the list that was followed since.

    Raises:
        ProtocolError: the stored list does not hold.
    """
    path = home.folder / "keys" / "coordinator-keys.json"
    if not path.exists():
        return only(COORDINATOR, home.invitation.keys)
    stored = parse(path.read_bytes(), FollowedKeys)
    return verify_key_list(stored.keys, stored.known)


def rotate(
    home: Home, *, now: datetime, lost_since: datetime | None = None, passphrase: Passphrase | None = None
) -> Path:
    """Take new keys, and write `key-list-SITE.json` for the coordinator.

    The old ones stay until `confirm`, to open what the coordinator seals before it knows; the Flower
    node's key, which proves a connection and no release, stays as it is.

    Args:
        home: of the site; read it anew afterwards, since it holds the old keys.
        now: UTC.
        lost_since: the present keys may be in other hands since then: they are revoked.
        passphrase: of the present and the next key file; from the environment or a person if not given.

    Returns:
        the file to hand over.

    Raises:
        KeyFileError: the key file does not open.
        ProtocolError: `lost_since` is still to come.
    """
    own = own_keys(home)
    own.settle()
    ledger = Ledger(home.folder / "ledger.jsonl")
    ledger.append("keys-changing", revoked=lost_since is not None)
    made = own.rotate(passphrase or passphrase_for(own.key), now=now, lost_since=lost_since)
    ledger.append("keys-changed", version=len(made.versions))
    return write_list(home)


def write_list(home: Home) -> Path:
    """`key-list-SITE.json`, which holds public keys only.

    Raises:
        UsageError: the keys were never changed.
    """
    found = own_keys(home).key_list()
    if found is None:
        raise UsageError(
            "This site's keys were never changed",
            do="The coordinator knows them from the enrolment; there is no list to hand over",
        )
    path = home.folder / f"key-list-{home.config.site}.json"
    write_atomic(path, found.model_dump_json(indent=1), mode=0o644)
    return path


def confirm(home: Home, receipt: Path) -> int:
    """Erase the replaced keys, since the coordinator follows the list to its end; returns how many.

    Raises:
        UsageError: there is no such file.
        EnvelopeError: the coordinator did not sign it, or it speaks of another version than the last one.
    """
    try:
        data = receipt.read_bytes()
    except OSError:
        raise UsageError(f"There is no receipt {receipt}") from None
    erased = own_keys(home).confirm(data, coordinator_keys(home).current)
    Ledger(home.folder / "ledger.jsonl").append("keys-confirmed", erased=erased)
    return erased


def read_coordinator_list(home: Home, path: Path) -> tuple[KeyList, VerifiedKeys]:
    """The coordinator's key list, followed from the version that was known: forward only.

    Raises:
        UsageError: there is no such file.
        ProtocolError: it is another party's, or breaks a rule.
        EnvelopeError: it is stale, forks from the known one, or closes the list.
    """
    keys = read_key_list(path)
    if (party := party_of(keys)) != COORDINATOR:
        raise ProtocolError(f"{path} is the key list of {party}, not of the coordinator")
    found = verify_key_list(keys, coordinator_keys(home).known)
    _ = found.current
    return keys, found


def follow_coordinator(home: Home, keys: KeyList, found: VerifiedKeys) -> None:
    """Take in the coordinator's new keys, after a person has compared the fingerprint.

    Args:
        home: of the site; read it anew afterwards.
        keys: from `read_coordinator_list`.
        found: the same.
    """
    stored = FollowedKeys(known=found.known, keys=keys)
    write_atomic(home.folder / "keys" / "coordinator-keys.json", stored.model_dump_json(indent=1))
    changed = home.invitation.model_copy(update={"keys": found.current})
    write_atomic(home.folder / "invitation.json", changed.model_dump_json(indent=1), mode=0o644)
    Ledger(home.folder / "ledger.jsonl").append(
        "coordinator-keys", version=found.known.version, key=found.current.digest
    )


def change_node_key(home: Home) -> Path:
    """A new key for the Flower node, and `node-key-SITE.json` for the coordinator, signed by this site's own keys.

    A connection that runs takes the new key by itself; it is refused until the coordinator has taken the file in.

    Args:
        home: of the site.

    Returns:
        the file to hand over.

    Raises:
        KeyFileError: the site's own key does not open.
    """
    keys, ledger = home.keys, Ledger(home.folder / "ledger.jsonl")
    ledger.append("node-key-changing")
    line = new_node_key(home.node_key, replace=True)
    change = NodeKeyChange(study_digest=home.study.digest, site=home.config.site, node_key=line)
    path = home.folder / f"node-key-{home.config.site}.json"
    write_atomic(path, sign_message(change, keys), mode=0o644)
    ledger.append("node-key-changed", key=digest(line.encode()))
    return path


def trust_authority(home: Home, path: Path) -> Authority:
    """Take in the authorities that the coordinator's signed file names, in place of those that were trusted.

    Args:
        home: of the site; read it anew afterwards.
        path: `authority-coordinator.json`.

    Raises:
        UsageError: there is no such file.
        EnvelopeError: the coordinator did not sign it; or a later one was taken in before.
        ProtocolError: it is no such file, or holds no certificate.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"There is no file {path}") from None
    found = open_signed(data, Authority, coordinator_keys(home).current)
    _check_certificates(found.certificates)
    kept = home.folder / "keys" / "authority.json"
    last = parse(kept.read_bytes(), Authority) if kept.exists() else found
    if found.study_digest != home.study.digest or found.issued < last.issued:
        raise EnvelopeError(
            "The authority file is for another study, or older than the one that was taken in before",
            do="Ask the coordinator for its latest one",
        )
    Ledger(home.folder / "ledger.jsonl").append("authority", sha256=digest(found.certificates.encode()))
    changed = home.invitation.model_copy(update={"certificate": found.certificates})
    write_atomic(home.folder / "invitation.json", changed.model_dump_json(indent=1), mode=0o644)
    write_atomic(kept, found.model_dump_json(indent=1))
    return found


def _check_certificates(pem: str) -> None:
    try:
        x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        raise ProtocolError("The authority file holds no certificate") from None
