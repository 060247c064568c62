"""A site's answers to the steps of a sum, as files: a signed message, and the masked vector that may travel behind it."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.errors import ProtocolError
from protocol.files import atomic_file

MAX_MESSAGE = 4 << 20
_LENGTH = struct.Struct(">I")


class Answer(NamedTuple):
    """A site's signed message, and the masked vector that may travel behind it."""

    message: bytes
    vector: memoryview


def write_answer(path: Path, message: bytes, vector: npt.NDArray[np.uint64] | None = None) -> None:
    """A file of the message's length (4 bytes, big-endian), the message, and the vector's bytes, little-endian."""
    with atomic_file(path) as stream:
        stream.write(_LENGTH.pack(len(message)))
        stream.write(message)
        if vector is not None:
            stream.write(np.ascontiguousarray(vector, dtype="<u8").data)


def read_answer(path: Path) -> Answer:
    """Parse a file of `write_answer`; nothing in it is checked yet. The vector stays on the disk until it is read.

    Raises:
        ProtocolError: it is not of this form.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MAX_MESSAGE + 1
        if length > MAX_MESSAGE or _LENGTH.size + length > size:
            raise ProtocolError("A site's answer is cut short, or its message is too long")
        mapped = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    begin = _LENGTH.size + length
    return Answer(bytes(mapped[_LENGTH.size : begin]), mapped[begin:])
