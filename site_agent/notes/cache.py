"""Vectors of pieces of text by digest, so that a second run, or one that was stopped, encodes only what is new.

A digest and a vector tell nearly as much as the text: the file lies among the cohort files, for this user alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import numpy as np

from protocol.text import TextEncoder
from protocol.text.encoder import Float32s

_AT_ONCE = 500
"""Below the number of parameters that any SQLite takes."""


class ChunkCache:
    """An encoder that remembers."""

    def __init__(self, connection: sqlite3.Connection, encoder: TextEncoder) -> None:
        self._connection, self._encoder = connection, encoder
        self.encoded = 0

    def encode(self, texts: Sequence[str]) -> Float32s:
        """(n, dim) unit rows."""
        keys = [blake2b(text.encode(), digest_size=16).digest() for text in texts]
        held: dict[bytes, bytes] = {}
        wanted = list(dict.fromkeys(keys))
        for i in range(0, len(wanted), _AT_ONCE):
            part = wanted[i : i + _AT_ONCE]
            marks = ",".join("?" * len(part))
            found = self._connection.execute(
                f"SELECT digest, vector FROM chunks WHERE digest IN ({marks})",  # noqa: S608 - marks alone
                part,
            )
            held.update(found)
            self._connection.execute(f"UPDATE chunks SET used = 1 WHERE digest IN ({marks})", part)  # noqa: S608
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in held}
        if new:
            vectors = self._encoder.encode(list(new.values())).astype("<f4")
            fresh = {key: row.tobytes() for key, row in zip(new, vectors, strict=True)}
            self._connection.executemany("INSERT INTO chunks VALUES (?, ?, 1)", fresh.items())
            held |= fresh
            self.encoded += len(fresh)
        self._connection.commit()
        rows = np.frombuffer(b"".join(held[key] for key in keys), dtype="<f4")
        return rows.reshape(len(keys), self._encoder.dim).astype(np.float32)


@contextmanager
def chunk_cache(folder: Path, encoder: TextEncoder) -> Iterator[ChunkCache]:
    """The cache of one encoder; those of others are removed, and what a whole run did not use.

    Args:
        folder: of the site's cohort files.
        encoder: its digest and dimension name the file.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"note-vectors-{encoder.digest[:16]}-{encoder.dim}.sqlite"
    for other in folder.glob("note-vectors-*"):
        if other.name != path.name:
            other.unlink()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path)
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS chunks (digest BLOB PRIMARY KEY, vector BLOB, used INTEGER) WITHOUT ROWID"
        )
        connection.execute("UPDATE chunks SET used = 0")
        connection.commit()
        yield ChunkCache(connection, encoder)
        # What a patient's notes no longer say must not stay.
        connection.execute("DELETE FROM chunks WHERE used = 0")
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()
