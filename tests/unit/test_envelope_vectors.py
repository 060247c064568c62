"""Vectors of the envelope, good and bad, and HPKE's published ones; their sources are in the folder's README."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocol.envelope import open_sealed, read_header, verify
from protocol.errors import EnvelopeError
from protocol.keys import PrivateKeys, hpke_suite
from tests.vectors.envelope import make_vectors, reference

FOLDER = Path(__file__).parents[1] / "vectors" / "envelope"
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


GOOD, BAD, HPKE = load("good"), load("bad"), load("hpke")


@cache
def party(name: str) -> PrivateKeys:
    found = load("keys")[name]
    keys = PrivateKeys(found["suite"], base64.b64decode(found["sealing"]), base64.b64decode(found["signing"]))
    assert keys.public().digest == found["digest"]
    return keys


def assembled(vector: dict[str, Any], order: list[int] | None = None, signature: str = "") -> bytes:
    """The envelope that a good vector describes, or one with its chunks in another order."""
    head, key = vector["header"].encode(), base64.b64decode(vector["content_key"])
    plain = reference.stream(vector["plain"]["shake256_of"], vector["plain"]["bytes"])
    parts = reference.chunks(key, head, plain)
    content = reference.body(
        base64.b64decode(vector["wrapped"]), parts if order is None else [parts[i] for i in order]
    )
    return reference.envelope(head, content, base64.b64decode(signature or vector["signature"]))


def bad_bytes(vector: dict[str, Any]) -> bytes:
    if "envelope" in vector:
        return base64.b64decode(vector["envelope"])
    source = next(v for v in GOOD if v["name"] == vector["from"])
    return assembled(source, vector["chunks"], vector["signature"])


@pytest.mark.parametrize("vector", GOOD, ids=lambda v: v["name"])
def test_good(vector: dict[str, Any], tmp_path: Path) -> None:
    path, target = tmp_path / "in" / "x.sealed", tmp_path / "out" / "plain"
    path.parent.mkdir()
    data = assembled(vector)
    assert hashlib.sha256(data).hexdigest() == vector["sha256"]
    path.write_bytes(data)
    hub = party("hub-" + vector["name"].rsplit("25519-", 1)[0] + "25519")
    header = open_sealed(path, target, keys=hub, signer=party("site").public(), now=NOW)
    assert header == read_header(path)
    assert header.model_dump(mode="json") == json.loads(vector["header"])
    assert target.read_bytes() == reference.stream(vector["plain"]["shake256_of"], vector["plain"]["bytes"])


@pytest.mark.parametrize("vector", BAD, ids=lambda v: v["name"])
def test_bad(vector: dict[str, Any], tmp_path: Path) -> None:
    path, target = tmp_path / "in" / "x.sealed", tmp_path / "out" / "plain"
    path.parent.mkdir()
    path.write_bytes(bad_bytes(vector))
    site, hub = party("site").public(), party("hub-" + vector["recipient"])
    with pytest.raises(EnvelopeError, match=vector["error"]):
        open_sealed(path, target, keys=hub, signer=site, now=NOW)
    if vector["step"] == "verify":
        # Refused before a byte is decrypted: not even the folder of the target is made.
        with pytest.raises(EnvelopeError, match=vector["error"]):
            verify(path, signer=site)
        assert not target.parent.exists()
    else:
        verify(path, signer=site)
    assert list(tmp_path.rglob("*")) == [path.parent, path] or list(target.parent.iterdir()) == []


def test_each_kind_of_vector_is_there() -> None:
    assert len(GOOD) == 8
    assert len({v["name"] for v in GOOD + BAD}) == len(GOOD + BAD)
    assert {v["step"] for v in BAD} == {"verify", "open"}


def test_the_script_makes_these_vectors(tmp_path: Path) -> None:
    """Ciphertexts are fresh on each run; names, errors, headers and keys are not."""
    make_vectors.main(tmp_path)
    made = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("keys", "good", "bad")}
    assert made["keys"] == load("keys")
    same = ("name", "header", "plain", "recipient", "step", "error", "from", "chunks")
    for name, here in (("good", GOOD), ("bad", BAD)):
        kept = [
            [{k: v for k, v in vector.items() if k in same} for vector in one] for one in (made[name], here)
        ]
        assert kept[0] == kept[1]


# --- HPKE ----------------------------------------------------------------------------------------------

CIPHERS: dict[int, Any] = {1: AESGCM, 2: AESGCM, 3: ChaCha20Poly1305}
AEADS = {1: hpke.AEAD.AES_128_GCM, 2: hpke.AEAD.AES_256_GCM, 3: hpke.AEAD.CHACHA20_POLY1305}
KEMS = {0x20: hpke.KEM.X25519, 0x647A: hpke.KEM.MLKEM768_X25519}


def recipient(vector: dict[str, Any]) -> Any:
    """The private key: X-Wing's 32 bytes expand by SHAKE-256 to both halves (draft-connolly-cfrg-xwing-kem)."""
    secret = bytes.fromhex(vector["skRm"])
    if vector["kem_id"] == 0x20:
        return x25519.X25519PrivateKey.from_private_bytes(secret)
    both = hashlib.shake_256(secret).digest(96)
    first = mlkem.MLKEM768PrivateKey.from_seed_bytes(both[:64])
    second = x25519.X25519PrivateKey.from_private_bytes(both[64:])
    public = first.public_key().public_bytes_raw() + second.public_key().public_bytes_raw()
    assert public.hex() == vector["pkRm"]
    return hpke.MLKEM768X25519PrivateKey(first, second)


