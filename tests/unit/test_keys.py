"""Key files and signed messages."""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.errors import EnvelopeError, KeyFileError, ProtocolError
from protocol.keyfile import KeyCost, passphrase_from_file
from protocol.keys import PrivateKeys, PublicKeys, key_file_public
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


def test_one_text_for_one_public_key() -> None:
    public = keys("a").public()
    last = public.signing[-2]
    other = chr(ord(last) + 1)
    assert base64.b64decode(public.signing[:-2] + other + "=") == base64.b64decode(public.signing)
    with pytest.raises(ValidationError, match="canonical"):
        PublicKeys(suite=public.suite, sealing=public.sealing, signing=public.signing[:-2] + other + "=")


# --- A passphrase ---------------------------------------------------------------------------------------

PHRASE = "blue-Käse-on-seven-hills"
CHEAP = KeyCost(iterations=1, lanes=1, memory_kib=128)


def protected(folder: Path, who: str = "a") -> Path:
    path = folder / "keys" / "p.key"
    keys(who).save(path, lambda: PHRASE, cost=CHEAP)
    return path


def never() -> str:
    raise AssertionError("asked for a passphrase that is not needed")


def test_the_default_cost_is_the_second_recommended_option_of_rfc_9106(tmp_path: Path) -> None:
    path = tmp_path / "p.key"
    keys("a").save(path, lambda: PHRASE)
    assert json.loads(path.read_text())["cost"] == {"iterations": 3, "lanes": 4, "memory_kib": 65536}
    assert PrivateKeys.load(path, lambda: PHRASE) == keys("a")


@pytest.mark.parametrize("suite", ["x25519", "mlkem768-x25519"])
def test_passphrase_round_trip(tmp_path: Path, suite: Any) -> None:
    mine, path = PrivateKeys.generate(suite), tmp_path / "p.key"
    mine.save(path, lambda: PHRASE, cost=CHEAP)
    assert path.stat().st_mode & 0o777 == 0o600
    assert PrivateKeys.load(path, lambda: PHRASE) == mine
    assert PrivateKeys.load(path, lambda: unicodedata.normalize("NFD", PHRASE)) == mine
    assert key_file_public(path) == mine.public()
    assert list(tmp_path.iterdir()) == [path]


def test_a_protected_file_holds_no_secret_in_the_clear(tmp_path: Path) -> None:
    data, mine = protected(tmp_path).read_bytes(), keys("a")
    values = [
        base64.b64decode(v) for v in json.loads(data).values() if isinstance(v, str) and len(v) % 4 == 0
    ]
    for secret in (mine.signing, mine.sealing[:64], mine.sealing[-32:]):
        assert not any(secret[:16] in v for v in [data, *values])


def test_two_files_of_one_key_share_nothing_secret(tmp_path: Path) -> None:
    one, two = (json.loads(protected(tmp_path / n).read_text()) for n in "12")
    assert all(one[name] != two[name] for name in ("salt", "nonce", "secrets"))


def test_wrong_passphrase(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="passphrase is wrong, or the file was altered") as caught:
        PrivateKeys.load(protected(tmp_path), lambda: PHRASE + "x")
    assert PHRASE not in str(caught.value)


def test_a_missing_passphrase_says_where_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"in a terminal.* SMILE_PASSPHRASE_FILE"):
        PrivateKeys.load(protected(tmp_path))


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="fewer than 12 characters"):
        keys("a").save(tmp_path / "p.key", lambda: "hospital123")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_file_in_place_of_a_protected_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    keys("a").save(path)
    with pytest.raises(KeyFileError, match="no passphrase, but is expected to have one"):
        PrivateKeys.load(path, never)
    assert key_file_public(path) is None


def test_a_mixture_of_both_forms_is_no_key_file(tmp_path: Path) -> None:
    """Adding plain keys to a protected file, or taking the protection's fields away, must not pass as either."""
    path = protected(tmp_path)
    content, other = json.loads(path.read_text()), keys("b")
    plain = {
        "sealing": base64.b64encode(other.sealing).decode(),
        "signing": base64.b64encode(other.signing).decode(),
    }
    stripped = {"suite": content["suite"], "public": content["public"], "secrets": content["secrets"]}
    for bad in (content | plain, stripped, stripped | plain, content | {"protection": "none"}):
        path.write_text(json.dumps(bad))
        with pytest.raises(KeyFileError, match="is not a key file"):
            PrivateKeys.load(path, lambda: PHRASE)


def test_every_field_of_a_protected_file_is_bound(tmp_path: Path) -> None:
    path = protected(tmp_path)
    content, other = json.loads(path.read_text()), json.loads(protected(tmp_path / "b", "b").read_text())
    changes: list[dict[str, Any]] = [{name: other[name]} for name in ("public", "salt", "nonce", "secrets")]
    changes += [
        {"cost": content["cost"] | {name: value}}
        for name, value in (("iterations", 2), ("lanes", 2), ("memory_kib", 256))
    ]
    changes += [{"suite": "x25519"}, {"salt": ""}, {"nonce": "AAAA"}, {"secrets": "A"}, {"secrets": ""}]
    changes += [
        {"cost": content["cost"] | {"memory_kib": 1 << 30}},
        {"cost": content["cost"] | {"iterations": 10**9}},
    ]
    for change in changes:
        path.write_text(json.dumps(content | change))
        with pytest.raises(KeyFileError):
            PrivateKeys.load(path, lambda: PHRASE)
    path.write_text(json.dumps(content))
    assert PrivateKeys.load(path, lambda: PHRASE) == keys("a")


def test_every_altered_character_is_refused_without_a_word_of_the_content(tmp_path: Path) -> None:
    path = protected(tmp_path)
    good = path.read_bytes()
    accepted = []
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bytes(bad))
        try:
            PrivateKeys.load(path, lambda: PHRASE)
        except KeyFileError as error:
            assert len(str(error)) < 300 + 2 * len(str(path))
        else:
            accepted.append(position)
    assert accepted == []


@pytest.mark.parametrize(
    "change", [{"sealing": ""}, {"signing": "AAAA"}, {"sealing": "*"}, {"suite": "x25519"}]
)
def test_keys_of_a_wrong_length(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "a.key"
    keys("a").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeyFileError, match="is not a key file"):
        PrivateKeys.load(path)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keys("a").save(tmp_path / "a.key")
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_from_a_file_or_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "phrase"
    path.write_text(PHRASE + "\r\nsecond line")
    path.chmod(0o600)
    assert passphrase_from_file(path) == PHRASE
    reading, writing = os.pipe()
    os.write(writing, PHRASE.encode() + b"\n")
    os.close(writing)
    assert passphrase_from_file(Path(f"/dev/fd/{reading}")) == PHRASE
    os.close(reading)


def test_a_passphrase_file_must_be_private_and_hold_one(tmp_path: Path) -> None:
    path = tmp_path / "phrase"
    path.write_text(PHRASE)
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        passphrase_from_file(path)
    path.chmod(0o600)
    for empty in (b"", b"\n" + PHRASE.encode(), b"\xff\xfe"):
        path.write_bytes(empty)
        with pytest.raises(KeyFileError, match="holds no passphrase"):
            passphrase_from_file(path)
