"""A party's own keys on its disk: changed so that others can follow, and kept until they have.

Beside the key file lie the party's signed key list and, for a while, replaced keys::

    NAME.key              signs, and opens what is sealed to the party from now on
    key-list.json         every version so far (`protocol.keylist`)
    previous-DIGEST.key   a replaced key: opens what was sealed to it before the others knew
    next.key              a change under way

A change counts from the moment that `key-list.json` names the new key. What was interrupted before is
undone by the next command, what was interrupted afterwards is finished by it: at any moment there is one
key file that signs. Replaced keys are erased once the other party has confirmed, by a signed
`KeyReceipt`, that it follows the list to its last version.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from protocol.canonical import digest
from protocol.errors import EnvelopeError, KeyFileError, ProtocolError, UsageError
from protocol.files import sync_folder, write_atomic
from protocol.keyfile import Passphrase, passphrase_from_file
from protocol.keylist import (
    KeyList,
    KeyVersion,
    KnownKeys,
    VerifiedKeys,
    first_key_list,
    next_key_list,
    verify_key_list,
)
from protocol.keys import PrivateKeys, PublicKeys, key_file_public
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import open_signed, parse

COORDINATOR = "coordinator"
"""The name of the coordinator in its own key list."""
_MAX_LIST = 16 << 20


class KeyReceipt(Message):
    """The signed word of a reader that it follows a party's key list to this version."""

    party: Identifier
    version: int
    head: HexDigest


def passphrase_for(key: Path) -> Passphrase | None:
    """Where the passphrase of a key file comes from: SMILE_PASSPHRASE_FILE, or else a person at the terminal.

    Asked once. None if the file needs none, or nobody can give one.

    Raises:
        KeyFileError: as `PrivateKeys.load`.
    """
    if named := os.environ.get("SMILE_PASSPHRASE_FILE"):
        return cache(lambda: passphrase_from_file(Path(named)))
    if sys.stdin.isatty() and key_file_public(key) is not None:
        return cache(lambda: getpass.getpass(f"Passphrase of {key}: "))
    return None


