"""Arrays as bytes: safetensors only, bounded before anything is allocated, finite values only.

Neither pickle nor npz is ever read: a 128-byte `.npy` header can ask for 8 GiB
and a pickle can run code. A safetensors file is a length, a JSON header of that
length and raw little-endian values; the library checks that every array lies
inside the bytes at hand, so what is allocated never exceeds what was received.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

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
_DTYPES = {"F32": 4, "F64": 8, "I32": 4, "I64": 8, "U8": 1}


def encode_arrays(arrays: Arrays, metadata: Mapping[str, str]) -> bytes:
    """Serialise named arrays and text metadata; equal input gives equal bytes."""
    return bytes(
        save({k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}, metadata=dict(metadata))
    )


def decode_arrays(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Parse bytes from `encode_arrays`.

    Returns:
        the arrays by name, and the metadata.

    Raises:
        ProtocolError: anything that is not exactly a bounded set of finite arrays.
    """
    header = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ProtocolError("The array file's metadata is not a table of texts")
    if len(header) > MAX_ARRAYS:
        raise ProtocolError(f"The array file holds {len(header)} arrays", why=f"the limit is {MAX_ARRAYS}")
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) else None
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise ProtocolError(f"Array {name[:80]!r} has a type that is not accepted")
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise ProtocolError("The array file is damaged", why=str(error)[:200]) from None
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProtocolError(f"Array {name[:80]!r} holds NaN or infinite values")
    return arrays, metadata


def _header(data: bytes) -> dict[str, Any]:
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
    return header


__all__ = ["Arrays", "FloatMatrix", "FloatVector", "IntVector", "decode_arrays", "encode_arrays"]
