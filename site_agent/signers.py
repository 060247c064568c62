"""Who may approve: people, each with a key of their own under a passphrase that the agent does not know.

A signer's private key lies in `signers/NAME.key`, encrypted. Public keys, approvals and their ends
stand in the ledger and nowhere else: one line is there or it is not, none can be taken out or put in
between unseen, and an agent that runs unattended can check every signature.

    signer-added      name, key, public     the name's key from now on; replaces none
    signer-removed    name, key             none of its approvals counts any more
    prepared          manifest              approvals of another manifest end
    approved          by, approval          the signed `Approval`
    approval-revoked  by                    that signer's approval ends
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, ValidationError

from protocol.errors import FederationError, KeyFileError, UsageError
from protocol.keyfile import KeyCost, Passphrase
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import open_signed
from protocol.vocabulary import IDENTIFIER
from site_agent.ledger import Entry, Ledger

_MIN_DISTINCT = 6
"""Different characters in a passphrase: `aaaaaaaaaaaa` is long, and one of the first guesses."""


class Approval(Message):
    """A signer's yes to the very bytes of one release."""

    manifest_digest: HexDigest
    release_sha256: HexDigest
    by: Identifier
    at: AwareDatetime


@dataclass(frozen=True)
class Standing:
    """What the ledger says at its end.

    Attributes:
        signers: name -> public keys.
        since: name -> when it was added.
        approvals: name of a present signer -> the approval that counts.
    """

    signers: Mapping[str, PublicKeys]
    since: Mapping[str, str]
    approvals: Mapping[str, Approval]

    def of(self, manifest_digest: str, release_sha256: str) -> dict[str, Approval]:
        """The approvals of exactly these bytes, one a key."""
        bytes_ = (manifest_digest, release_sha256)
        found = {n: a for n, a in self.approvals.items() if (a.manifest_digest, a.release_sha256) == bytes_}
        by_key = {self.signers[name].signing: name for name in found}
        return {name: found[name] for name in sorted(by_key.values())}


def standing(entries: Iterable[Entry]) -> Standing:
    """Signers and approvals after the last entry; every signature is checked.

    Raises:
        FederationError: an entry does not hold.
    """
    signers: dict[str, PublicKeys] = {}
    since: dict[str, str] = {}
    approvals: dict[str, Approval] = {}
    used: set[str] = set()
    for entry in entries:
        facts = entry.facts
        if entry.event == "signer-added":
            signers[str(facts.get("name"))] = _public(entry)
            since[str(facts.get("name"))] = entry.time
        elif entry.event == "signer-removed":
            signers.pop(str(facts.get("name")), None)
            approvals.pop(str(facts.get("name")), None)
        elif entry.event == "approval-revoked":
            approvals.pop(str(facts.get("by")), None)
        elif entry.event == "prepared":
            manifest = facts.get("manifest")
            approvals = {n: a for n, a in approvals.items() if a.manifest_digest == manifest}
        elif entry.event == "approved":
            approval = _approval(entry, signers)
            if approval.digest in used:
                raise _does_not_hold(entry, "the same approval was used before")
            used.add(approval.digest)
            approvals[approval.by] = approval
    return Standing(signers, {n: since[n] for n in signers}, approvals)


def _public(entry: Entry) -> PublicKeys:
    try:
        keys = PublicKeys.model_validate(entry.facts.get("public"))
    except ValidationError:
        raise _does_not_hold(entry, "it names no key") from None
    if keys.digest != entry.facts.get("key"):
        raise _does_not_hold(entry, "it names two keys")
    return keys


def _approval(entry: Entry, signers: Mapping[str, PublicKeys]) -> Approval:
    keys = signers.get(str(entry.facts.get("by")))
    if keys is None:
        raise _does_not_hold(entry, "nobody of this name is a signer")
    try:
        approval = open_signed(str(entry.facts.get("approval")).encode(), Approval, keys)
    except FederationError as error:
        raise _does_not_hold(entry, error.what) from None
    if approval.by != entry.facts.get("by"):
        raise _does_not_hold(entry, "it names two signers")
    return approval


