"""The sealed envelope: what opens, and everything that must not."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocol.envelope import CHUNK, EnvelopeHeader, open_sealed, pae, read_header, seal, verify
from protocol.errors import EnvelopeError
from protocol.keys import PrivateKeys
from tests.synthetic import header, keys

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
    import hashlib

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