def key_schedule(vector: dict[str, Any], aead: int, key_length: int) -> tuple[bytes, bytes]:
    """Key and base nonce, base mode, HKDF-SHA256: RFC 9180 section 5.1."""
    suite = b"HPKE" + struct.pack(">HHH", vector["kem_id"], 1, aead)

    def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
        return HKDF.extract(hashes.SHA256(), salt, b"HPKE-v1" + suite + label + secret)

    def expand(label: bytes, context: bytes, length: int) -> bytes:
        info = struct.pack(">H", length) + b"HPKE-v1" + suite + label + context
        return HKDFExpand(hashes.SHA256(), length, info).derive(secret)

    info = bytes.fromhex(vector["info"])
    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(bytes.fromhex(vector["shared_secret"]), b"secret", b"")
    return expand(b"key", context, key_length), expand(b"base_nonce", context, 12)


@pytest.mark.parametrize("vector", HPKE, ids=lambda v: f"{v['source']}-{v['aead_id']}")
def test_hpke_opens_what_the_published_key_seals(vector: dict[str, Any]) -> None:
    """The library takes no additional data, so the published key seals the published text without any."""
    key, nonce = bytes.fromhex(vector["key"]), bytes.fromhex(vector["base_nonce"])
    first = {name: bytes.fromhex(value) for name, value in vector["first"].items()}
    cipher = CIPHERS[vector["aead_id"]](key)
    assert cipher.encrypt(nonce, first["pt"], first["aad"]) == first["ct"]
    sealed = bytes.fromhex(vector["enc"]) + cipher.encrypt(nonce, first["pt"], None)
    suite = hpke.Suite(KEMS[vector["kem_id"]], hpke.KDF.HKDF_SHA256, AEADS[vector["aead_id"]])
    assert suite.decrypt(sealed, recipient(vector), info=bytes.fromhex(vector["info"])) == first["pt"]


@pytest.mark.parametrize("vector", HPKE, ids=lambda v: f"{v['source']}-{v['aead_id']}")
def test_our_suites_open_what_the_published_shared_secret_seals(vector: dict[str, Any]) -> None:
    """The hybrid's vectors have other ciphers than ours: the key schedule is run again for AES-256-GCM."""
    published = key_schedule(vector, vector["aead_id"], len(vector["key"]) // 2)
    assert (published[0].hex(), published[1].hex()) == (vector["key"], vector["base_nonce"])
    key, nonce = key_schedule(vector, 2, 32)
    sealed = bytes.fromhex(vector["enc"]) + AESGCM(key).encrypt(nonce, b"content key", None)
    ours = hpke_suite("x25519" if vector["kem_id"] == 0x20 else "mlkem768-x25519")
    assert ours.decrypt(sealed, recipient(vector), info=bytes.fromhex(vector["info"])) == b"content key"


def test_an_independent_x_wing_opens_what_we_seal() -> None:
    """SHA3-256(ss_M, ss_X, ct_X, pk_X, label), draft-connolly-cfrg-xwing-kem section 5.3."""
    keys, info = party("hub-mlkem768-x25519"), b"info"
    public = keys.public().sealing_key()
    sealed = hpke_suite("mlkem768-x25519").encrypt(b"content key", public, info=info)
    first = mlkem.MLKEM768PrivateKey.from_seed_bytes(keys.sealing[:64])
    second = x25519.X25519PrivateKey.from_private_bytes(keys.sealing[64:])
    ephemeral = sealed[1088:1120]
    shared = hashlib.sha3_256(
        first.decapsulate(sealed[:1088])
        + second.exchange(x25519.X25519PublicKey.from_public_bytes(ephemeral))
        + ephemeral
        + second.public_key().public_bytes_raw()
        + b"\\.//^\\"
    ).digest()
    vector = {"kem_id": 0x647A, "info": info.hex(), "shared_secret": shared.hex()}
    key, nonce = key_schedule(vector, 2, 32)
    assert AESGCM(key).decrypt(nonce, sealed[1120:], None) == b"content key"
