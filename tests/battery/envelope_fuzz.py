"""Bytes from a fuzzer into every decoder that reads them from another party.

    python -m tests.battery.envelope_fuzz ENGINE RUNS FOLDER

ENGINE is atheris (guided by coverage) or seeded (random mutations of the same seeds, the same on each
run). Anything but a `ProtocolError`, and any content that appears other than the one that was sealed, ends
the process with a traceback. FOLDER/report.json then lacks the full number of runs.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

RUNS_BETWEEN_REPORTS = 500
WORDS = (b"null", b"true", b"[]", b"{}", b'""', b"-1", b"1e999", b"NaN", b'"\\ud800"', b"9" * 400, b"[" * 200,
         b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"U8", b"F16", b"A=", b"..")  # fmt: skip


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 1 << 31, 1 << 53, 1 << 64, 10**30, 0.5, 1e308, "", "x", "A=", "north", "U8", "F16",
    "F32", "I64", "2026-12-01T00:00:00Z", "a" * 64, [], {}, [0], [2, 1], [1, 1, 1], [[]], {"a": []}, "x" * 3000,
)  # fmt: skip
NAMES = (
    "",
    "x",
    "X Y",
    "view/x/matrix",
    "view/x/rows",
    "code-patients",
    "__metadata__",
    "manifest",
    "a/b/c/d",
)


class Decoders:
    """The first byte of an input chooses the decoder, the rest is what it reads."""

    def __init__(self, folder: Path) -> None:
        from tests.vectors.envelope import make_vectors, reference

        self.folder, self.reference, self.site = folder, reference, make_vectors.SITE
        self.path, self.out = folder / "in" / "x.sealed", folder / "out"
        for made in (self.path.parent, self.out):
            made.mkdir(parents=True, exist_ok=True)
        self.hub, self.head = make_vectors.HUBS["x25519"], make_vectors.header("x25519")
        self.content_key, self.plain = bytes(32), b"plain text"
        parts = reference.chunks(self.content_key, self.head, self.plain)
        self.wrapped = self.hub.wrap(self.content_key, self.head)
        self.body = reference.body(self.wrapped, parts)
        self.keys, self.signer = self._private(self.hub), self._private(self.site).public()
        self.table: tuple[Callable[[bytes], None], ...] = (
            self.read_header, self.open_sealed, self.resigned_body, self.resigned_header,
            self.resigned_chunk, self.arrays, self.array_header, self.release, self.manifest, self.key_list,
        )  # fmt: skip

    @staticmethod
    def _private(party: Any) -> Any:
        from protocol.keys import PrivateKeys

        return PrivateKeys(party.suite, party.sealing, party.signing)

    def __call__(self, data: bytes) -> None:
        from protocol.errors import ProtocolError

        if data:
            with suppress(ProtocolError):
                self.table[data[0] % len(self.table)](data[1:])

    def seeds(self) -> list[bytes]:
        """A good input for each decoder, and a few that once did harm."""
        import numpy as np

        from protocol.arrays import encode_arrays
        from protocol.canonical import canonical_json
        from protocol.keylist import first_key_list
        from protocol.release import encode_release
        from tests.synthetic import release

        self.good_release = release("north", ["ICD10CM:A", "ICD10CM:B"], np.ones((2, 2)))
        encoded = encode_release(self.good_release)
        length = int.from_bytes(encoded[:8], "little")
        key_list = first_key_list("north", self._private(self.site), now=self.good_time())
        whole = self.signed(self.head, self.body)
        inputs = (
            whole, whole, self.body, self.head, self.reference.split(whole)[2][0],
            encoded, encoded[8 : 8 + length], encoded, canonical_json(self.good_release.manifest),
            canonical_json(key_list),
        )  # fmt: skip
        found = [bytes([number]) + data for number, data in enumerate(inputs)]
        for extra in ({"x": np.ones(3, np.uint8)}, {"x": np.ones((3, 1, 1))}, {"X Y": np.ones(3)}):
            text = {"manifest": canonical_json(self.good_release.manifest).decode()}
            found.append(
                bytes([self.table.index(self.release)])
                + encode_arrays(dict(self.good_release.arrays) | extra, text)
            )
        return found

    @staticmethod
    def good_time() -> Any:
        from datetime import UTC, datetime

        return datetime(2026, 12, 1, tzinfo=UTC)

    def signed(self, head: bytes, body: bytes) -> bytes:
        signature = self.site.ed25519.sign(self.reference.signed_data(head, body))
        return bytes(self.reference.envelope(head, body, signature))

    def read_header(self, data: bytes) -> None:
        from protocol.envelope import read_header

        self.path.write_bytes(data)
        read_header(self.path)

    def open_sealed(self, data: bytes) -> None:
        from protocol.envelope import open_sealed
        from protocol.errors import ProtocolError

        self.path.write_bytes(data)
        target = self.out / "plain"
        try:
            open_sealed(self.path, target, keys=self.keys, signer=self.signer, now=self.good_time())
        except ProtocolError:
            if any(self.out.iterdir()):
                raise AssertionError("a refused envelope left something on the disk") from None
            raise
        found = target.read_bytes()
        target.unlink()
        if found != self.plain:
            raise AssertionError("a content appeared that nobody sealed")

    def resigned_body(self, data: bytes) -> None:
        self.open_sealed(self.signed(self.head, data))

    def resigned_header(self, data: bytes) -> None:
        self.open_sealed(self.signed(data, self.body))

    def resigned_chunk(self, data: bytes) -> None:
        self.open_sealed(self.signed(self.head, self.reference.body(self.wrapped, [data])))

    def arrays(self, data: bytes) -> None:
        from protocol.arrays import decode_arrays

        decode_arrays(data)

    def array_header(self, data: bytes) -> None:
        """A header of any content, with the length that fits and values after it."""
        from protocol.release import decode_release

        decode_release(len(data).to_bytes(8, "little") + data + bytes(64))

    def release(self, data: bytes) -> None:
        from protocol.release import decode_release

        decode_release(data)

    def manifest(self, data: bytes) -> None:
        """Good arrays with any manifest; text only, as the metadata are."""
        from protocol.arrays import encode_arrays
        from protocol.release import decode_release

        text = data.decode(errors="replace")
        decode_release(encode_arrays(self.good_release.arrays, {"manifest": text}))

    def key_list(self, data: bytes) -> None:
        from protocol.keylist import KeyList, KnownKeys, verify_key_list
        from protocol.signed import parse

        known = KnownKeys(party="north", first=self.signer.digest)
        verify_key_list(parse(data, KeyList), known)


class Counted:
    """Counts runs and notes the process's peak of memory."""

    def __init__(self, decoders: Decoders, report: Path) -> None:
        self.decoders, self.report, self.runs = decoders, report, 0

    def __call__(self, data: bytes) -> None:
        self.decoders(data)
        self.runs += 1
        if self.runs % RUNS_BETWEEN_REPORTS == 0:
            status = Path("/proc/self/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0])
            self.report.write_text(json.dumps({"runs": self.runs, "peak_kib": peak}))


def mutated_json(data: bytes, rng: random.Random) -> bytes | None:
    """The same text with one node replaced, renamed, left out or doubled; None if it is no JSON."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    nodes = [value] if isinstance(value, dict | list) else []
    for node in nodes:
        inner = node.values() if isinstance(node, dict) else node
        nodes.extend(v for v in inner if isinstance(v, dict | list))
    node = rng.choice([n for n in nodes if n] or [[None]])
    at: Any = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    edit = rng.randrange(4)
    if edit == 0:
        del node[at]
    elif edit == 1 and isinstance(node, dict):
        node[rng.choice(NAMES)] = node.pop(at)
    elif edit == 2 and isinstance(node, list):
        node.insert(at, node[at])
    else:
        node[at] = rng.choice(VALUES)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def mutated(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """One to four random edits; the first byte, which chooses the decoder, stays."""
    first, rest = data[:1], bytearray(data[1:])
    if rng.random() < 0.5 and (found := mutated_json(bytes(rest), rng)) is not None:
        return first + found
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(rest) + 1) for _ in range(2))
        other = rng.choice(seeds)[1:]
        start = rng.randrange(len(other))
        edit = rng.randrange(7)
        if edit == 0 and rest:
            rest[at % len(rest)] ^= 1 << rng.randrange(8)
        elif edit == 1:
            del rest[at : min(to, at + 64)]
        elif edit == 2:
            rest[at:at] = rng.randbytes(rng.randint(1, 8))
        elif edit == 3:
            rest[at : at + rng.randrange(8)] = rng.choice(WORDS)
        elif edit == 4:
            rest[at:at] = rest[at : min(to, at + 64)]
        elif edit == 5:
            rest[at:to] = other[start : start + rng.randrange(64)]
        else:
            rest = rest[:at]
    return first + bytes(rest)


def main(engine: str, runs: int, folder: Path) -> None:
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["protocol", "safetensors"]):
            import protocol.keylist
            import protocol.release  # noqa: F401
    decoders = Decoders(folder)
    seeds, run = decoders.seeds(), Counted(decoders, folder / "report.json")
    for seed in seeds:
        run(seed)
    if engine == "seeded":
        rng = random.Random(20261122)  # noqa: S311 - not for cryptography
        while run.runs < runs:
            run(mutated(rng.choice(seeds), seeds, rng))
        return
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"{number}").write_bytes(seed)
    words = folder / "words"
    words.write_text("".join('"' + "".join(f"\\x{b:02x}" for b in w[:64]) + '"\n' for w in WORDS))

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the time as the seeded engine, which knows JSON; else libFuzzer's own."""
        rng = random.Random(seed)  # noqa: S311 - not for cryptography
        found = mutated(data, seeds, rng) if data and seed % 2 else atheris.Mutate(data, max_size)
        return bytes(found[:max_size])

    options = [
        f"-runs={runs}",
        "-seed=20261122",
        "-max_len=8192",
        "-len_control=0",
        f"-dict={words}",
        f"-artifact_prefix={folder}/",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
