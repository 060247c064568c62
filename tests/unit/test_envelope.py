"""The sealed envelope: what opens, and everything that must not."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol import envelope
from protocol.canonical import canonical_json
from protocol.envelope import CHUNK, EnvelopeHeader, open_sealed, pae, read_header, seal, verify
from protocol.errors import EnvelopeError
from protocol.keys import PrivateKeys, PublicKeys, hpke_suite
from tests.synthetic import header, keys
from tests.vectors.envelope import reference

SITE, HUB, OTHER = keys("site"), keys("hub"), keys("other")


def sealed(folder: Path, data: bytes = b"content", head: EnvelopeHeader | None = None) -> Path:
    path = folder / "x.sealed"
    seal(io.BytesIO(data), path, head or header(SITE, HUB), to=HUB.public(), keys=SITE)
    return path


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_round_trip(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = sealed(tmp_path, data)
    found = open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())
    assert (tmp_path / "plain").read_bytes() == data
    assert found == read_header(path) == verify(path, signer=SITE.public())
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o600


def test_x25519_suite(tmp_path: Path) -> None:
    hub = PrivateKeys.generate("x25519")
    path = tmp_path / "x.sealed"
    seal(io.BytesIO(b"1"), path, header(SITE, hub), to=hub.public(), keys=SITE)
    open_sealed(path, tmp_path / "plain", keys=hub, signer=SITE.public())
    assert (tmp_path / "plain").read_bytes() == b"1"


def test_wrong_recipient(tmp_path: Path) -> None:
    with pytest.raises(EnvelopeError, match="sealed to another key"):
        open_sealed(sealed(tmp_path), tmp_path / "plain", keys=OTHER, signer=SITE.public())
    assert not (tmp_path / "plain").exists()


def test_wrong_signer(tmp_path: Path) -> None:
    with pytest.raises(EnvelopeError, match="another signer"):
        open_sealed(sealed(tmp_path), tmp_path / "plain", keys=HUB, signer=OTHER.public())


def test_forged_signer_name(tmp_path: Path) -> None:
    """Naming the site's key without holding it does not help."""
    forged = header(SITE, HUB)
    path = tmp_path / "x.sealed"
    with pytest.raises(EnvelopeError, match="names other keys"):
        seal(io.BytesIO(b"1"), path, forged, to=HUB.public(), keys=OTHER)
    own = header(OTHER, HUB)
    seal(io.BytesIO(b"1"), path, own, to=HUB.public(), keys=OTHER)
    data = path.read_bytes().replace(OTHER.public().digest.encode(), SITE.public().digest.encode())
    path.write_bytes(data)
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        verify(path, signer=SITE.public())


def test_expired(tmp_path: Path) -> None:
    path = sealed(tmp_path, head=header(SITE, HUB, expires=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(EnvelopeError, match="expired"):
        open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())


def test_every_altered_byte_is_refused(tmp_path: Path) -> None:
    path = sealed(tmp_path, b"z" * 100)
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(EnvelopeError):
            open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())
    assert not (tmp_path / "plain").exists()


def test_every_truncation_and_addition_is_refused(tmp_path: Path) -> None:
    path = sealed(tmp_path, b"z" * 100)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(EnvelopeError):
            verify(path, signer=SITE.public())
    path.write_bytes(good + b"\0")
    with pytest.raises(EnvelopeError, match="after the envelope's end"):
        verify(path, signer=SITE.public())


def test_swapped_chunks_are_refused_even_if_signed(tmp_path: Path) -> None:
    """Chunks are bound to their place: a signer's own reordering does not decrypt."""
    one = sealed(tmp_path, b"a" * CHUNK + b"b" * CHUNK).read_bytes()
    head_end = 12 + int.from_bytes(one[8:12], "big")
    wrapped_end = head_end + 4 + int.from_bytes(one[head_end : head_end + 4], "big")
    size = 4 + CHUNK + 16
    first, second = one[wrapped_end : wrapped_end + size], one[wrapped_end + size : wrapped_end + 2 * size]
    body = one[head_end:wrapped_end] + second + first + b"\0\0\0\0"
    signature = SITE.sign(pae(b"smile/envelope", one[12:head_end], hashlib.sha256(body).digest()))
    path = tmp_path / "swapped.sealed"
    path.write_bytes(one[:head_end] + body + signature)
    verify(path, signer=SITE.public())
    with pytest.raises(EnvelopeError, match="Chunk 0"):
        open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())
    assert not (tmp_path / "plain").exists()


