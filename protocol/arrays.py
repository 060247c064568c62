"""Arrays as bytes: safetensors only, bounded before anything is allocated, finite values only.

Neither pickle nor npz is ever read: a 128-byte `.npy` header can ask for 8 GiB
and a pickle can run code. A safetensors file is a length, a JSON header of that
length and raw little-endian values. Arrays are read here, as views of the bytes at
hand: the library's own reader copies them, and of a release of hundreds of megabytes
one copy is enough. What is allocated never exceeds what was received.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from protocol.errors import ProtocolError

FloatMatrix: TypeAlias = npt.NDArray[np.floating[Any]]
"""(n, p)."""
FloatVector: TypeAlias = npt.NDArray[np.floating[Any]]
"""(n,)."""
IntVector: TypeAlias = npt.NDArray[np.integer[Any]]
"""(n,)."""

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

MAX_HEADER_BYTES = 64 << 20
"""A 61,000-code manifest takes about 2 MB; this bounds the JSON parser's work."""
MAX_ARRAYS = 256
_MAX_AXES = 8
_DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1"}


def encode_arrays(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Serialise named arrays and text metadata; equal input gives equal bytes."""
    return bytes(
        save({k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}, metadata=dict(metadata))
    )


def decode_arrays(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Parse bytes from `encode_arrays`.

    Returns:
        the arrays by name, which cannot be written to and keep the bytes alive; and the metadata.

    Raises:
        ProtocolError: anything that is not exactly a bounded set of finite arrays.
    """
    header, values = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ProtocolError("The array file's metadata is not a table of texts")
    if len(header) > MAX_ARRAYS:
        raise ProtocolError(f"The array file holds {len(header)} arrays", why=f"the limit is {MAX_ARRAYS}")
    places = {name: _place(name, entry) for name, entry in header.items()}
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != end:
            raise _damaged(name, "arrays overlap, or leave bytes between them")
        end = place.end
    if end != len(values):
        raise ProtocolError(
            "The array file is damaged", why=f"{len(values)} bytes of values, and arrays of {end}"
        )
    arrays = {}
    for name, (dtype, shape, begin, end) in places.items():
        try:
            array = np.frombuffer(values[begin:end], dtype).reshape(shape)
        except ValueError as error:  # no element, of a shape beyond all bounds
            raise _damaged(name, str(error)[:200]) from None
        if not array.flags.aligned:
            array = array.copy()
        array.flags.writeable = False
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProtocolError(f"Array {name[:80]!r} holds NaN or infinite values")
        arrays[name] = array
    return arrays, metadata


class _Place(NamedTuple):
    """Where an array lies among the values: bytes `begin` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _place(name: str, entry: object) -> _Place:
    """What a header says of one array, checked."""
    if not isinstance(entry, dict):
        raise ProtocolError(f"Array {name[:80]!r} has a type that is not accepted")
    kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ProtocolError(f"Array {name[:80]!r} has a type that is not accepted")
    if not _counts(shape) or len(shape) > _MAX_AXES or not _counts(offsets) or len(offsets) != 2:
        raise _damaged(name, "its shape or its place is no list of whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize:
        raise _damaged(name, "its shape needs another number of bytes")
    return _Place(_DTYPES[kind], tuple(shape), begin, end)


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _damaged(name: str, why: str) -> ProtocolError:
    return ProtocolError("The array file is damaged", why=f"array {name[:80]!r}: {why}")


def _header(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header, and the values behind it."""
    if len(data) < 8:
        raise ProtocolError(f"The array file has only {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ProtocolError(f"The array file claims a header of {length} bytes", why="it does not fit")
    try:
        # Decoded here: left to json, the bytes would choose the codec that Python imports.
        header = json.loads(data[8 : 8 + length].decode())
    except (ValueError, RecursionError):
        raise ProtocolError("The array file's header is not JSON") from None
    if not isinstance(header, dict):
        raise ProtocolError("The array file's header is not a table")
    return header, memoryview(data)[8 + length :]


__all__ = ["Arrays", "FloatMatrix", "FloatVector", "IntVector", "decode_arrays", "encode_arrays"]
