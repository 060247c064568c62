"""Codes as CURIEs, code systems, and the coarse groups in which people look at codes."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from protocol.errors import DataError

Category = Literal["condition", "drug", "lab", "procedure", "observation", "other"]

PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}")
IDENTIFIER = re.compile(r"[a-z0-9-]{1,32}")
"""Sites, studies and rounds; codes are free text and never match this on purpose."""

MAX_CODE_LENGTH = 200

_ICD10_CHAPTERS = (
    ("A00", "B99", "infections"),
    ("C00", "D49", "neoplasms"),
    ("D50", "D89", "blood"),
    ("E00", "E89", "endocrine and metabolic"),
    ("F01", "F99", "mental"),
    ("G00", "G99", "nervous system"),
    ("H00", "H59", "eye"),
    ("H60", "H95", "ear"),
    ("I00", "I99", "circulatory"),
    ("J00", "J99", "respiratory"),
    ("K00", "K95", "digestive"),
    ("L00", "L99", "skin"),
    ("M00", "M99", "musculoskeletal"),
    ("N00", "N99", "genitourinary"),
    ("O00", "O9A", "pregnancy"),
    ("P00", "P96", "perinatal"),
    ("Q00", "Q99", "congenital"),
    ("R00", "R99", "symptoms"),
    ("S00", "T88", "injury and poisoning"),
    ("V00", "Y99", "external causes"),
    ("Z00", "Z99", "health status"),
)
_ICD9_CHAPTERS = (
    (1, 139, "infections"),
    (140, 239, "neoplasms"),
    (240, 279, "endocrine and metabolic"),
    (280, 289, "blood"),
    (290, 319, "mental"),
    (320, 359, "nervous system"),
    (360, 379, "eye"),
    (380, 389, "ear"),
    (390, 459, "circulatory"),
    (460, 519, "respiratory"),
    (520, 579, "digestive"),
    (580, 629, "genitourinary"),
    (630, 679, "pregnancy"),
    (680, 709, "skin"),
    (710, 739, "musculoskeletal"),
    (740, 759, "congenital"),
    (760, 779, "perinatal"),
    (780, 799, "symptoms"),
    (800, 999, "injury and poisoning"),
)


def curie(prefix: str, code: str) -> str:
    """Join a code system's prefix and a code, `ICD10CM:E11.9`.

    The code is stripped and brought to Unicode NFC, so that two spellings of
    one text are one code.

    Raises:
        DataError: an empty or overlong code, one with control characters, or a malformed prefix.
    """
    clean = unicodedata.normalize("NFC", code).strip()
    if not clean:
        raise DataError(f"An empty code of system {prefix!r}", do="Remove the row or give it a code")
    if len(clean) > MAX_CODE_LENGTH:
        raise DataError(
            f"The code {clean[:40]!r}... has {len(clean)} characters",
            why=f"the limit is {MAX_CODE_LENGTH}",
            do="Check that the code column does not hold free text",
        )
    # Control and direction marks would let a code pose as another in a table.
    if any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in clean):
        raise DataError(f"The code {clean!r} holds a control character", do="Clean the code column")
    if not PREFIX.fullmatch(prefix):
        raise DataError(
            f"{prefix!r} is not a code system prefix",
            why="a prefix is a letter followed by at most 31 letters, digits or _ . -",
        )
    return f"{prefix}:{clean}"


def split_curie(value: str) -> tuple[str, str]:
    """Prefix and code of a CURIE; only the first colon divides.

    Raises:
        DataError: there is no prefix.
    """
    prefix, colon, code = value.partition(":")
    if not colon or not code or not PREFIX.fullmatch(prefix):
        raise DataError(
            f"{value[:80]!r} is not of the form PREFIX:code", do="Write for example ICD10CM:E11.9"
        )
    return prefix, code


def chapter(value: str) -> str:
    """The ICD chapter of a CURIE in plain words; the prefix for other systems.

    For display and stratified evaluation only; ICD-9 and ICD-10 chapters get one common set of names.
    """
    prefix, code = split_curie(value)
    if prefix == "ICD10CM":
        for low, high, name in _ICD10_CHAPTERS:
            if low <= code[:3].upper() <= high:
                return name
    if prefix == "ICD9CM":
        if code[:1].upper() == "E":
            return "external causes"
        if code[:1].upper() == "V":
            return "health status"
        if code[:3].isdigit():
            for first, last, name in _ICD9_CHAPTERS:
                if first <= int(code[:3]) <= last:
                    return name
    return prefix
