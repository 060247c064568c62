"""The sealed, signed envelope: the only form in which anything travels between parties.

Layout, all integers big-endian::

    magic      8 bytes   b"SMILENV1"
    header     u32 + n   canonical JSON of `EnvelopeHeader`
    wrapped    u32 + n   HPKE ciphertext of a fresh 32-byte content key; info = PAE("smile/key", header)
    chunks     u32 + n   AES-256-GCM; 1 MiB of plaintext each, the last one 1 byte to 1 MiB (none only if it is
                         the only one); nonce = index as u96;
                         additional data = PAE("smile/chunk", SHA-256(header), index as u64, final flag as u8)
    end        u32 = 0
    signature  64 bytes  Ed25519 over PAE("smile/envelope", header, SHA-256(all bytes from wrapped to end))

PAE is the pre-authentication encoding of DSSE and PASETO: the number of parts,
then each part after its length, all as u64, so that no two different lists of parts
encode alike. One content has one framing: a reader refuses any other. `open_sealed`
verifies the whole signature before it decrypts a byte, writes to a temporary file and
renames last; memory stays at a few chunks for any size.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from protocol.canonical import canonical_json
from protocol.errors import EnvelopeError
from protocol.files import atomic_file, sync_folder
from protocol.keys import PrivateKeys, PublicKeys, SuiteName, hpke_suite, pae
from protocol.sections import Identifier
from protocol.version import PROTOCOL, SOFTWARE, check_json

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

MAGIC = b"SMILENV1"
CHUNK = 1 << 20
_TAG = 16
_KEY = 32
_SIGNATURE = 64
MAX_HEADER = 16 << 10
MAX_WRAPPED = 4 << 10

Hex: TypeAlias = str


class EnvelopeHeader(BaseModel):
    """What an envelope says of itself, in the clear; bound in key wrap, chunks and signature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: int = Field(PROTOCOL, description="Looked at before all else (`protocol.version`).")
    software: str = Field(SOFTWARE, max_length=80, description="What sealed it, for people.")
    kind: Literal["release", "result"]
    suite: SuiteName
    consortium: Identifier
    study_digest: Hex = Field(pattern="^[0-9a-f]{64}$")
    round: Identifier
    site: Identifier = Field(
        description="The site that the content comes from (release) or goes to (result)."
    )
    recipient_key: Hex = Field(pattern="^[0-9a-f]{64}$", description="Digest of the recipient's public keys.")
    signer_key: Hex = Field(pattern="^[0-9a-f]{64}$", description="Digest of the signer's public keys.")
    sequence: int = Field(
        ge=1, lt=1 << 53, description="One more than the last envelope of this site and kind."
    )
    previous: Hex = Field(
        pattern="^([0-9a-f]{64})?$", description="Content digest of the last one; empty for the first."
    )
    content: Hex = Field(pattern="^[0-9a-f]{64}$", description="Digest of the manifest inside.")
    agent_digest: Hex = Field(pattern="^[0-9a-f]{64}$", description="Digest of the software that sealed.")
    policy_digest: Hex = Field(pattern="^[0-9a-f]{64}$", description="Digest of the gate's policy.")
    ledger_head: Hex = Field(
        pattern="^([0-9a-f]{64})?$", description="Head of the sender's hash-chained ledger."
    )
    expires: AwareDatetime


