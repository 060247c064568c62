"""Which descriptions of released codes may leave, where the study and the site release any.

A site's own texts may hold anything: a physician's name, a room, a telephone number. A description leaves only if it is a
term of a public terminology, or each of its words occurs in one. Any other is withheld whole, and a person decides in
`names-to-review.csv` in the home folder.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import DataError
from protocol.files import write_atomic
from protocol.messages import MAX_NAME_LENGTH
from protocol.study import StudySpec
from site_agent.config import Home
from site_agent.sources import Description

REVIEW = "names-to-review.csv"
_COLUMNS = ("code", "description", "unknown", "decision")
_DECISIONS = {"yes": True, "no": False, "": None}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")
_BETWEEN = re.compile(r"[\s()\[\]{}<>,;:/\\.'\"`´’‘“”*+&|!?–—-]+")
# Never public, whatever list they stand in: addresses, days, and digits enough to call or to identify someone.
_IDENTIFYING = re.compile(
    r"\w@\w|www\.|https?:|\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|(?:\d[ ()/.+-]*){5,}", re.IGNORECASE
)


@dataclass(frozen=True)
class Vocabulary:
    """What public terminologies say.

    Attributes:
        terms: whole texts, as `_plain` writes them.
        words: all words of these texts.
    """

    terms: frozenset[str]
    words: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """The vocabulary of some terms."""
        terms = frozenset(_plain(t) for t in texts)
        return cls(terms, frozenset(w for t in terms for w in _words(t) if _is_word(w)))

    def unknown(self, text: str) -> tuple[str, ...]:
        """Words that keep a description from leaving without a person's yes, in order; none for a public term.

        A word with a digit, and one that looks like an address, is never known by itself.
        """
        plain = _plain(text)
        identifying = tuple(m.group().strip() for m in _IDENTIFYING.finditer(plain))
        if identifying or plain in self.terms:
            return identifying
        return tuple(dict.fromkeys(w for w in _words(plain) if w not in self.words))


@dataclass(frozen=True)
class Names:
    """What happens to the descriptions of the released codes.

    Attributes:
        released: CURIE -> text that leaves.
        withheld: released codes whose description stays here.
        undecided: of these, how many wait for a person in the review file.
    """

    released: Mapping[str, str]
    withheld: int
    undecided: int


NO_NAMES = Names({}, 0, 0)


def choose_names(home: Home, codes: Iterable[str], descriptions: Mapping[str, Description]) -> Names:
    """The descriptions that may leave with these codes; what a person must decide goes to the review file.

    Args:
        home: the site; its study and its own policy must both release names, otherwise there are none.
        codes: the released ones.
        descriptions: CURIE -> text, of all codes of the site.

    Raises:
        DataError: the terminology or the review file cannot be used.
    """
    if not (home.study.privacy.names and home.config.policy.names):
        return NO_NAMES
    return presentable_names(home, codes, descriptions)


def presentable_names(home: Home, codes: Iterable[str], descriptions: Mapping[str, Description]) -> Names:
    """The descriptions that tell nothing but medicine, whether or not anything of them may leave; as `choose_names`.

    Raises:
        DataError: the terminology or the review file cannot be used.
    """
    vocabulary = Vocabulary.of(_public_texts(home, descriptions))
    review = home.folder / REVIEW
    decided = read_review(review)
    released: dict[str, str] = {}
    waiting: dict[str, tuple[str, tuple[str, ...]]] = {}
    withheld = 0
    for code in codes:
        text = _clean(descriptions[code].text) if code in descriptions else ""
        if not text:
            continue
        unknown = vocabulary.unknown(text)
        decision = decided.get((code, text))
        # A no holds for known words too.
        fits = len(text) <= MAX_NAME_LENGTH
        if fits and (decision or (decision is None and not unknown)):
            released[code] = text
            continue
        withheld += 1
        if fits and decision is None:
            waiting[code] = (text, unknown)
    _write_review(review, decided, waiting)
    return Names(released, withheld, len(waiting))


def read_terminology(path: Path) -> list[str]:
    """Terms of a CSV or TSV file with a column `description`, or of a text file with a term a line.

    Raises:
        DataError: no such file, or it is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        head = text.partition("\n")[0]
        for mark in "\t,;":
            if "description" in (h.strip().strip('"').lower() for h in head.split(mark)) and mark in head:
                rows = csv.DictReader(io.StringIO(text), delimiter=mark)
                rows.fieldnames = [h.strip().lower() for h in rows.fieldnames or ()]
                return [row["description"] for row in rows if row["description"]]
    except FileNotFoundError:
        raise DataError(
            f"There is no terminology file {path}", do="Correct data.terminology in site.toml"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"The terminology file {path} cannot be read", why=str(error), do="Write it as UTF-8 text"
        ) from None
    lines = text.splitlines()
    return lines[1:] if head.strip().lower() == "description" else lines