def _does_not_hold(entry: Entry, why: str) -> FederationError:
    return FederationError(
        f"Entry {entry.number} of the ledger, {entry.event}, does not hold",
        why=why,
        do="Nothing is sealed; find out who wrote there, and restore ledger.jsonl from your backup",
    )


@dataclass(frozen=True)
class Signers:
    """The signers of one site. Who calls a method that changes something holds the site's lock.

    Args:
        folder: of the private keys.
        ledger: of the site.
        cost: of guessing a passphrase once; the default is right but for tests.
    """

    folder: Path
    ledger: Ledger
    cost: KeyCost | None = None

    def add(self, name: str, passphrase: Passphrase) -> PublicKeys:
        """Make a key for a person; it counts from now on.

        Raises:
            UsageError: the name is not allowed, or taken.
            KeyFileError: the passphrase is too weak.
        """
        if not IDENTIFIER.fullmatch(name):
            raise UsageError(f"{name!r} cannot name a signer", why="a name has 1 to 32 of a-z, 0-9 and -")
        if name in standing(self.ledger.verify()).signers:
            raise UsageError(f"{name} is a signer already", do="Remove the signer first to give a new key")
        keys = PrivateKeys.generate("x25519")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        # A key that the ledger does not name, as after a crash, never counted.
        self.key_path(name).unlink(missing_ok=True)
        text = passphrase()
        check_passphrase(text, name)
        keys.save(self.key_path(name), lambda: text, cost=self.cost)
        public = keys.public()
        self.ledger.append("signer-added", name=name, key=public.digest, public=public.model_dump())
        return public

    def remove(self, name: str) -> None:
        """End a signer and the signer's pending approval.

        Raises:
            UsageError: there is none of this name.
        """
        keys = self._registered(name)
        self.ledger.append("signer-removed", name=name, key=keys.digest)
        self.key_path(name).unlink(missing_ok=True)

    def unlock(self, name: str, passphrase: Passphrase) -> PrivateKeys:
        """A signer's private keys; nothing is changed.

        Raises:
            UsageError: there is no such signer.
            KeyFileError: a wrong passphrase, or not the key that was added under this name.
        """
        public = self._registered(name)
        keys = PrivateKeys.load(self.key_path(name), passphrase)
        if keys.public() != public:
            raise KeyFileError(
                f"The key file {self.key_path(name)} is not the key of signer {name}",
                why="it was replaced",
                do="Restore it from your backup, or remove the signer and add a new one",
            )
        return keys

    def key_path(self, name: str) -> Path:
        """Where a signer's private key lies."""
        return self.folder / f"{name}.key"

    def _registered(self, name: str) -> PublicKeys:
        signers = standing(self.ledger.verify()).signers
        if name not in signers:
            raise UsageError(
                f"There is no signer {name!r}",
                why=f"there are: {', '.join(sorted(signers))}" if signers else "no signer was added yet",
                do="Run site-agent signer add",
            )
        return signers[name]


def check_passphrase(text: str, name: str) -> None:
    """Return only if a passphrase is not among the first guesses; its length is `PrivateKeys.save`'s to judge.

    Raises:
        KeyFileError: it has too few different characters, or is little more than the name.
    """
    rest = text.lower().replace(name.lower(), "")
    if len(set(rest)) < _MIN_DISTINCT:
        raise KeyFileError(
            "The passphrase is easy to guess",
            why=f"apart from the signer's name it has fewer than {_MIN_DISTINCT} different characters",
            do="Take another one; four or five words that no one would put together will do",
        )


def approval_facts(approval: Approval, signed: bytes, keys: PublicKeys) -> dict[str, Any]:
    """What the entry `approved` says."""
    return {
        "by": approval.by,
        "key": keys.digest,
        "manifest": approval.manifest_digest,
        "approval": signed.decode(),
    }
