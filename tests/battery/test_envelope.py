"""The envelope under load and under attack: memory, mutants, fuzz.

Each test prints its figure and its bar (pytest -s). The full numbers run with SMILE_BATTERY=full.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from protocol.envelope import open_sealed
from protocol.errors import ProtocolError
from protocol.keys import PrivateKeys
from tests.vectors.envelope import make_vectors, reference
from tests.vectors.envelope.reference import CHUNK, Party

FULL = os.environ.get("SMILE_BATTERY") == "full"
ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 12, 1, tzinfo=UTC)
MIB = 1 << 20

# --- Memory ---------------------------------------------------------------------------------------------

MEMORY = """
import hashlib, io, json, sys, time
from pathlib import Path
from protocol.envelope import open_sealed, seal
from protocol.keys import PrivateKeys
from protocol.envelope import EnvelopeHeader

folder, mebibytes = Path(sys.argv[1]), int(sys.argv[2])

class Source(io.RawIOBase):
    # Content that no file holds: its memory is not counted as the envelope's.
    def __init__(self):
        self.left, self.state = mebibytes << 20, hashlib.sha256()
    def readable(self):
        return True
    def read(self, size=-1):
        size = min(size, self.left)
        piece = hashlib.shake_128(self.left.to_bytes(8, "big")).digest(64) * (size // 64 + 1)
        self.left -= size
        self.state.update(piece[:size])
        return piece[:size]

def kib(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

site, hub = PrivateKeys.generate(), PrivateKeys.generate()
header = EnvelopeHeader(kind="release", suite=hub.suite, consortium="battery", study_digest="0" * 64,
    round="r1", site="north", recipient_key=hub.public().digest, signer_key=site.public().digest, sequence=1,
    previous="", content="0" * 64, agent_digest="0" * 64, policy_digest="0" * 64, ledger_head="",
    expires="2100-01-01T00:00:00Z")
base, source, begun = kib("VmRSS"), Source(), time.perf_counter()
seal(source, folder / "x.sealed", header, to=hub.public(), keys=site)
sealed, peak_seal = time.perf_counter(), kib("VmHWM")
open_sealed(folder / "x.sealed", folder / "plain", keys=hub, signer=site.public())
opened, peak = time.perf_counter(), kib("VmHWM")
with (folder / "plain").open("rb") as stream:
    same = hashlib.file_digest(stream, "sha256").digest() == source.state.digest()
print(json.dumps({"same": same, "bytes": (folder / "plain").stat().st_size, "base": base, "peak_seal": peak_seal,
    "peak": peak, "seal_s": round(sealed - begun, 2), "open_s": round(opened - sealed, 2)}))
"""


def test_a_large_release_seals_and_opens_in_little_memory(tmp_path: Path) -> None:
    size = 360 if FULL else 40
    try:
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), str(size)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        for path in tmp_path.iterdir():
            path.unlink()
    found = json.loads(run.stdout)
    growth = (found["peak"] - found["base"]) / 1024
    print(f"\n{size} MiB sealed in {found['seal_s']} s, opened in {found['open_s']} s: memory grew by"
          f" {growth:.1f} MiB to {found['peak'] / 1024:.1f} MiB (bar: < 64 MiB of growth)")  # fmt: skip
    assert found["same"]
    assert found["bytes"] == size * MIB
    assert growth < 64


# --- Mutants --------------------------------------------------------------------------------------------

SITE, OTHER = make_vectors.SITE, make_vectors.OTHER_SITE


class Sealed:
    """A good envelope in its parts."""

    def __init__(self, suite: str, size: int, **changes: Any) -> None:
        self.hub = make_vectors.HUBS[suite]
        self.head, self.key = make_vectors.header(suite, **changes), os.urandom(32)
        self.plain = os.urandom(size)
        self.wrapped = self.hub.wrap(self.key, self.head)
        self.parts = reference.chunks(self.key, self.head, self.plain)

    def data(self, signer: Party = SITE, **parts: Any) -> bytes:
        """The envelope, with some parts replaced, signed by `signer`."""
        head = parts.get("head", self.head)
        body = parts.get("body") or reference.body(
            parts.get("wrapped", self.wrapped), parts.get("chunks", self.parts)
        )
        return reference.envelope(head, body, signer.ed25519.sign(reference.signed_data(head, body)))


def bit_flip(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    data = bytearray(one.data())
    # Half of the flips in the first 4 KiB, where header, wrapped key and framing are.
    data[rng.randrange(min(len(data), 4096) if rng.random() < 0.5 else len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncation(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    data = one.data()
    return data[: rng.randrange(len(data))]


def insertion(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    data, at = one.data(), rng.randrange(len(one.data()) + 1)
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def rearranged_chunks(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """Swapped, dropped, repeated: and signed again by the right key."""
    while (order := [rng.randrange(3) for _ in range(rng.randint(1, 4))]) == [0, 1, 2]:
        pass
    return one.data(chunks=[one.parts[i] for i in order])


def header_edit(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """Any field of the header changed and signed again by the right key."""
    head = json.loads(one.head)
    name = rng.choice(sorted(head))
    head[name] = rng.choice(["d" * 64, "elsewhere", rng.randint(3, 99), "2099-01-01T00:00:00Z", None])
    return one.data(head=reference.canonical(head))


def resigned_by_another(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    parts = [one.parts, two.parts][rng.randrange(2)]
    return one.data(OTHER, chunks=parts)


def sealed_by_another(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """Another site's own, whole envelope in the name of this one, or in its own."""
    changes = {} if rng.random() < 0.5 else {"signer_key": OTHER.digest}
    return Sealed(one.hub.suite, 50, sequence=rng.randint(1, 99), **changes).data(OTHER)


def spliced_body(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """Wrapped key and chunks of two honest envelopes mixed, signed again by the right key."""
    wrapped, parts = rng.choice(
        [(two.wrapped, two.parts), (two.wrapped, one.parts), (one.wrapped, two.parts)]
    )
    if rng.random() < 0.5:
        mixed = [rng.choice(pair) for pair in zip(one.parts, two.parts, strict=True)]
        parts, wrapped = (mixed if mixed != one.parts else two.parts), one.wrapped
    return one.data(wrapped=wrapped, chunks=parts)


def resigned_bytes(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """Any byte of the body changed and signed again by the right key."""
    body = bytearray(reference.body(one.wrapped, one.parts))
    body[rng.randrange(min(len(body), 2048) if rng.random() < 0.5 else len(body))] ^= rng.randint(1, 255)
    return one.data(body=bytes(body))


def spliced_halves(one: Sealed, two: Sealed, rng: random.Random) -> bytes:
    """The first bytes of one file and the last of another."""
    first, second, at = one.data(), two.data(), rng.randint(1, len(one.data()) - 1)
    return first[:at] + second[at:]


MUTATIONS: tuple[Callable[[Sealed, Sealed, random.Random], bytes], ...] = (
    bit_flip, truncation, insertion, rearranged_chunks, header_edit,
    resigned_by_another, sealed_by_another, spliced_body, resigned_bytes, spliced_halves,
)  # fmt: skip


def test_no_mutant_is_accepted_and_nothing_is_left(tmp_path: Path) -> None:
    count = 1000 if FULL else 60
    rng = random.Random(20261122)  # noqa: S311 - not for cryptography
    pairs = [
        (Sealed(suite, 2 * CHUNK + 7), Sealed(suite, 2 * CHUNK + 7, sequence=3))
        for suite in make_vectors.HUBS
    ]
    path, out = tmp_path / "x.sealed", tmp_path / "out"
    out.mkdir()
    signer = _keys(SITE).public()
    kinds: Counter[str] = Counter()
    for one, _ in pairs:
        path.write_bytes(one.data())
        open_sealed(path, out / "plain", keys=_keys(one.hub), signer=signer, now=NOW)
        assert (out / "plain").read_bytes() == one.plain
        (out / "plain").unlink()
    for number in range(count):
        mutation = MUTATIONS[number % len(MUTATIONS)]
        one, two = rng.choice(pairs)
        data = mutation(one, two, rng)
        assert data != one.data()
        assert data != two.data()
        path.write_bytes(data)
        try:
            open_sealed(path, out / "plain", keys=_keys(one.hub), signer=signer, now=NOW)
        except ProtocolError:
            kinds[mutation.__name__] += 1
        else:
            pytest.fail(f"mutant {number} ({mutation.__name__}) was accepted")
        assert list(out.iterdir()) == []
    path.unlink()
    print(f"\n{kinds.total()} mutants of {len(kinds)} kinds: 0 accepted, 0 files left (bar: 0)")
    assert kinds.total() == count


def _keys(party: Party) -> PrivateKeys:
    return PrivateKeys(party.suite, party.sealing, party.signing)


# --- Fuzz -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("engine", ["seeded", "atheris"])
def test_no_bytes_bring_a_decoder_down(engine: str, tmp_path: Path) -> None:
    if engine == "atheris" and find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    guided = find_spec("atheris") is not None
    # The seeded engine stands in for the guided one where that is missing.
    runs = 4000 if not FULL else 5_000_000 if (engine == "atheris") == guided else 200_000
    run = subprocess.run(
        [sys.executable, "-m", "tests.battery.envelope_fuzz", engine, str(runs), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads((tmp_path / "report.json").read_text())
    print(f"\n{engine}: {found['runs']} inputs, 0 uncaught, {found['peak_kib'] / 1024:.0f} MiB"
          " (bar: 0 uncaught, < 256 MiB)")  # fmt: skip
    assert found["runs"] >= runs
    assert found["peak_kib"] < 256 * 1024
