"""What a release calls its codes: the coordinator's titles, else the names that sites released."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coordinator.knowledge.systems import canonical
from protocol.release import VerifiedRelease
from protocol.study import StudySpec

_TURNS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_BREAKS: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, eq=False)
class Naming:
    """Names and categories of codes.

    Attributes:
        names: CURIE -> name, one line each.
        categories: prefix of a code system -> its category in the study.
    """

    names: Mapping[str, str]
    categories: Mapping[str, str]

    def name(self, code: str) -> str:
        """What a CURIE is called; "" where nobody said."""
        return self.names.get(code, "")

    def category(self, code: str) -> str:
        """The category of its code system."""
        return self.categories[code.partition(":")[0]]


def naming_of(study: StudySpec, names: Mapping[str, str]) -> Naming:
    """Names with the study's categories beside them."""
    return Naming(names, {system.prefix: system.category for system in study.code_systems})


def name_codes(
    releases: Sequence[VerifiedRelease], study: StudySpec, titles: Mapping[str, str]
) -> dict[str, str]:
    """CURIE -> name for the codes of the releases, and for those that they are anchored to.

    A title goes before any site's name. Of different names that sites released for a code the most frequent one is taken,
    of equally frequent ones the first in sort order. Sites release none unless the study's `privacy.names` is set.

    Args:
        releases: of the round.
        study: of the round.
        titles: CURIE -> title, in either spelling of ICD.
    """
    known = {canonical(code): one_line(title) for code, title in titles.items()}
    said: dict[str, Counter[str]] = defaultdict(Counter)
    wanted = {anchor.standard for release in releases for anchor in release.manifest.anchors}
    for release in releases:
        wanted.update(release.manifest.codes)
        if study.privacy.names:
            # A release without descriptions has an empty list of them.
            named = zip(release.manifest.codes, release.manifest.descriptions, strict=False)
            for code, text in named:
                said[code][one_line(text)] += 1
    found = {}
    for code in sorted(wanted):
        own = [(-count, name) for name, count in said[code].items() if name] if code in said else []
        name = known.get(canonical(code)) or (min(own)[1] if own else "")
        if name:
            found[code] = name
    return found


def one_line(text: str) -> str:
    """Without line breaks and control characters, and without marks that turn the direction of what follows."""
    plain = "".join(" " if unicodedata.category(c) in _BREAKS else c for c in text if c not in _TURNS)
    return " ".join(plain.split())
