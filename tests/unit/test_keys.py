"""Key files and signed messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import EnvelopeError, KeyFileError, ProtocolError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Enrolment, Receipt
from protocol.signed import open_signed, peek, sign_message
from tests.synthetic import keys


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "a.key"
    keys("a").save(path)
    assert PrivateKeys.load(path) == keys("a")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    keys("a").save(path)
    with pytest.raises(KeyFileError, match="exists"):
        keys("b").save(path)
    assert PrivateKeys.load(path) == keys("a")


def test_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    keys("a").save(path)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        PrivateKeys.load(path)


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="no key file"):
        PrivateKeys.load(tmp_path / "none")
    path = tmp_path / "a.key"
    keys("a").save(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(KeyFileError, match="not a key file") as caught:
        PrivateKeys.load(path)
    assert keys("a").signing.hex() not in str(caught.value)


def test_secrets_are_not_printed() -> None:
    text = repr(keys("a"))
    assert keys("a").signing.hex() not in text
    assert keys("a").public().fingerprint in text


def enrolment() -> Enrolment:
    return Enrolment(
        study_digest="0" * 64, site="north", keys=keys("a").public(), node_key="ssh", contact="it"
    )


def test_signed_message() -> None:
    data = sign_message(enrolment(), keys("a"))
    assert peek(data, Enrolment) == enrolment() == open_signed(data, Enrolment, keys("a").public())
    with pytest.raises(EnvelopeError, match="signature"):
        open_signed(data, Enrolment, keys("b").public())
    with pytest.raises(EnvelopeError, match="signature"):
        open_signed(data.replace(b"north", b"soutx"), Enrolment, keys("a").public())


def test_a_signature_holds_for_one_kind_of_message_only() -> None:
    with pytest.raises(EnvelopeError, match="signature"):
        open_signed(sign_message(enrolment(), keys("a")), Receipt, keys("a").public())


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"payload": 1, "signature": "x"}', b"[" * 100_000]
)
def test_garbage_is_one_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        open_signed(data, Enrolment, keys("a").public())


def test_malformed_public_key() -> None:
    short = PublicKeys(suite="mlkem768-x25519", sealing="AAAA", signing="AAAA")
    with pytest.raises(EnvelopeError, match="not a mlkem768-x25519 key"):
        short.sealing_key()
    with pytest.raises(EnvelopeError, match="signature"):
        short.verify(b"x" * 64, b"y")
