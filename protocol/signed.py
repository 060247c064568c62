"""Small signed messages: canonical JSON with a signature over its type and bytes."""

from __future__ import annotations

import base64
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.canonical import canonical_json
from protocol.envelope import pae
from protocol.errors import ProtocolError
from protocol.keys import PrivateKeys, PublicKeys

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 4 << 20


class Signed(BaseModel):
    """A payload that nobody has checked yet; `open_signed` is the way to its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    payload: str = Field(description="Canonical JSON of the message.")
    signature: str = Field(
        max_length=128, description="Base64 of Ed25519 over PAE('smile/message', type, payload)."
    )


def sign_message(message: BaseModel, keys: PrivateKeys) -> bytes:
    """JSON bytes of the message and its signature; the message's class name is signed with it."""
    payload = canonical_json(message)
    signature = keys.sign(_signed(type(message), payload))
    return canonical_json(Signed(payload=payload.decode(), signature=base64.b64encode(signature).decode()))


def open_signed(data: bytes, kind: type[M], signer: PublicKeys) -> M:
    """The message inside, if `signer` signed it as this kind.

    Raises:
        ProtocolError: too long, not of this form, or not a valid message of this kind.
        EnvelopeError: the signature does not hold.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(
            f"A signed {kind.__name__} of {len(data)} bytes is refused", why=f"the limit is {MAX_BYTES}"
        )
    try:
        outer = Signed.model_validate_json(data)
        signature = base64.b64decode(outer.signature, validate=True)
        payload = outer.payload.encode()
    except (ValidationError, ValueError):
        raise ProtocolError(f"These bytes are no signed {kind.__name__}") from None
    signer.verify(signature, _signed(kind, payload))
    return parse(payload, kind)


def peek(data: bytes, kind: type[M]) -> M:
    """The message without its proof, for messages that carry the signer's key themselves.

    The caller must verify with `open_signed` afterwards.

    Raises:
        ProtocolError: not of this form.
    """
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"A signed {kind.__name__} of {len(data)} bytes is refused")
    try:
        return parse(Signed.model_validate_json(data).payload.encode(), kind)
    except ValidationError:
        raise ProtocolError(f"These bytes are no signed {kind.__name__}") from None


def parse(payload: bytes, kind: type[M]) -> M:
    """A message from JSON bytes.

    Raises:
        ProtocolError: not valid.
    """
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, e["loc"])) or "the whole" for e in error.errors()})[:5])
        raise ProtocolError(
            f"A {kind.__name__} message does not follow the protocol", why=f"wrong: {fields}"
        ) from None


def _signed(kind: type[BaseModel], payload: bytes) -> bytes:
    return pae(b"smile/message", kind.__name__.encode(), payload)
