"""Make the envelope vectors anew: python -m tests.vectors.envelope.make_vectors [FOLDER].

Keys and contents are SHAKE-256 of labels; content keys and HPKE's randomness are fresh, so each
run gives other bytes. Run it only when the format changes; then it needs an ADR and a changelog line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.vectors.envelope.reference import (
    CHUNK,
    MAGIC,
    Party,
    body,
    canonical,
    chunk,
    chunks,
    envelope,
    signed_data,
    stream,
)

HYBRID, PLAIN = "mlkem768-x25519", "x25519"
SITE, OTHER_SITE = Party.named("site", HYBRID), Party.named("other-site", HYBRID)
HUBS = {suite: Party.named(f"hub-{suite}", suite) for suite in (HYBRID, PLAIN)}
OTHER_HUB = Party.named("other-hub", PLAIN)
SIZES = {"empty": 0, "one-chunk": 100, "exactly-one-chunk": CHUNK, "several-chunks": 2 * CHUNK + 1}


def header(suite: str, **changes: Any) -> bytes:
    values = {
        "protocol": 1,
        "software": "another writer 1",
        "kind": "release",
        "suite": suite,
        "consortium": "vectors",
        "study_digest": hashlib.sha256(b"study").hexdigest(),
        "round": "r1",
        "site": "north",
        "recipient_key": HUBS[suite].digest,
        "signer_key": SITE.digest,
        "sequence": 2,
        "previous": hashlib.sha256(b"previous").hexdigest(),
        "content": hashlib.sha256(b"content").hexdigest(),
        "agent_digest": hashlib.sha256(b"agent").hexdigest(),
        "policy_digest": hashlib.sha256(b"policy").hexdigest(),
        "ledger_head": hashlib.sha256(b"ledger").hexdigest(),
        "expires": "2100-01-01T00:00:00Z",
    }
    return canonical(values | changes)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def good() -> list[dict[str, Any]]:
    """Each suite with each size; big bodies are described, not stored."""
    found = []
    for suite in (PLAIN, HYBRID):
        for name, size in SIZES.items():
            head, key, label = header(suite), os.urandom(32), f"plain text of {suite}-{name}"
            wrapped = HUBS[suite].wrap(key, head)
            content = body(wrapped, chunks(key, head, stream(label, size)))
            signature = SITE.ed25519.sign(signed_data(head, content))
            found.append(
                {
                    "name": f"{suite}-{name}",
                    "header": head.decode(),
                    "content_key": text(key),
                    "wrapped": text(wrapped),
                    "plain": {"shake256_of": label, "bytes": size},
                    "signature": text(signature),
                    "sha256": hashlib.sha256(envelope(head, content, signature)).hexdigest(),
                }
            )
    return found


class Bad:
    """Collects bad vectors; all start from a small envelope whose parts are at hand."""

    def __init__(self, suite: str = PLAIN) -> None:
        self.found: list[dict[str, Any]] = []
        self.suite, self.plain, self.key = suite, stream("bad", 100), os.urandom(32)
        self.head = header(suite)
        self.wrapped = HUBS[suite].wrap(self.key, self.head)
        self.parts = chunks(self.key, self.head, self.plain)

    def sealed(
        self, *, head: bytes | None = None, wrapped: bytes | None = None,
        parts: list[bytes] | None = None, signer: Party = SITE,
    ) -> bytes:  # fmt: skip
        """An envelope of these parts with a signature that holds."""
        head = self.head if head is None else head
        parts = self.parts if parts is None else parts
        content = body(self.wrapped if wrapped is None else wrapped, parts)
        return envelope(head, content, signer.ed25519.sign(signed_data(head, content)))

    def whole(self, head: bytes) -> bytes:
        """An envelope that is right in all but what its header says."""
        suite = json.loads(head).get("suite", self.suite)
        return self.sealed(
            head=head, wrapped=HUBS[suite].wrap(self.key, head), parts=chunks(self.key, head, self.plain)
        )

    def add(self, name: str, error: str, data: bytes, *, step: str = "verify") -> None:
        vector = {"name": name, "recipient": self.suite, "step": step, "error": error, "envelope": text(data)}
        self.found.append(vector)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def altered(bad: Bad) -> None:
    """Changed after signing."""
    data = bad.sealed()
    start = len(MAGIC) + 4 + len(bad.head)
    chunk_at = start + 4 + len(bad.wrapped)
    holds, framing = "signature does not hold", "framing is damaged"
    bad.add("magic-of-another-version", "not a sealed envelope", b"SMILENV2" + data[8:])
    bad.add("no-bytes", "ends too early", b"")
    bad.add("header-length-past-limit", "header is too long", data[:8] + b"\x00\x00\x40\x01" + data[12:])
    bad.add("cut-in-the-header", "ends too early", data[:200])
    bad.add("header-edited", holds, data.replace(b'"round":"r1"', b'"round":"r2"'))
    bad.add("wrapped-key-bit-flipped", holds, flipped(data, start + 10))
    bad.add("wrapped-key-length-past-limit", framing, data[:start] + b"\x00\x00\x10\x01" + data[start + 4 :])
    bad.add("chunk-bit-flipped", holds, flipped(data, chunk_at + 10))
    bad.add("chunk-length-past-limit", framing, data[:chunk_at] + b"\x00\x10\x00\x11" + data[chunk_at + 4 :])
    bad.add("cut-in-the-chunk", "ends too early", data[: chunk_at + 20])
    bad.add("cut-in-the-signature", "ends too early", data[:-1])
    bad.add("signature-bit-flipped", holds, flipped(data, len(data) - 20))
    bad.add("byte-after-the-end", "bytes after the envelope's end", data + b"\x00")


def wrong_header(bad: Bad) -> None:
    """Signed and sealed, but the header is not one of the protocol, or not one for this reader."""
    plain = json.loads(bad.head)
    rule = "does not follow the protocol"
    bad.add("header-with-a-space", "canonical form", bad.whole(bad.head.replace(b",", b", ", 1)))
    bad.add("header-with-an-unknown-field", rule, bad.whole(canonical(plain | {"note": "x"})))
    bad.add(
        "header-without-a-field", rule, bad.whole(canonical({k: plain[k] for k in plain if k != "expires"}))
    )
    bad.add("another-protocol", "speaks protocol 2", bad.whole(header(bad.suite, protocol=2)))
    older = {k: v for k, v in plain.items() if k not in {"protocol", "software"}}
    bad.add("no-protocol", "speaks protocol 0", bad.whole(canonical(older)))
    bad.add("sequence-zero", rule, bad.whole(header(bad.suite, sequence=0)))
    bad.add("sequence-past-2-53", rule, bad.whole(header(bad.suite, sequence=1 << 53)))
    bad.add("expiry-without-a-zone", rule, bad.whole(header(bad.suite, expires="2100-01-01T00:00:00")))
    bad.add("another-signer", "another signer", bad.whole(header(bad.suite, signer_key=OTHER_SITE.digest)))
    bad.add("signed-by-another-than-named", "signature does not hold", bad.sealed(signer=OTHER_SITE))
    recipient = bad.whole(header(bad.suite, recipient_key=OTHER_HUB.digest))
    bad.add("another-recipient", "sealed to another key", recipient, step="open")
    expired = bad.whole(header(bad.suite, expires="2026-01-01T00:00:00Z"))
    bad.add("expired", "expired at 2026-01-01", expired, step="open")
    mixed = header(HYBRID, recipient_key=HUBS[bad.suite].digest)
    bad.add("suite-of-another-key", "content key does not open", bad.whole(mixed), step="open")


def wrong_body(bad: Bad) -> None:
    """Signed by the right key, but no reader may open it."""
    head, key, plain = bad.head, bad.key, bad.plain
    framing, place = "framing is damaged", "Chunk 0 of the envelope was altered"
    bad.add("no-wrapped-key", "holds no key", bad.sealed(wrapped=b""))
    bad.add("no-chunk", "holds no chunk", bad.sealed(parts=[]))
    halves = [chunk(key, head, 0, plain[:50], final=False), chunk(key, head, 1, plain[50:], final=True)]
    bad.add("short-chunk-before-the-last", framing, bad.sealed(parts=halves))
    bad.add("chunk-shorter-than-its-tag", framing, bad.sealed(parts=[bad.parts[0][:15]]))
    other = header(bad.suite, round="r2")
    wrapped = HUBS[bad.suite].wrap(key, other)
    message = "content key does not open"
    bad.add("wrapped-key-of-another-header", message, bad.sealed(wrapped=wrapped), step="open")
    bad.add("wrapped-key-resigned", message, bad.sealed(wrapped=flipped(bad.wrapped, 50)), step="open")
    bad.add("wrapped-key-cut", message, bad.sealed(wrapped=bad.wrapped[:20]), step="open")
    low = b"\x00" * 32 + bad.wrapped[32:]
    bad.add("ephemeral-key-of-low-order", message, bad.sealed(wrapped=low), step="open")
    short = bad.sealed(wrapped=HUBS[bad.suite].wrap(key[:16], head), parts=chunks(key[:16], head, plain))
    bad.add("content-key-of-128-bits", "content key has a wrong length", short, step="open")
    bad.add("chunk-resigned", place, bad.sealed(parts=[flipped(bad.parts[0], 5)]), step="open")
    bad.add("chunk-of-another-header", place, bad.sealed(parts=chunks(key, other, plain)), step="open")
    bad.add("chunk-of-another-key", place, bad.sealed(parts=chunks(os.urandom(32), head, plain)), step="open")
    open_end = [chunk(key, head, 0, plain, final=False)]
    bad.add("last-chunk-not-marked-last", place, bad.sealed(parts=open_end), step="open")
    bad.add(
        "chunk-of-another-place",
        place,
        bad.sealed(parts=[chunk(key, head, 1, plain, final=True)]),
        step="open",
    )


def rearranged(vector: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a good vector in another order, signed again; described, not stored."""
    head, key = vector["header"].encode(), base64.b64decode(vector["content_key"])
    plain = stream(vector["plain"]["shake256_of"], vector["plain"]["bytes"])
    parts = chunks(key, head, plain)
    found = []
    for name, order, step, error in (
        ("chunks-swapped", [1, 0, 2], "open", "Chunk 0"),
        ("first-chunk-dropped", [1, 2], "open", "Chunk 0"),
        ("last-chunk-dropped", [0, 1], "open", "Chunk 1"),
        ("middle-chunk-dropped", [0, 2], "open", "Chunk 1"),
        ("chunk-repeated", [0, 0, 1, 2], "open", "Chunk 1"),
        ("last-chunk-first", [2, 0, 1], "verify", "framing is damaged"),
    ):
        content = body(base64.b64decode(vector["wrapped"]), [parts[i] for i in order])
        signature = SITE.ed25519.sign(signed_data(head, content))
        described = {"from": vector["name"], "chunks": order, "signature": text(signature)}
        found.append({"name": name, "recipient": PLAIN, "step": step, "error": error} | described)
    return found


def bad(several: dict[str, Any]) -> list[dict[str, Any]]:
    made, hybrid = Bad(), Bad(HYBRID)
    altered(made)
    wrong_header(made)
    wrong_body(made)
    for name, at in (("mlkem", 100), ("x25519", 1100), ("tag", -1)):
        broken = flipped(hybrid.wrapped, at % len(hybrid.wrapped))
        error = "content key does not open"
        hybrid.add(f"hybrid-wrapped-{name}-resigned", error, hybrid.sealed(wrapped=broken), step="open")
    return made.found + hybrid.found + rearranged(several)


def main(folder: Path) -> None:
    hubs = {f"hub-{suite}": hub for suite, hub in HUBS.items()}
    parties = {"site": SITE, "other-site": OTHER_SITE, **hubs, "other-hub": OTHER_HUB}
    keys = {
        name: {"suite": p.suite, "sealing": text(p.sealing), "signing": text(p.signing), "digest": p.digest}
        for name, p in parties.items()
    }
    whole = good()
    refused = bad(next(v for v in whole if v["name"] == f"{PLAIN}-several-chunks"))
    for name, content in (("keys", keys), ("good", whole), ("bad", refused)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
