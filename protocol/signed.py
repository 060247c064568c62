"""Small signed messages: canonical JSON with a signature over its protocol, type and bytes."""

from __future__ import annotations

import base64
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.canonical import canonical_json
from protocol.envelope import pae
from protocol.errors import ProtocolError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.version import PROTOCOL, SOFTWARE, check_json

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 4 << 20


class Signed(BaseModel):
    """A payload that nobody has checked yet; `open_signed` is the way to its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: int = Field(PROTOCOL, description="Looked at before all else (`protocol.version`).")
    software: str = Field(SOFTWARE, max_length=80, description="What wrote the message, for people.")
    payload: str = Field(description="Canonical JSON of the message.")
    signature: str = Field(
        max_length=128,
        description="Base64 of Ed25519 over PAE('smile/message', protocol, software, type, payload).",
    )


def sign_message(message: BaseModel, keys: PrivateKeys) -> bytes:
    """JSON bytes of the message and its signature; the message's class name is signed with it."""
    payload = canonical_json(message)
    unsigned = Signed(payload=payload.decode(), signature="")
    signature = base64.b64encode(keys.sign(_signed(unsigned, type(message)))).decode()
    return canonical_json(unsigned.model_copy(update={"signature": signature}))


def open_signed(data: bytes, kind: type[M], signer: PublicKeys) -> M:
    """The message inside, if `signer` signed it as this kind.

    Raises:
        ProtocolError: too long, not of this form, or not a valid message of this kind.
        VersionError: its sender speaks another protocol.
        EnvelopeError: the signature does not hold.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(
            f"A signed {kind.__name__} of {len(data)} bytes is refused", why=f"the limit is {MAX_BYTES}"
        )
    outer = _outer(data, kind)
    try:
        signature = base64.b64decode(outer.signature, validate=True)
    except ValueError:
        raise ProtocolError(f"These bytes are no signed {kind.__name__}") from None
    signer.verify(signature, _signed(outer, kind))
    return parse(outer.payload.encode(), kind)


def peek(data: bytes, kind: type[M]) -> M:
    """The message without its proof, for messages that carry the signer's key themselves.

    The caller must verify with `open_signed` afterwards.

    Raises:
        ProtocolError: not of this form.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"A signed {kind.__name__} of {len(data)} bytes is refused")
    return parse(_outer(data, kind).payload.encode(), kind)


def parse(payload: bytes, kind: type[M]) -> M:
    """A message from JSON bytes.

    Raises:
        VersionError: it says itself which protocol it is of, and that is not ours.
        ProtocolError: not valid.
    """
    if "protocol" in kind.model_fields:
        check_json(payload, f"The sender of this {kind.__name__}")
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole" for e in error.errors()})[:5])
        raise ProtocolError(
            f"A {kind.__name__} message does not follow the protocol", why=f"wrong: {fields}"
        ) from None


def _outer(data: bytes, kind: type[BaseModel]) -> Signed:
    check_json(data, f"The sender of this {kind.__name__}")
    try:
        outer = Signed.model_validate_json(data)
        outer.payload.encode()
    except (ValidationError, ValueError):
        raise ProtocolError(f"These bytes are no signed {kind.__name__}") from None
    return outer


def _signed(outer: Signed, kind: type[BaseModel]) -> bytes:
    stated = (str(outer.protocol), outer.software, kind.__name__, outer.payload)
    return pae(b"smile/message", *(part.encode() for part in stated))
