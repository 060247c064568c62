"""Prepared -> approved -> sealed: nothing leaves that a person did not approve byte for byte."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime

from protocol.envelope import EnvelopeHeader, seal
from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import HexDigest, Message
from protocol.release import Release, decode_release, encode_release
from protocol.signed import open_signed, sign_message


class Approval(Message):
    """A person's yes to one manifest."""

    manifest_digest: HexDigest
    by: str
    at: AwareDatetime


@dataclass(frozen=True)
class Outbox:
    """The folder of the release that is being prepared."""

    folder: Path

    @property
    def _release(self) -> Path:
        return self.folder / "prepared.release"

    @property
    def _approval(self) -> Path:
        return self.folder / "approval.json"

    def prepare(self, release: Release) -> None:
        """Keep a release for review; an approval of another one no longer holds."""
        if self._release.exists() and self.prepared().manifest.digest != release.manifest.digest:
            self._approval.unlink(missing_ok=True)
        write_atomic(self._release, encode_release(release))

    def prepared(self) -> Release:
        """The release under review.

        Raises:
            UsageError: none was prepared.
            FederationError: its bytes were altered.
        """
        try:
            return decode_release(self._release.read_bytes())
        except FileNotFoundError:
            raise UsageError("No release is prepared", do="Run site-agent preview first") from None
        except ProtocolError as error:
            raise FederationError(
                f"The prepared release {self._release} was altered",
                why=error.what,
                do="Run site-agent preview again",
            ) from None

    def has_prepared(self) -> bool:
        """Whether a release lies here."""
        return self._release.exists()

    def approve(self, approval: Approval, keys: PrivateKeys) -> None:
        """Record a yes to the prepared release.

        Raises:
            UsageError: the approval names another release than the prepared one.
        """
        if self.prepared().manifest.digest != approval.manifest_digest:
            raise UsageError(
                "The approval names another release than the prepared one",
                do="Look at site-agent preview again and approve the digest that it prints",
            )
        write_atomic(self._approval, sign_message(approval, keys))

    def approval(self, keys: PublicKeys) -> Approval | None:
        """The approval of the prepared release, or None if there is none for it.

        Raises:
            EnvelopeError: the approval's signature does not hold.
        """
        if not self._approval.exists() or not self._release.exists():
            return None
        approval = open_signed(self._approval.read_bytes(), Approval, keys)
        return approval if approval.manifest_digest == self.prepared().manifest.digest else None

    def seal(self, header: EnvelopeHeader, target: Path, *, to: PublicKeys, keys: PrivateKeys) -> str:
        """Seal exactly the approved bytes.

        Returns:
            SHA-256 of the envelope file.

        Raises:
            FederationError: the release was altered after its approval, or never approved.
        """
        data = self._release.read_bytes()
        release = decode_release(data)
        approval = self.approval(keys.public())
        if approval is None or approval.manifest_digest != release.manifest.digest:
            raise FederationError(
                "The prepared release is not the approved one", do="Run site-agent preview and approve again"
            )
        if header.content != release.manifest.digest:
            raise FederationError("The envelope's header names another release")
        return seal(io.BytesIO(data), target, header, to=to, keys=keys)