def test_nothing_half_written(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        seal(Broken(), tmp_path / "x.sealed", header(SITE, HUB), to=HUB.public(), keys=SITE)
    assert list(tmp_path.iterdir()) == []


def test_pae_is_injective() -> None:
    assert pae(b"ab", b"c") != pae(b"a", b"bc") != pae(b"abc") != pae(b"abc", b"")


# --- What a hostile or broken party could try ---------------------------------------------------------------


@pytest.mark.parametrize("suite", ["x25519", "mlkem768-x25519"])
def test_a_recipient_key_of_low_order_is_refused(tmp_path: Path, suite: Any) -> None:
    """A content key sealed to it could be read by everyone."""
    good = PrivateKeys.generate(suite).public()
    raw = base64.b64decode(good.sealing)[:-32] + bytes(32)
    weak = PublicKeys(suite=suite, sealing=base64.b64encode(raw).decode(), signing=good.signing)
    head = header(SITE, HUB, suite=suite, recipient_key=weak.digest)
    with pytest.raises(EnvelopeError, match="Nothing can be sealed"):
        seal(io.BytesIO(b"1"), tmp_path / "x.sealed", head, to=weak, keys=SITE)
    assert list(tmp_path.iterdir()) == []


def test_an_envelope_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EnvelopeError, match="no envelope"):
        read_header(tmp_path / "none")
    with pytest.raises(EnvelopeError, match="cannot be read"):
        read_header(tmp_path)


@pytest.mark.parametrize("expires", ["0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00Z"])
def test_expiry_is_checked_with_the_given_time(tmp_path: Path, expires: str) -> None:
    path = sealed(tmp_path, head=header(SITE, HUB, expires=expires))
    with pytest.raises(EnvelopeError, match="expired"):
        open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())
    if expires.startswith("2026"):
        early = datetime(2025, 12, 31, tzinfo=UTC)
        open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public(), now=early)
        assert (tmp_path / "plain").read_bytes() == b"content"


def test_nothing_is_decrypted_before_the_signature_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sealed(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))

    def reached(*args: object) -> None:
        raise AssertionError("the content key was opened")

    monkeypatch.setattr(envelope, "_unwrap", reached)
    with pytest.raises(EnvelopeError, match="signature"):
        open_sealed(path, tmp_path / "plain", keys=HUB, signer=SITE.public())


