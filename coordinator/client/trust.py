"""Whose signature an analyst accepts: keys, the file that holds them, or the fingerprint that people compare."""

from __future__ import annotations

import hmac
import re
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import ValidationError

from protocol.errors import EnvelopeError, UsageError
from protocol.keylist import VerifiedKeys
from protocol.keys import PublicKeys
from protocol.messages import Invitation
from protocol.published import Trust, claimed_signer

UNVERIFIED: Final = "unverified"
TrustGiven: TypeAlias = "str | Path | PublicKeys | VerifiedKeys | None"
"""What `load_release` takes for trust."""
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{20}|[0-9a-f]{64}")
_HOW: Final = (
    'Give trust="invitation.json", or the fingerprint that the coordinator told you; trust="unverified" finds damage, '
    "and no forgery"
)


def trusted(given: TrustGiven, manifest: bytes, *, where: str) -> Trust:
    """The keys that a manifest must be signed with.

    A fingerprint picks the keys that the manifest names, if it is theirs; "unverified" takes whatever keys it names.

    Args:
        given: as for `load_release`.
        manifest: bytes of `manifest.json`.
        where: named in messages.

    Raises:
        UsageError: nothing was given, or nothing that says whom to trust.
        EnvelopeError: the manifest names keys of another fingerprint.
        ProtocolError: the manifest is malformed.
    """
    if given is None:
        raise UsageError(
            f"Nobody said whose signature {where} must have",
            why="anyone can write a folder of files, or run a server that looks like the coordinator's",
            do=_HOW,
        )
    if isinstance(given, PublicKeys | VerifiedKeys):
        return given
    claimed = claimed_signer(manifest, where=where)
    if given == UNVERIFIED:
        return claimed
    text = re.sub(r"[\s:-]", "", str(given)).lower()
    if isinstance(given, str) and _FINGERPRINT.fullmatch(text):
        if not hmac.compare_digest(claimed.digest[: len(text)], text):
            raise EnvelopeError(
                f"{where} was not signed by the keys {given}",
                why=f"it names the keys {claimed.fingerprint}",
                do="Compare the fingerprint with the coordinator, by telephone; do not use this copy",
            )
        return claimed
    return _from_file(Path(given))


def _from_file(path: Path) -> PublicKeys:
    try:
        data = path.expanduser().read_bytes()
    except OSError:
        raise UsageError(f"There is no file {path} that says whom to trust", do=_HOW) from None
    try:
        return Invitation.model_validate_json(data).keys
    except ValidationError:
        pass
    try:
        return PublicKeys.model_validate_json(data)
    except ValidationError:
        raise UsageError(f"{path} is neither an invitation nor public keys", do=_HOW) from None