def seal(source: BinaryIO, target: Path, header: EnvelopeHeader, *, to: PublicKeys, keys: PrivateKeys) -> str:
    """Seal a stream to `to`, signed by `keys`; the file appears whole or not at all.

    Args:
        source: the plaintext, read to its end in 1 MiB pieces.
        target: path of the new envelope, mode 0600.
        header: must name the digests of `to` and of `keys`.

    Returns:
        SHA-256 of the envelope file, in hex.

    Raises:
        EnvelopeError: the header does not name these keys, or nothing can be sealed to `to`.
    """
    if (
        header.recipient_key != to.digest
        or header.signer_key != keys.public().digest
        or header.suite != to.suite
    ):
        raise EnvelopeError("The envelope's header names other keys than it is sealed with")
    head = canonical_json(header)
    if len(head) > MAX_HEADER:
        raise EnvelopeError("The envelope's header is too long")
    content_key = AESGCM.generate_key(256)
    wrapped = _wrap(content_key, header.suite, head, to)
    body, whole = hashlib.sha256(), hashlib.sha256()
    with atomic_file(target) as out:

        def write(data: bytes, *, signed: bool = True) -> None:
            out.write(data)
            whole.update(data)
            if signed:
                body.update(data)

        write(MAGIC + struct.pack(">I", len(head)) + head, signed=False)
        write(struct.pack(">I", len(wrapped)) + wrapped)
        cipher, head_digest = AESGCM(content_key), hashlib.sha256(head).digest()
        for index, piece, final in _pieces(source):
            chunk = cipher.encrypt(_nonce(index), piece, _chunk_data(head_digest, index, final=final))
            write(struct.pack(">I", len(chunk)) + chunk)
        write(struct.pack(">I", 0))
        write(keys.sign(_signed(head, body.digest())), signed=False)
    return whole.hexdigest()


def read_header(path: Path) -> EnvelopeHeader:
    """Parse the header alone; nothing in it is trusted before `open_sealed`.

    Raises:
        EnvelopeError: these bytes are no envelope.
    """
    with _open(path) as stream:
        return _parse_header(_read_head(stream))


def verify(path: Path, *, signer: PublicKeys) -> EnvelopeHeader:
    """Check the signature of an envelope without opening it.

    Raises:
        EnvelopeError: the bytes are no envelope, were altered, or come from someone else.
    """
    with _open(path) as stream:
        return _verify(stream, signer)[0]


def open_sealed(
    path: Path, target: Path, *, keys: PrivateKeys, signer: PublicKeys, now: datetime | None = None
) -> EnvelopeHeader:
    """Verify, then decrypt to a temporary file, then rename to `target` (mode 0600).

    Binding to a study, round, site and sequence is the reader's next step
    (`coordinator.intake`, `site_agent.agent`): this function proves who sealed what to whom.

    Raises:
        EnvelopeError: altered, expired, addressed to other keys, or signed by someone else.
    """
    with _open(path) as stream:
        header, head, body = _verify(stream, signer)
        _check_addressee(header, keys.public(), now)
        with _plain_file(target) as out:
            _decrypt_to(out, stream, (header, head, body), keys)
    return header


def read_sealed(
    path: Path,
    *,
    keys: PrivateKeys,
    signer: PublicKeys,
    now: datetime | None = None,
    rewrapped: bytes = b"",
) -> tuple[EnvelopeHeader, bytes]:
    """As `open_sealed`, but the plaintext stays in memory: no file ever holds it.

    Args:
        rewrapped: from `rewrap`, if the envelope was sealed to keys that `keys` have replaced.

    Raises:
        EnvelopeError: as `open_sealed`.
    """
    plain = io.BytesIO()
    with _open(path) as stream:
        header, head, body = _verify(stream, signer)
        _check_addressee(header, None if rewrapped else keys.public(), now)
        _decrypt_to(plain, stream, (header, head, body), keys, rewrapped)
    return header, plain.getvalue()


def rewrap(
    path: Path, *, keys: PrivateKeys, signer: PublicKeys, to: PublicKeys, rewrapped: bytes = b""
) -> bytes:
    """The envelope's content key, wrapped anew to `to`: with it the envelope opens after `keys` are erased.

    The envelope itself stays as its signer signed it, and nothing else that was sealed to `keys` comes along.

    Args:
        path: the envelope.
        keys: what it is sealed to, or was rewrapped to.
        signer: who has sealed it.
        to: the next keys.
        rewrapped: from an earlier call, if `keys` themselves have replaced others.

    Raises:
        EnvelopeError: altered, addressed to other keys, or signed by someone else.
    """
    with _open(path) as stream:
        header, head, _ = _verify(stream, signer)
        # An envelope that was in time when it arrived may be kept for as long as its round.
        _check_addressee(header, None if rewrapped else keys.public(), datetime.min.replace(tzinfo=UTC))
        stream.seek(len(MAGIC) + 4 + len(head))
        wrapped = rewrapped or _frame(stream, hashlib.sha256(), MAX_WRAPPED)
    suite = keys.suite if rewrapped else header.suite
    return _wrap(_unwrap(suite, head, keys, wrapped), to.suite, head, to)


