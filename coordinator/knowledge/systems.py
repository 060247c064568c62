"""Which of a file's names for code systems is which prefix of the study, and one spelling for each code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from protocol.study import StudySpec
from protocol.vocabulary import MAX_CODE_LENGTH, PREFIX, split_curie

_SAME: Final = (
    {"icd10cm"},
    {"icd9cm", "icd9", "icd9cmdx", "icd9dx"},
    {"snomedct", "snomed", "snomedctus", "sctid", "sct"},
    {"loinc", "lnc"},
    {"rxnorm", "rxcui"},
    {"phecode", "phe"},
)
"""Names of one system in OMOP, UMLS, OBO and SSSOM files, folded."""

_RELEASE: Final = re.compile(r"_20\d\d(_\d\d){0,2}$")
_ICD: Final = {"icd9", "icd10"}


@dataclass(frozen=True)
class Systems:
    """The study's code systems, as knowledge files may name them.

    Attributes:
        category: the study's prefix -> condition, drug, ...
        named: a file's name -> prefix, where the user says so; it goes before what the names suggest.
    """

    category: Mapping[str, str]
    named: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_study(cls, study: StudySpec) -> Systems:
        """All code systems of a study, those of single sites included."""
        return cls({system.prefix: system.category for system in study.code_systems})

    def naming(self, named: Mapping[str, str]) -> Systems:
        """The same with names that the user explains."""
        return Systems(self.category, {**self.named, **named})

    def resolve(self, name: str) -> str | None:
        """The study's prefix for a file's name of a system; None if the study has no such system.

        Case, signs and the date of a release do not count: `SNOMEDCT_US_2023_09_01` is `SNOMED`.
        """
        said = self.named.get(name)
        if said is not None:
            return said if said in self.category else None
        if name in self.category:
            return name
        return self._folded.get(fold(name)) or self._folded.get(fold(_RELEASE.sub("", name)))

    def prefix(self, name: str) -> str:
        """The study's prefix, or for other systems the name with every sign that a prefix cannot have replaced."""
        known = self.resolve(name)
        if known is not None:
            return known
        plain = re.sub(r"[^A-Za-z0-9_.-]", "_", self.named.get(name, name))[:32]
        return plain if PREFIX.fullmatch(plain) else f"X{plain}"[:32]

    @property
    def _folded(self) -> dict[str, str]:
        found = {}
        for prefix in self.category:
            own = fold(prefix)
            for group in [{own}, *(g for g in _SAME if own in g)]:
                found.update(dict.fromkeys(group, prefix))
        return found


def fold(name: str) -> str:
    """Small letters and digits of a name."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def is_icd(prefix: str) -> bool:
    """Whether a system writes diagnoses as ICD-9-CM or ICD-10 do: with or without a dot, meaning the same."""
    name = fold(prefix)
    return name in _ICD | {"icd9cm", "icd10cm", "icd9dx", "icd9cmdx", "icd10dx"}


def dotted(prefix: str, code: str) -> str:
    """An ICD diagnosis with its dot: 25000 -> 250.00, E8120 -> E812.0 (ICD-9), E119 -> E11.9 (ICD-10)."""
    plain = code.replace(".", "").upper()
    at = 4 if fold(prefix).startswith("icd9") and plain.startswith("E") else 3
    return f"{plain[:at]}.{plain[at:]}" if len(plain) > at else plain


def canonical(curie: str) -> str:
    """The spelling under which knowledge files and releases meet: ICD codes have their dot."""
    prefix, code = split_curie(curie)
    return f"{prefix}:{dotted(prefix, code)}" if is_icd(prefix) else curie


def curies(names: pa.Array, codes: pa.Array, systems: Systems) -> pa.Array:
    """CURIEs of whole columns; null where a code is empty, overlong or holds a control character.

    Args:
        names: (n,) strings, a file's names of systems.
        codes: (n,) strings.
        systems: the study's.
    """
    encoded = names.dictionary_encode() if not pa.types.is_dictionary(names.type) else names
    known = encoded.dictionary.to_pylist()
    prefixes = [systems.prefix(name) if name else "" for name in known]
    clean = pc.utf8_trim_whitespace(pc.utf8_normalize(codes, form="NFC"))
    good = pc.and_(pc.utf8_is_printable(clean), pc.less_equal(pc.utf8_length(clean), MAX_CODE_LENGTH))
    good = pc.and_(
        pc.and_(good, pc.greater(pc.utf8_length(clean), 0)), pc.not_equal(names.cast("string"), "")
    )
    for number, prefix in enumerate(prefixes):
        if prefix and is_icd(prefix):
            here = pc.equal(encoded.indices, number)
            clean = pc.if_else(here, _dotted_column(prefix, clean), clean)
    prefix_column = pa.array(prefixes, pa.string()).take(encoded.indices)
    joined = pc.binary_join_element_wise(prefix_column, clean, ":")
    return pc.if_else(good, joined, pa.scalar(None, pa.string()))


def _dotted_column(prefix: str, codes: pa.Array) -> pa.Array:
    """`dotted` of a column."""
    plain = pc.utf8_upper(pc.replace_substring(codes, ".", ""))

    def at(place: int) -> pa.Array:
        tail = pc.utf8_slice_codeunits(plain, place)
        whole = pc.binary_join_element_wise(pc.utf8_slice_codeunits(plain, 0, place), tail, ".")
        return pc.if_else(pc.greater(pc.utf8_length(tail), 0), whole, plain)

    if not fold(prefix).startswith("icd9"):
        return at(3)
    return pc.if_else(pc.starts_with(plain, "E"), at(4), at(3))