def read_review(path: Path) -> dict[tuple[str, str], bool | None]:
    """Code and description -> a person's yes or no, or None while there is none.

    Raises:
        DataError: not a file as `preview` wrote it; the line is named.
    """
    if not path.exists():
        return {}
    found: dict[tuple[str, str], bool | None] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Spreadsheets of some countries write semicolons.
        mark = ";" if ";" in text.partition("\n")[0] else ","
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True):
            answer = (row["decision"] or "").strip().lower()
            if answer not in _DECISIONS:
                raise _bad_review(path, f"code {row['code']!r} has the decision {answer[:40]!r}")
            key = (_unguarded(row["code"] or ""), _unguarded(row["description"] or ""))
            if found.setdefault(key, _DECISIONS[answer]) != _DECISIONS[answer]:
                raise _bad_review(path, f"code {key[0]!r} has two decisions")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad_review(path, str(error)) from None
    except KeyError as error:
        raise _bad_review(path, f"it has no column {error}") from None
    return found


def _bad_review(path: Path, why: str) -> DataError:
    return DataError(
        f"The review file {path} cannot be used",
        why=why,
        do="Write yes or no into the column decision, or leave it empty; save it as CSV in UTF-8",
    )


def _write_review(
    path: Path,
    decided: Mapping[tuple[str, str], bool | None],
    waiting: Mapping[str, tuple[str, tuple[str, ...]]],
) -> None:
    """What waits first; decisions stay, also of codes that are not released at present."""
    rows = [(code, text, " ".join(unknown), "") for code, (text, unknown) in sorted(waiting.items())]
    rows += [
        (code, text, "", "yes" if answer else "no")
        for (code, text), answer in sorted(decided.items())
        if answer is not None
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([_guarded(cell) for cell in row] for row in rows)
    write_atomic(path, sink.getvalue())


def _public_texts(home: Home, descriptions: Mapping[str, Description]) -> list[str]:
    """Terms of the terminology file, and those of the source that come from a public terminology.

    Codes local to a site are no public terminology, and texts beside a code in FHIR messages may have been typed.
    """
    data = home.config.data
    texts = read_terminology(home.path(data.terminology)) if data.terminology else []
    if data.kind == "fhir":
        return texts
    public = _public_systems(home.study)
    return texts + [
        d.text for code, d in descriptions.items() if d.public and code.partition(":")[0] in public
    ]


def _public_systems(study: StudySpec) -> set[str]:
    return {s.prefix for s in study.code_systems if s.local_to is None}


def _clean(text: str) -> str:
    """One line in NFC, without control and format characters."""
    kept = (c for c in unicodedata.normalize("NFC", text) if c.isspace() or not _is_control(c))
    return " ".join("".join(kept).split())


def _is_control(character: str) -> bool:
    return unicodedata.category(character).startswith("C")


def _plain(text: str) -> str:
    """One spelling for comparison: compatibility forms, case and spaces are levelled."""
    return " ".join(unicodedata.normalize("NFKC", _clean(text)).casefold().split())


def _words(plain: str) -> list[str]:
    return [w for w in _BETWEEN.split(plain) if w]


def _is_word(word: str) -> bool:
    return all(c.isalpha() or unicodedata.category(c).startswith("M") for c in word)


def _guarded(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + cell if cell.startswith(_FORMULA) else cell


def _unguarded(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