def _check_addressee(header: EnvelopeHeader, ours: PublicKeys | None, now: datetime | None) -> None:
    if ours is not None and header.recipient_key != ours.digest:
        raise EnvelopeError(
            "The envelope is sealed to another key than ours",
            why="the round or the keys have changed since it was sealed",
            do="Ask the sender to seal it again for the present round",
        )
    if header.expires <= (now or datetime.now(UTC)):
        raise EnvelopeError(
            f"The envelope expired at {header.expires.isoformat(timespec='seconds')}",
            do="Ask the sender to seal it again, and check both clocks",
        )


def _decrypt_to(
    out: BinaryIO,
    stream: BufferedReader,
    verified: tuple[EnvelopeHeader, bytes, bytes],
    keys: PrivateKeys,
    rewrapped: bytes = b"",
) -> None:
    header, head, body = verified
    stream.seek(len(MAGIC) + 4 + len(head))
    again = hashlib.sha256()
    wrapped, suite = _frame(stream, again, MAX_WRAPPED), header.suite
    if rewrapped:
        wrapped, suite = rewrapped, keys.suite
    cipher = AESGCM(_unwrap(suite, head, keys, wrapped))
    for piece in _decrypt(stream, again, cipher, hashlib.sha256(head).digest()):
        out.write(piece)
    # The file may have changed under us since its signature was checked.
    if again.digest() != body:
        raise EnvelopeError("The envelope changed while it was being opened")


def _verify(stream: BufferedReader, signer: PublicKeys) -> tuple[EnvelopeHeader, bytes, bytes]:
    """Header, its bytes, and the SHA-256 of the body that the signature covers."""
    head = _read_head(stream)
    header = _parse_header(head)
    if header.signer_key != signer.digest:
        raise EnvelopeError(
            "The envelope names another signer than expected",
            do="Compare the sender's fingerprint with yours",
        )
    state = hashlib.sha256()
    if not _frame(stream, state, MAX_WRAPPED):
        raise EnvelopeError("The envelope holds no key")
    _check_framing(stream, state)
    signature = _exactly(stream, _SIGNATURE)
    if stream.read(1):
        raise EnvelopeError("There are bytes after the envelope's end")
    signer.verify(signature, _signed(head, state.digest()))
    return header, head, state.digest()


def _check_framing(stream: BufferedReader, state: Hash) -> None:
    """Read all chunks: every one full but the last, and the last one empty only if it is the first."""
    count, before = 0, CHUNK + _TAG
    while size := len(_frame(stream, state, CHUNK + _TAG)):
        if before != CHUNK + _TAG or size < _TAG + (1 if count else 0):
            raise EnvelopeError("The envelope's framing is damaged")
        count, before = count + 1, size
    if not count:
        raise EnvelopeError("The envelope holds no chunk")


def _wrap(content_key: bytes, suite: SuiteName, head: bytes, to: PublicKeys) -> bytes:
    try:
        return hpke_suite(suite).encrypt(content_key, to.sealing_key(), info=pae(b"smile/key", head))
    except ValueError:
        # A point of low order: the shared secret would be known to everyone.
        raise EnvelopeError(
            f"Nothing can be sealed to the key {to.fingerprint}",
            why="it is no usable key",
            do="Compare its fingerprint with its owner",
        ) from None


def _unwrap(suite: SuiteName, head: bytes, keys: PrivateKeys, wrapped: bytes) -> bytes:
    try:
        key = hpke_suite(suite).decrypt(wrapped, keys.opening_key(), info=pae(b"smile/key", head))
    except (InvalidTag, ValueError, TypeError):
        raise EnvelopeError("The envelope's content key does not open with our key") from None
    if len(key) != _KEY:
        raise EnvelopeError("The envelope's content key has a wrong length")
    return key


def _decrypt(stream: BufferedReader, state: Hash, cipher: AESGCM, head_digest: bytes) -> Iterator[bytes]:
    index, chunk = 0, _frame(stream, state, CHUNK + _TAG)
    while chunk:
        following = _frame(stream, state, CHUNK + _TAG)
        try:
            yield cipher.decrypt(_nonce(index), chunk, _chunk_data(head_digest, index, final=not following))
        except InvalidTag:
            raise EnvelopeError(f"Chunk {index} of the envelope was altered") from None
        index, chunk = index + 1, following


