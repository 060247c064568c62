"""The key list of a party: how others follow it from one key to the next.

A list is a chain of versions. Version n names the party's keys, the digest of version
n - 1 and the keys that are revoked from now on; it is signed by the keys it names and by
those of version n - 1, so that nobody can add a version without holding the last key, and
no key is listed by someone who does not hold it. Version 1 is signed by its own keys
alone: people compare its fingerprint when the party is enrolled.

A reader keeps a `KnownKeys` for each party and only ever moves forward. `verify_key_list`
refuses a list that is shorter than the known one, that disagrees with it at any version,
or in which an earlier key comes back. A disagreement between two lists that are both
signed means that a key was copied: only people can resolve that.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from pydantic import AwareDatetime, Field

from protocol.canonical import canonical_json, digest
from protocol.errors import EnvelopeError, ProtocolError
from protocol.keys import PrivateKeys, PublicKeys, pae
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import parse

MAX_VERSIONS = 1000
_NOT_ONE = "Do not use it; call the party and compare fingerprints"


class Revocation(Message):
    """A key that nobody may accept any more."""

    key: HexDigest = Field(description="Digest of the public keys.")
    at: AwareDatetime = Field(
        description="When it was lost or retired, not later than the version was made: "
        "what it signed since then was perhaps signed by someone else."
    )


class KeyVersion(Message):
    """What one version says."""

    party: Identifier
    version: int = Field(ge=1, le=MAX_VERSIONS)
    previous: str = Field(
        pattern="^([0-9a-f]{64})?$", description="Digest of version n - 1; empty for the first."
    )
    keys: PublicKeys = Field(description="The party's keys from now on.")
    revoked: tuple[Revocation, ...] = Field((), max_length=MAX_VERSIONS)
    issued: AwareDatetime


class SignedKeyVersion(Message):
    """One version and its signatures, over PAE("smile/key-list", payload)."""

    payload: str = Field(max_length=256 << 10, description="Canonical JSON of `KeyVersion`.")
    by_these: str = Field(max_length=128, description="Base64; by the keys that the version names.")
    by_previous: str = Field("", max_length=128, description="Base64; by those of version n - 1.")


class KeyList(Message):
    """All versions, the first one first; nothing in it is trusted before `verify_key_list`."""

    versions: tuple[SignedKeyVersion, ...] = Field(min_length=1, max_length=MAX_VERSIONS)


class KnownKeys(Message):
    """What a reader remembers of a party; store it anew after each `verify_key_list`."""

    party: Identifier
    first: HexDigest = Field(description="Digest of the keys of version 1, compared by people.")
    version: int = Field(0, ge=0, description="The last version seen; 0 for none.")
    head: str = Field("", pattern="^([0-9a-f]{64})?$", description="Digest of that version.")


@dataclass(frozen=True)
class VerifiedKeys:
    """A verified key list: the keys, and what to remember of them.

    Attributes:
        known: to be stored in place of what was known.
        revoked: when each revoked key was revoked, by digest.
        listed: the keys of each version, the first one first; they may be revoked.
    """

    known: KnownKeys
    revoked: Mapping[str, datetime]
    listed: tuple[PublicKeys, ...]

    @property
    def current(self) -> PublicKeys:
        """The keys of the last version: the only ones for what is sealed or signed from now on.

        Raises:
            EnvelopeError: they are revoked, so the party has no keys.
        """
        return self.key(self.listed[-1].digest)

    def key(self, key: str) -> PublicKeys:
        """A listed key by its digest, present or past, to check what was signed when it was in use.

        Raises:
            EnvelopeError: it was never listed, or is revoked.
        """
        if key in self.revoked:
            at = self.revoked[key].isoformat(timespec="seconds")
            raise EnvelopeError(f"A key of {self.known.party} was revoked as of {at}", do=_NOT_ONE)
        for keys in self.listed:
            if keys.digest == key:
                return keys
        raise EnvelopeError(f"This is no key of {self.known.party}", do=_NOT_ONE)


def first_key_list(party: str, keys: PrivateKeys, *, now: datetime) -> KeyList:
    """The list of a party that has one key."""
    version = KeyVersion(party=party, version=1, previous="", keys=keys.public(), issued=now)
    return KeyList(versions=(_sign(version, keys, None),))


def next_key_list(
    keys: KeyList,
    current: PrivateKeys,
    *,
    now: datetime,
    new: PrivateKeys | None = None,
    revoke: Mapping[str, datetime] = MappingProxyType({}),
) -> KeyList:
    """The list with one more version.

    Args:
        keys: the list so far.
        current: the keys of its last version.
        now: when this version is made.
        new: the next keys; without them the present ones stay, as for a revocation alone.
        revoke: digest of a listed key -> since when it must not be trusted. Revoking the
            keys of this very version closes the list.

    Raises:
        ProtocolError: the version would not verify; nothing was made.
        EnvelopeError: `current` are not the keys of the last version.
    """
    last = keys.versions[-1].payload.encode()
    version = KeyVersion(
        party=parse(last, KeyVersion).party,
        version=len(keys.versions) + 1,
        previous=digest(last),
        keys=(new or current).public(),
        revoked=tuple(Revocation(key=k, at=at) for k, at in sorted(revoke.items())),
        issued=now,
    )
    made = KeyList(versions=(*keys.versions, _sign(version, new or current, current)))
    verify_key_list(made, KnownKeys(party=version.party, first=_first(keys).keys.digest))
    return made


def verify_key_list(keys: KeyList, known: KnownKeys) -> VerifiedKeys:
    """Follow a party's keys from the first version to the last.

    Args:
        keys: the list as it was received.
        known: what was remembered of this party.

    Raises:
        ProtocolError: a version does not parse or breaks a rule: its number, the chain of
            digests, its time, a key that comes back, a revocation of a key that was never listed.
        EnvelopeError: a signature does not hold; the first key is not the enrolled one; the list is
            shorter than the known one, or forks from it.
    """
    listed: list[PublicKeys] = []
    revoked: dict[str, datetime] = {}
    before: KeyVersion | None = None
    heads = [""]
    for number, signed in enumerate(keys.versions, start=1):
        payload = signed.payload.encode()
        version = parse(payload, KeyVersion)
        _check_signatures(signed, payload, version, before)
        if canonical_json(version) != payload or (version.party, version.version) != (known.party, number):
            raise ProtocolError(f"This is not version {number} of the key list of {known.party}", do=_NOT_ONE)
        if version.previous != heads[-1] or (before is not None and version.issued < before.issued):
            raise ProtocolError(f"Version {number} of a key list does not follow the one before", do=_NOT_ONE)
        _check_keys(version, listed, revoked)
        listed.append(version.keys)
        _take_revocations(version, listed, revoked)
        heads.append(digest(payload))
        before = version
    _check_known(listed, heads, known)
    after = known.model_copy(update={"version": len(listed), "head": heads[-1]})
    return VerifiedKeys(after, MappingProxyType(revoked), tuple(listed))


def _check_signatures(
    signed: SignedKeyVersion, payload: bytes, version: KeyVersion, before: KeyVersion | None
) -> None:
    data = _signed(payload)
    version.keys.verify(_decoded(signed.by_these), data)
    if before is not None:
        before.keys.verify(_decoded(signed.by_previous), data)
    elif signed.by_previous:
        raise ProtocolError("The first version of a key list has a signature too many")


def _check_keys(version: KeyVersion, listed: list[PublicKeys], revoked: Mapping[str, datetime]) -> None:
    """Either the keys stay as they are, or both halves are new; a closed list stays closed."""
    if listed and listed[-1].digest in revoked:
        raise ProtocolError(f"The key list of {version.party} was closed", why="its last key is revoked")
    if listed and version.keys == listed[-1]:
        return
    halves = {half for keys in listed for half in (keys.sealing, keys.signing)}
    if version.keys.sealing in halves or version.keys.signing in halves:
        raise ProtocolError(
            f"Version {version.version} of the key list of {version.party} brings an earlier key back",
            why="a key that was replaced is never used again",
            do=_NOT_ONE,
        )


def _take_revocations(version: KeyVersion, listed: list[PublicKeys], revoked: dict[str, datetime]) -> None:
    digests = {keys.digest for keys in listed}
    for revocation in version.revoked:
        if revocation.key not in digests or revocation.key in revoked or revocation.at > version.issued:
            raise ProtocolError(
                f"Version {version.version} of the key list of {version.party} revokes a key wrongly",
                why="the key was never listed, was revoked before, or the time is still to come",
            )
        revoked[revocation.key] = revocation.at


def _check_known(listed: list[PublicKeys], heads: list[str], known: KnownKeys) -> None:
    if listed[0].digest != known.first:
        raise EnvelopeError(
            f"The key list of {known.party} begins with another key than the enrolled one", do=_NOT_ONE
        )
    if len(listed) < known.version:
        raise EnvelopeError(
            f"The key list of {known.party} has version {len(listed)}, but {known.version} was seen before",
            why="it is stale, or was replayed",
            do="Ask the party for its latest list",
        )
    if heads[known.version] != known.head:
        raise EnvelopeError(
            f"Two key lists of {known.party} disagree at version {known.version} or before",
            why="a key of the party was copied, or the party restored an old backup",
            do=_NOT_ONE,
        )


def _sign(version: KeyVersion, these: PrivateKeys, previous: PrivateKeys | None) -> SignedKeyVersion:
    payload = canonical_json(version)
    data = _signed(payload)
    return SignedKeyVersion(
        payload=payload.decode(),
        by_these=_encoded(these.sign(data)),
        by_previous=_encoded(previous.sign(data)) if previous else "",
    )


def _first(keys: KeyList) -> KeyVersion:
    return parse(keys.versions[0].payload.encode(), KeyVersion)


def _signed(payload: bytes) -> bytes:
    return pae(b"smile/key-list", payload)


def _encoded(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise ProtocolError("A signature of a key list is no base64") from None


__all__ = [
    "KeyList",
    "KeyVersion",
    "KnownKeys",
    "Revocation",
    "SignedKeyVersion",
    "VerifiedKeys",
    "first_key_list",
    "next_key_list",
    "verify_key_list",
]