def test_a_file_that_changes_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second, equally valid envelope of the same header takes its place after the signature was checked."""
    head = header(SITE, HUB)
    path, other = sealed(tmp_path, b"one", head), sealed(tmp_path / "other", b"two", head)
    verified = envelope._verify

    def swap(stream: Any, signer: PublicKeys) -> Any:
        found = verified(stream, signer)
        path.write_bytes(other.read_bytes())
        return found

    monkeypatch.setattr(envelope, "_verify", swap)
    (tmp_path / "out").mkdir()
    with pytest.raises(EnvelopeError):
        open_sealed(path, tmp_path / "out" / "plain", keys=HUB, signer=SITE.public())
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_plain_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "out" / "plain"
    target.parent.mkdir()
    target.write_bytes(b"older")
    data = sealed(tmp_path, b"a" * CHUNK + b"b").read_bytes()
    head, wrapped, chunks, _ = reference.split(data)
    broken = reference.body(wrapped, [chunks[0], chunks[1][:-1] + bytes([chunks[1][-1] ^ 1])])
    path = tmp_path / "broken.sealed"
    path.write_bytes(reference.envelope(head, broken, SITE.sign(reference.signed_data(head, broken))))
    with pytest.raises(EnvelopeError, match="Chunk 1"):
        open_sealed(path, target, keys=HUB, signer=SITE.public())
    assert target.read_bytes() == b"older"
    assert list(target.parent.iterdir()) == [target]
    open_sealed(tmp_path / "x.sealed", target, keys=HUB, signer=SITE.public())
    assert target.read_bytes() == b"a" * CHUNK + b"b"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "no-O_TMPFILE"])
def test_both_ways_of_writing_the_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    if named:
        monkeypatch.delattr(os, "O_TMPFILE")
    target = tmp_path / "new" / "folder" / "plain"
    open_sealed(sealed(tmp_path), target, keys=HUB, signer=SITE.public())
    assert target.read_bytes() == b"content"
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(target.parent.iterdir()) == [target]


SLOW_READER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from protocol import envelope
from protocol.keys import PrivateKeys, PublicKeys

decrypt = envelope._decrypt
def slowly(*args):
    for number, piece in enumerate(decrypt(*args)):
        yield piece
        if number == 1:
            print("decrypting", flush=True)
            time.sleep(600)
envelope._decrypt = slowly
keys, signer = PrivateKeys.load(Path(sys.argv[1])), PublicKeys.model_validate_json(sys.argv[2])
envelope.open_sealed(Path(sys.argv[3]), Path(sys.argv[4]), keys=keys, signer=signer)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="this system has no files without a name")
def test_a_killed_reader_leaves_no_plain_text(tmp_path: Path) -> None:
    path, out = sealed(tmp_path, b"secret" * CHUNK), tmp_path / "out"
    HUB.save(tmp_path / "hub.key")
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        pytest.skip("this file system has no files without a name")
    arguments = [str(tmp_path / "hub.key"), SITE.public().model_dump_json(), str(path), str(out / "plain")]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_READER, *arguments], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"decrypting\n"
        process.send_signal(signal.SIGKILL)
    assert list(out.iterdir()) == []


# --- Another implementation of HPKE -------------------------------------------------------------------------


def pyhpke_suite() -> Any:
    pyhpke = pytest.importorskip("pyhpke", reason="pyhpke is a development dependency")
    return pyhpke.CipherSuite.new(
        pyhpke.KEMId.DHKEM_X25519_HKDF_SHA256, pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId.AES256_GCM
    )


def pyhpke_key(key: x25519.X25519PrivateKey | x25519.X25519PublicKey) -> Any:
    from pyhpke import KEMKey

    return KEMKey.from_pyca_cryptography_key(key)


def test_pyhpke_opens_what_we_seal(tmp_path: Path) -> None:
    suite, hub = pyhpke_suite(), PrivateKeys.generate("x25519")
    path = tmp_path / "x.sealed"
    seal(io.BytesIO(b"content"), path, header(SITE, hub), to=hub.public(), keys=SITE)
    head, wrapped, chunks, _ = reference.split(path.read_bytes())
    private = pyhpke_key(x25519.X25519PrivateKey.from_private_bytes(hub.sealing))
    context = suite.create_recipient_context(wrapped[:32], private, info=reference.pae(b"smile/key", head))
    content_key = context.open(wrapped[32:])
    data = reference.pae(b"smile/chunk", hashlib.sha256(head).digest(), bytes(8), b"\1")
    assert AESGCM(content_key).decrypt(bytes(12), chunks[0], data) == b"content"


def test_we_open_what_pyhpke_seals(tmp_path: Path) -> None:
    suite, hub = pyhpke_suite(), PrivateKeys.generate("x25519")
    head, content_key = canonical_json(header(SITE, hub)), os.urandom(32)
    public = pyhpke_key(x25519.X25519PrivateKey.from_private_bytes(hub.sealing).public_key())
    enc, context = suite.create_sender_context(public, info=reference.pae(b"smile/key", head))
    content = reference.body(enc + context.seal(content_key), reference.chunks(content_key, head, b"content"))
    path = tmp_path / "x.sealed"
    path.write_bytes(reference.envelope(head, content, SITE.sign(reference.signed_data(head, content))))
    open_sealed(path, tmp_path / "plain", keys=hub, signer=SITE.public())
    assert (tmp_path / "plain").read_bytes() == b"content"


@pytest.mark.parametrize("length", [0, 1, 32, 1000])
def test_hpke_interop_of_any_length_and_info(length: int) -> None:
    suite, hub = pyhpke_suite(), PrivateKeys.generate("x25519")
    text, info = os.urandom(length), os.urandom(length)
    private = x25519.X25519PrivateKey.from_private_bytes(hub.sealing)
    ours = hpke_suite("x25519").encrypt(text, private.public_key(), info=info)
    assert suite.create_recipient_context(ours[:32], pyhpke_key(private), info=info).open(ours[32:]) == text
    enc, context = suite.create_sender_context(pyhpke_key(private.public_key()), info=info)
    assert hpke_suite("x25519").decrypt(enc + context.seal(text), private, info=info) == text
    wrong = info + b"x"
    from pyhpke import OpenError

    with pytest.raises(OpenError):
        suite.create_recipient_context(ours[:32], pyhpke_key(private), info=wrong).open(ours[32:])