def read_key_list(path: Path) -> KeyList:
    """A key list from a file; nothing in it is trusted before `verify_key_list`.

    Raises:
        UsageError: there is no such file.
        ProtocolError: it is no key list.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_LIST + 1)
    except OSError:
        raise UsageError(f"There is no key list {path}") from None
    if len(data) > _MAX_LIST:
        raise ProtocolError(f"The key list {path} is too large")
    return parse(data, KeyList)


def party_of(keys: KeyList) -> str:
    """Whose list it says that it is."""
    return _last(keys).party


def present(keys: KeyList) -> PublicKeys:
    """The keys that our own list names last; a list from elsewhere must go through `verify_key_list`."""
    return _last(keys).keys


def erase_key(path: Path) -> None:
    """Overwrite a key file, then remove it; nothing happens if there is none.

    Overwriting reaches the bytes on a plain disk; on a copying file system, or a solid-state disk, only
    an encrypted disk does.
    """
    with suppress(FileNotFoundError):
        with path.open("r+b") as stream:
            stream.write(os.urandom(path.stat().st_size))
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()
        sync_folder(path.parent)


@dataclass(frozen=True)
class OwnKeys:
    """The key files of one party.

    Args:
        key: the key file; the others lie beside it.
        party: its name in its key list.
    """

    key: Path
    party: str

    @property
    def _list(self) -> Path:
        return self.key.with_name("key-list.json")

    @property
    def _next(self) -> Path:
        return self.key.with_name("next.key")

    def previous(self) -> Sequence[Path]:
        """Replaced keys that are still kept."""
        return sorted(self.key.parent.glob("previous-*.key"))

    def key_list(self) -> KeyList | None:
        """The signed list; None before the first change."""
        return read_key_list(self._list) if self._list.exists() else None

    def trust(self, keys: PublicKeys) -> VerifiedKeys:
        """The party's own keys, past ones too, as its own list tells them.

        Args:
            keys: the present ones.
        """
        found = self.key_list()
        return only(self.party, keys) if found is None else verify_key_list(found, _begin(self.party, found))

    def rotate(
        self, passphrase: Passphrase | None, *, now: datetime, lost_since: datetime | None = None
    ) -> KeyList:
        """Take new keys, and say so in the list.

        Args:
            passphrase: of the present key file, and of the next one.
            now: UTC.
            lost_since: the present keys may be in other hands since then: they are revoked.

        Returns:
            the list to hand over.

        Raises:
            KeyFileError: the key file does not open.
            ProtocolError: `lost_since` is still to come.
        """
        self.settle()
        current, new = PrivateKeys.load(self.key, passphrase), PrivateKeys.generate()
        before = self.key_list() or first_key_list(self.party, current, now=now)
        revoke = {} if lost_since is None else {current.public().digest: lost_since}
        after = next_key_list(before, current, now=now, new=new, revoke=revoke)
        new.save(self._next, passphrase)
        write_atomic(self._list, after.model_dump_json(indent=1))
        self._swap(current.public())
        return after

    def settle(self) -> None:
        """Finish or undo a change of keys that was interrupted."""
        if not self._next.exists():
            return
        found, current = self.key_list(), _public(self.key)
        try:
            committed = found is not None and _last(found).keys == _public(self._next)
        except KeyFileError:
            committed = False  # killed while the file was written
        if committed:
            self._swap(current)
        else:
            erase_key(self._next)

    def opening(self, key: str, passphrase: Passphrase | None) -> PrivateKeys:
        """The private keys of this digest, present or replaced, to open what was sealed to them.

        Raises:
            KeyFileError: there are none any more.
        """
        for path in (self.key, *self.previous()):
            keys = PrivateKeys.load(path, passphrase)
            if keys.public().digest == key:
                return keys
        raise KeyFileError(
            "What arrived is sealed to a key that is no longer here",
            why=f"the key {key[:12]} was replaced and erased",
            do="Have the sender take in the latest key list and seal it again",
        )

    def confirm(self, data: bytes, signer: PublicKeys) -> int:
        """Erase replaced keys, since the other party follows the list to its end.

        Args:
            data: the signed `KeyReceipt`.
            signer: the other party.

        Returns:
            how many keys were erased.

        Raises:
            EnvelopeError: the signature does not hold, or it speaks of another version than the last one.
        """
        self.settle()
        receipt, found = open_signed(data, KeyReceipt, signer), self.key_list()
        head = digest(found.versions[-1].payload.encode()) if found else ""
        if (receipt.party, receipt.head) != (self.party, head):
            raise EnvelopeError(
                f"The receipt is not for the last version of the key list of {self.party}",
                do="Hand over the latest list and ask for its receipt; no key was erased",
            )
        kept = self.previous()
        for path in kept:
            erase_key(path)
        return len(kept)

    def _swap(self, current: PublicKeys) -> None:
        # A second name for the old key first: no moment has a home without a key.
        with suppress(FileExistsError):
            if current != _public(self._next):
                os.link(self.key, self.key.with_name(f"previous-{current.digest[:16]}.key"))
        self._next.replace(self.key)
        sync_folder(self.key.parent)


def only(party: str, keys: PublicKeys) -> VerifiedKeys:
    """Trust in the one key that people have compared, before any list has come."""
    return VerifiedKeys(KnownKeys(party=party, first=keys.digest), {}, (keys,))


def _begin(party: str, keys: KeyList) -> KnownKeys:
    first = parse(keys.versions[0].payload.encode(), KeyVersion).keys
    return KnownKeys(party=party, first=first.digest)


def _last(keys: KeyList) -> KeyVersion:
    return parse(keys.versions[-1].payload.encode(), KeyVersion)


def _public(path: Path) -> PublicKeys:
    return key_file_public(path) or PrivateKeys.load(path).public()
