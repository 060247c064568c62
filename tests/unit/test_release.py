"""Release bytes: what decodes, and every malformed release that must not."""

from __future__ import annotations

import json
import pickle
import struct
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import ProtocolError
from protocol.release import CODE_PATIENTS, Release, decode_release, describe, encode_release
from tests.synthetic import release, unit_rows

CODES = ["ICD10CM:A00", "ICD10CM:B00", "ICD10CM:C00"]
GOOD = release("north", CODES, unit_rows(np.random.default_rng(0), 3, 2))


def rebuilt(**arrays: Any) -> bytes:
    """The good release with other arrays, described truthfully in its manifest."""
    new = {k: v for k, v in {**GOOD.arrays, **arrays}.items() if v is not None}
    manifest = GOOD.manifest.model_copy(update={"arrays": describe(new)})
    return encode_release(Release(manifest, MappingProxyType(new)))


def test_round_trip() -> None:
    found = decode_release(encode_release(GOOD))
    assert found.manifest == GOOD.manifest
    assert encode_release(found) == encode_release(GOOD)
    (view,) = found.views()
    assert view.name == "cooccurrence"
    np.testing.assert_array_equal(view.matrix, GOOD.views()[0].matrix)


def test_arrays_must_be_those_of_the_manifest() -> None:
    data = bytearray(encode_release(GOOD))
    data[-1] ^= 1
    with pytest.raises(ProtocolError):
        decode_release(bytes(data))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({CODE_PATIENTS: None}, "no patient count"),
        ({CODE_PATIENTS: np.array([20, 20])}, "no patient count"),
        ({CODE_PATIENTS: np.array([20, -1, 20])}, "negative"),
        ({"view/cooccurrence/rows": None}, "not whole views"),
        ({"view/cooccurrence/rows": np.array([0, 2, 1], np.int32)}, "not increasing"),
        ({"view/cooccurrence/rows": np.array([0, 1, 3], np.int32)}, "not increasing"),
        ({"view/cooccurrence/rows": np.array([0, 1], np.int32)}, "wrong shape"),
        ({"view/cooccurrence/matrix": np.zeros((3, 0), np.float32)}, "wrong shape"),
        ({"view/cooccurrence/matrix": np.zeros((3, 129), np.float32)}, "wrong shape"),
        ({"view/cooccurrence/matrix": np.zeros((3, 2), np.float64)}, "wrong type"),
        ({"extra": np.zeros(3)}, "not whole views"),
    ],
)
def test_shapes_are_checked(arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode_release(rebuilt(**arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_only_finite_values(value: float) -> None:
    matrix = np.array(GOOD.arrays["view/cooccurrence/matrix"])
    matrix[1, 1] = value
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        decode_release(rebuilt(**{"view/cooccurrence/matrix": matrix}))


def test_a_header_cannot_ask_for_memory() -> None:
    claim = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for data in (
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", len(claim)) + claim,
        struct.pack("<Q", len(claim)) + claim + b"\0" * 64,
        b"",
        b"\0" * 7,
        pickle.dumps(GOOD.manifest.codes),
        b"\x93NUMPY\x01\x00",
    ):
        with pytest.raises(ProtocolError):
            decode_arrays(data)


def framed(header: object, values: bytes) -> bytes:
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + values


def entry(dtype: str, shape: object, *offsets: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)},  # overlap
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)},  # a hole
        {"a": entry("F32", [2], 0, 8)},  # bytes that belong to nothing
        {"a": entry("F32", [4], 0, 16)},  # beyond the end
        {"a": entry("F32", [3], 0, 8)},  # another size
        {"a": entry("F32", [-3], 0, 12)},
        {"a": entry("F32", [True], 0, 12)},
        {"a": entry("F32", [3.0], 0, 12)},
        {"a": entry("F32", "3", 0, 12)},
        {"a": entry("F32", [3], 12, 0)},
        {"a": entry("F32", [3], 0)},
        {"a": entry("F32", [3], 0, 12, 12)},
        {"a": entry("F32", [1 << 70], 0, 12)},
        {"a": entry("F32", [1] * 9 + [3], 0, 12)},
        {"a": entry("F32", [3], 0, 12), "b": entry("F32", [0, 1 << 47, 1 << 47, 1 << 47], 12, 12)},
        {"a": {"dtype": "F32"}},
        {"a": 3},
    ],
)
def test_arrays_lie_in_the_bytes_at_hand_without_overlap_or_hole(header: object) -> None:
    with pytest.raises(ProtocolError):
        decode_arrays(framed(header, bytes(12)))


def test_arrays_are_views_that_nobody_writes_to() -> None:
    data = encode_arrays({"a": np.arange(5, dtype=np.float32), "b": np.arange(3)}, {})
    arrays, _ = decode_arrays(data)
    for array in arrays.values():
        assert array.base is not None
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))


def test_arrays_that_lie_askew_are_read() -> None:
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F64", [2], 1, 17)}
    values = b"\x07" + np.array([1.5, -2.0]).tobytes()
    arrays, _ = decode_arrays(framed(header, values))
    assert arrays["a"].tolist() == [7]
    assert arrays["b"].tolist() == [1.5, -2.0]
    assert arrays["b"].flags.aligned


def test_unknown_types_and_metadata_are_refused() -> None:
    good = encode_arrays({"x": np.zeros(2, np.float32)}, {})
    with pytest.raises(ProtocolError, match="not accepted"):
        decode_arrays(good.replace(b'"F32"', b'"F16"'))
    with pytest.raises(ProtocolError, match="no manifest"):
        decode_release(good)


def test_duplicate_codes_are_refused() -> None:
    manifest = GOOD.manifest.model_copy(update={"codes": ("ICD10CM:A00", "ICD10CM:A00", "ICD10CM:C00")})
    with pytest.raises(ProtocolError, match="twice"):
        decode_release(encode_release(Release(manifest, GOOD.arrays)))
