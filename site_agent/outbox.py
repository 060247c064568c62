"""Prepared -> approved -> sealed: nothing leaves that people did not approve byte for byte."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from protocol.canonical import digest
from protocol.envelope import EnvelopeHeader, seal
from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.release import Release, decode_release, encode_release
from site_agent.ledger import Entry
from site_agent.signers import standing


@dataclass(frozen=True)
class PreparedRelease:
    """A release and its bytes, read once: what is checked is what is sealed."""

    release: Release
    data: bytes

    @property
    def sha256(self) -> str:
        """Of the bytes, in hex."""
        return digest(self.data)


@dataclass(frozen=True)
class Outbox:
    """The folder of the release that is being prepared, and of the one that was sealed last; both in plain.

    prepared.release    under review
    sealed.release      what was sealed last: what the next one is compared with
    """

    folder: Path

    @property
    def path(self) -> Path:
        """Where the release under review lies, if there is one."""
        return self.folder / "prepared.release"

    @property
    def _sealed(self) -> Path:
        return self.folder / "sealed.release"

    def prepare(self, release: Release) -> None:
        """Keep a release for review."""
        write_atomic(self.path, encode_release(release))

    def has_prepared(self) -> bool:
        """Whether a release lies here."""
        return self.path.exists()

    def prepared(self) -> PreparedRelease:
        """The release under review.

        Raises:
            UsageError: none was prepared.
            FederationError: its bytes were altered.
        """
        found = _read(self.path)
        if found is None:
            raise UsageError("No release is prepared", do="Run site-agent preview first")
        return found

    def last_sealed(self) -> PreparedRelease | None:
        """The release that was sealed last; None before the first.

        Raises:
            FederationError: its bytes were altered.
        """
        return _read(self._sealed)

    def keep_sealed(self, prepared: PreparedRelease) -> None:
        """Keep what is being sealed, for later comparisons."""
        write_atomic(self._sealed, prepared.data)

    def seal(
        self,
        prepared: PreparedRelease,
        header: EnvelopeHeader,
        target: Path,
        *,
        to: PublicKeys,
        keys: PrivateKeys,
        ledger: Iterable[Entry],
        needed: int,
    ) -> str:
        """Seal exactly the approved bytes.

        Args:
            prepared: from `prepared`.
            header: must name this release.
            target: path of the envelope.
            to: the recipient.
            keys: the site's own.
            ledger: verified entries: who signs, and who approved what.
            needed: distinct signers who must have approved.

        Returns:
            SHA-256 of the envelope file.

        Raises:
            FederationError: too few approvals of these bytes, or a header that names another release.
        """
        manifest = decode_release(prepared.data).manifest
        if len(standing(ledger).of(manifest.digest, prepared.sha256)) < needed:
            raise FederationError(
                "The prepared release is not the approved one", do="Run site-agent preview and approve again"
            )
        if header.content != manifest.digest:
            raise FederationError("The envelope's header names another release")
        return seal(io.BytesIO(prepared.data), target, header, to=to, keys=keys)


def _read(path: Path) -> PreparedRelease | None:
    try:
        data = path.read_bytes()
        return PreparedRelease(decode_release(data), data)
    except FileNotFoundError:
        return None
    except ProtocolError as error:
        raise FederationError(
            f"The prepared release {path} was altered",
            why=error.what,
            do="Run site-agent preview again",
        ) from None