def _pieces(source: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """(index, piece, is it the last); an empty source gives one empty piece."""
    index, piece = 0, source.read(CHUNK)
    while True:
        following = source.read(CHUNK) if len(piece) == CHUNK else b""
        yield index, piece, not following
        if not following:
            return
        index, piece = index + 1, following


def _frame(stream: BufferedReader, state: Hash, limit: int) -> bytes:
    """One length-prefixed piece, hashed with its length."""
    prefix = _exactly(stream, 4)
    (length,) = struct.unpack(">I", prefix)
    if length > limit:
        raise EnvelopeError("The envelope's framing is damaged")
    piece = _exactly(stream, length)
    state.update(prefix + piece)
    return piece


def _read_head(stream: BufferedReader) -> bytes:
    if _exactly(stream, len(MAGIC)) != MAGIC:
        raise EnvelopeError("This is not a sealed envelope of this protocol version")
    (length,) = struct.unpack(">I", _exactly(stream, 4))
    if length > MAX_HEADER:
        raise EnvelopeError("The envelope's header is too long")
    return _exactly(stream, length)


def _parse_header(head: bytes) -> EnvelopeHeader:
    check_json(head, "The sender of this envelope")
    try:
        header = EnvelopeHeader.model_validate_json(head)
    except ValidationError:
        raise EnvelopeError("The envelope's header does not follow the protocol") from None
    # One text for one header: otherwise two envelopes could differ in bytes that nobody reads.
    if canonical_json(header) != head:
        raise EnvelopeError("The envelope's header is not in canonical form")
    return header


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise EnvelopeError(f"There is no envelope {path.name}") from None
    except OSError as error:
        raise EnvelopeError(f"The envelope {path.name} cannot be read", why=error.strerror or "") from None


@contextmanager
def _plain_file(target: Path) -> Iterator[BinaryIO]:
    """As `atomic_file`, but the text has no name before it is whole, where the file system allows that.

    So that a process that is killed while it decrypts leaves nothing behind to be erased.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except (AttributeError, OSError):
        with atomic_file(target) as stream:
            yield stream
        return
    with os.fdopen(descriptor, "wb") as stream:
        yield stream
        stream.flush()
        os.fsync(descriptor)
        _give_name(descriptor, target)
    sync_folder(target.parent)


def _give_name(descriptor: int, target: Path) -> None:
    # A link cannot replace a file, so one more name is needed for the moment before the rename.
    named = target.with_name(f".part-{secrets.token_hex(8)}")
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        # Only with a folder descriptor does os.link call linkat(2), which can follow the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", named, src_dir_fd=folder, follow_symlinks=True)
        named.replace(target)
    finally:
        os.close(folder)
        with suppress(FileNotFoundError):
            named.unlink()


def _exactly(stream: BufferedReader, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise EnvelopeError("The envelope ends too early", do="Have it sent again")
    return data


def _nonce(index: int) -> bytes:
    # The content key is used for one envelope only, so a counter never repeats under it.
    return struct.pack(">IQ", 0, index)


def _chunk_data(head_digest: bytes, index: int, *, final: bool) -> bytes:
    return pae(b"smile/chunk", head_digest, struct.pack(">Q", index), b"\x01" if final else b"\x00")


def _signed(head: bytes, body: bytes) -> bytes:
    return pae(b"smile/envelope", head, body)


def software_digest(*packages: Path) -> str:
    """SHA-256 over the names and bytes of all Python files below the packages' folders."""
    state = hashlib.sha256()
    for package in packages:
        for path in sorted(package.rglob("*.py")):
            name = f"{package.name}/{path.relative_to(package).as_posix()}".encode()
            state.update(pae(name, path.read_bytes()))
    return state.hexdigest()


__all__ = [
    "CHUNK",
    "EnvelopeHeader",
    "open_sealed",
    "pae",
    "read_header",
    "read_sealed",
    "rewrap",
    "seal",
    "software_digest",
    "verify",
]
