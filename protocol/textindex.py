"""Codes found by what people type: a code, the beginning of one, words of a name, or a name of a synonym."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Where = Literal["code", "name", "synonym"]
_Rows: TypeAlias = npt.NDArray[np.int32]
_Scores: TypeAlias = npt.NDArray[np.float32]

_WORD = re.compile(r"[^\W_]+")
_SPEAKING = re.compile(r"[^\W\d_]{3}")
_MAX_TEXT, _MAX_QUERY, _MAX_WORDS, _MAX_WORD = 1_000, 500, 16, 64
_LAST = "\U0010ffff"

_SAME_CODE, _CODE, _NAME, _WORDS, _SYNONYM = 0.98, 0.9, 0.89, 0.8, 0.6
_BEGINS, _RESEMBLES = 0.8, 0.7
_LEAST_SHARE = 0.5
_LEAST_DICE, _MOST_ALIKE = 0.3, 24


class Labelled(Protocol):
    """What is indexed of a code: its CURIE, its name, its cluster, and the standard code that it is mapped to."""

    @property
    def code(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def cluster(self) -> int: ...  # noqa: D102
    @property
    def standard_code(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Found:
    """A code that a text finds.

    Attributes:
        code: the CURIE.
        name: its own; "" if none was released.
        score: in (0, 1], for the order only.
        where: what the text was found in; "synonym": in the name of the code's standard code, or of one of its cluster.
        by: that other code; "" otherwise.
    """

    code: str
    name: str
    score: float
    where: Where
    by: str = ""


class TextIndex:
    """Codes and their names, in order of n rows. Safe for threads: `find` changes nothing.

    Nothing minds case, accents or signs; codes are found with and without prefix and dots. Scores:

        1               the code as it is written; .98 but for case and signs
        .9 to .98       codes that begin with the text, the shortest first
        .89             a whole name
        up to .8        words of a name, see `_Words.score`; of a local code that is made of words, .9 of that
        .6 s            codes whose standard code's name, or whose cluster's best name, scores s

    Args:
        codes: n CURIEs.
        names: n names; "" where there is none. The first thousand characters count.
        clusters: n numbers.
        standard: n CURIEs that the codes are mapped to; "" where there is none.
    """

    def __init__(
        self, codes: Sequence[str], names: Sequence[str], clusters: Sequence[int], standard: Sequence[str]
    ) -> None:
        self.codes, self.names = tuple(codes), tuple(names)
        self._row = {code: row for row, code in enumerate(self.codes)}
        self._standard = np.array([self._row.get(s, r) for r, s in enumerate(standard)], dtype=np.int32)
        split = [code.partition(":") for code in self.codes]
        self._prefixes = sorted({prefix for prefix, _, _ in split})
        number = {prefix: i for i, prefix in enumerate(self._prefixes)}
        self._system = np.array([number[prefix] for prefix, _, _ in split], dtype=np.int32)
        _, cluster = np.unique(np.asarray(clusters, dtype=np.int64), return_inverse=True)
        self._cluster: _Rows = cluster.astype(np.int32)
        self._members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
        self._by_curie = _Sorted([_plain(code) for code in self.codes])
        self._by_local = _Sorted([_plain(local) for _, _, local in split])
        self._by_name = _Sorted([" ".join(_words(name)) for name in self.names])
        self._name_words = _Words(self.names)
        # Codes such as E11.9 are found as codes; words of theirs would only be found by mistake.
        self._code_words = _Words([local if _SPEAKING.search(local) else "" for _, _, local in split])

    @classmethod
    def build(cls, entries: Iterable[Labelled]) -> TextIndex:
        """The index of a map; seconds for a hundred thousand codes."""
        entries = list(entries)
        return cls(
            [e.code for e in entries],
            [e.name for e in entries],
            [e.cluster for e in entries],
            [e.standard_code for e in entries],
        )

    def name(self, code: str) -> str:
        """The name of a CURIE; "" if it has none, or is not in the release."""
        row = self._row.get(code)
        return "" if row is None else self.names[row]

    def find(self, text: str, k: int = 20, *, systems: Collection[str] = frozenset()) -> list[Found]:
        """The k codes that a text finds best; of equals, the first row.

        Args:
            text: anything. The first 500 characters and 16 words count.
            k: how many.
            systems: prefixes to which codes are limited; all if empty.
        """
        text = text[:_MAX_QUERY]
        words = self._to_look_for(text)
        by_name = self._name_words.score(words)
        by_name[self._by_name.equal(" ".join(_words(text)))] = _NAME
        by_code = 0.9 * self._code_words.score(words)
        self._score_codes(text, by_code)
        by_synonym = self._score_synonyms(by_name)
        score = np.maximum(np.maximum(by_name, by_code), by_synonym)
        if systems:
            allowed = [i for i, prefix in enumerate(self._prefixes) if prefix in systems]
            score[~np.isin(self._system, allowed)] = 0.0
        found = []
        for row in _best(score, k):
            # Of equal scores the plainer one is told.
            kinds: dict[Where, _Scores] = {"code": by_code, "name": by_name, "synonym": by_synonym}
            where = next(kind for kind, scores in kinds.items() if scores[row] == score[row])
            by = self.codes[self._synonym_of(row, by_name)] if where == "synonym" else ""
            found.append(Found(self.codes[row], self.names[row], round(float(score[row]), 6), where, by))
        return found

    def _to_look_for(self, text: str) -> list[str]:
        """Words of a text, but not the pieces of codes: nobody who types E11.9 wants each name with a 9."""
        found: list[str] = []
        for typed in text.split():
            words = _words(typed)
            is_code = len(words) > 1 and any(c.isdigit() for c in typed)
            if not is_code or all(map(self._name_words.begins, words)):
                found += words
        return list(dict.fromkeys(found))[:_MAX_WORDS]

    def _score_codes(self, text: str, score: _Scores) -> None:
        plain, written = _plain(text), text.strip()
        for keys in (self._by_local, self._by_curie):
            rows, lengths = keys.beginning(plain)
            score[rows] = np.maximum(score[rows], _CODE + (_SAME_CODE - _CODE) * len(plain) / lengths)
        for row in (*self._by_local.equal(plain), *self._by_curie.equal(plain)):
            if written in {self.codes[row], self.codes[row].partition(":")[2]}:
                score[row] = 1.0

    def _score_synonyms(self, by_name: _Scores) -> _Scores:
        best = np.zeros(len(self._members), dtype=np.float32)
        hit = np.flatnonzero(by_name > 0)
        np.maximum.at(best, self._cluster[hit], by_name[hit])
        return np.asarray(
            _SYNONYM * np.maximum(best[self._cluster], by_name[self._standard]), dtype=np.float32
        )

    def _synonym_of(self, row: int, by_name: _Scores) -> int:
        members = np.append(self._standard[row], self._members[self._cluster[row]])
        return int(members[np.argmax(by_name[members])])


class _Sorted:
    """Keys in order, to be asked for those that equal or begin with a text."""

    def __init__(self, keys: Sequence[str]) -> None:
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._keys = [keys[row] for row in order]
        self._rows = np.array(order, dtype=np.int32)
        self._lengths = np.array([len(key) for key in self._keys], dtype=np.float32)

    def equal(self, text: str) -> _Rows:
        low = bisect_left(self._keys, text)
        return self._rows[low : bisect_left(self._keys, text + "\0", low)] if text else self._rows[:0]

    def beginning(self, text: str) -> tuple[_Rows, _Scores]:
        """Rows, and the lengths of their keys."""
        low = bisect_left(self._keys, text)
        here = slice(low, bisect_left(self._keys, text + _LAST, low) if text else low)
        return self._rows[here], self._lengths[here]


class _Words:
    """An inverted index of n texts: sorted words, their rows one after another, and the words' own trigrams."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = [set(_words(text)) for text in texts]
        self._length = np.array([max(len(w), 1) for w in words], dtype=np.float32)
        self._words, self._rows, self._starts = _invert(words)
        grams = [_trigrams(word) for word in self._words]
        trigrams, self._gram_words, self._gram_starts = _invert(grams)
        self._gram = {gram: place for place, gram in enumerate(trigrams)}
        self._n_grams = np.array([len(g) for g in grams], dtype=np.float32)

    def score(self, typed: Sequence[str]) -> _Scores:
        """How well each text holds the typed words, 0 to .8.

        .8 (sum_w weight(w) quality(w) / sum_w weight(w)) (.75 + .25 share), where share is that of the text's words which
        were typed, weight(w) = log(1 + n / texts with w), and quality is 1 for the word itself, .8 for the beginning of a
        word, and .7 for each edit of a word that resembles it: one edit from 4 letters on, two from 8 on, among the words
        that share most trigrams with it. Such are looked for where no word is or begins with w, and for all w where no
        text has them all. A text of less than half the weight that any text has scores 0.
        """
        if not self._words or not typed:
            return np.zeros(len(self._length), np.float32)
        share, count = self._held(typed, everywhere=False)
        if share.max(initial=0.0) < _BEGINS:
            share, count = self._held(typed, everywhere=True)
        return np.asarray(
            _WORDS * share * (0.75 + 0.25 * np.minimum(count / self._length, 1.0)), dtype=np.float32
        )

    def begins(self, word: str) -> bool:
        """Whether a word of the texts is, or begins with, this one."""
        low, high = self._places(word)
        return low < high

    def _held(self, typed: Sequence[str], *, everywhere: bool) -> tuple[_Scores, _Scores]:
        n = len(self._length)
        # By text: sum of weight times quality, the same with quality 1, and the number of words.
        total, most, count = (np.zeros(n, np.float32) for _ in range(3))
        all_weights = known = 0.0
        for word in typed:
            rows, quality = self._quality(word, alike=everywhere)
            weight = float(np.log1p(n / max(len(rows), 1)))
            all_weights, known = all_weights + weight, known + (weight if len(rows) else 0.0)
            total[rows] += weight * quality
            most[rows] += weight
            count[rows] += 1
        total[most < _LEAST_SHARE * known] = 0.0
        return total / max(all_weights, 1e-9), count

    def _places(self, word: str) -> tuple[int, int]:
        low = bisect_left(self._words, word)
        # One letter begins too many words to mean any.
        end = word + (_LAST if len(word) > 1 else "\0")
        return low, bisect_left(self._words, end, low)

    def _quality(self, word: str, *, alike: bool) -> tuple[_Rows, _Scores]:
        """The rows of texts with a word, and how well they hold it."""
        low, high = self._places(word)
        words = dict.fromkeys(range(low, high), _BEGINS)
        if low < high and self._words[low] == word:
            words[low] = 1.0
        if alike or not words:
            words = self._alike(word) | words
        parts = [self._rows[self._starts[place] : self._starts[place + 1]] for place in words]
        if not parts:
            return self._rows[:0], np.empty(0, np.float32)
        rows = np.concatenate(parts)
        quality = np.repeat(np.array(list(words.values()), np.float32), [len(part) for part in parts])
        best = np.zeros(len(self._length), np.float32)
        np.maximum.at(best, rows, quality)
        rows = np.flatnonzero(best > 0).astype(np.int32)
        return rows, best[rows]

    def _alike(self, word: str) -> dict[int, float]:
        """The words that may have been meant, and what they count."""
        allowed = 0 if len(word) < 4 else 1 if len(word) < 8 else 2
        grams = _trigrams(word)
        places = [self._gram[g] for g in grams if g in self._gram]
        if not places or not allowed:
            return {}
        parts = [self._gram_words[self._gram_starts[p] : self._gram_starts[p + 1]] for p in places]
        shared = np.bincount(np.concatenate(parts), minlength=len(self._words))
        dice = np.asarray(2.0 * shared / (self._n_grams + len(grams)), dtype=np.float32)
        dice[dice < _LEAST_DICE] = 0.0
        edits = {place: _edits(word, self._words[place]) for place in _best(dice, _MOST_ALIKE)}
        return {place: _RESEMBLES**count for place, count in edits.items() if count <= allowed}


def _invert(sets: Iterable[Collection[str]]) -> tuple[list[str], _Rows, npt.NDArray[np.int64]]:
    """Members in order; the numbers of the sets that hold each, one after another; where each begins, and the end."""
    held: dict[str, list[int]] = {}
    for number, members in enumerate(sets):
        for member in members:
            held.setdefault(member, []).append(number)
    ordered = sorted(held)
    starts = np.cumsum([0, *(len(held[m]) for m in ordered)])
    rows = np.fromiter((row for m in ordered for row in held[m]), dtype=np.int32, count=int(starts[-1]))
    return ordered, rows, starts


def _words(text: str) -> list[str]:
    text = text[:_MAX_TEXT]
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return [word[:_MAX_WORD] for word in _WORD.findall(text.casefold())]


def _plain(code: str) -> str:
    return "".join(_words(code))


def _trigrams(word: str) -> set[str]:
    padded = f"  {word} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def _edits(a: str, b: str) -> int:
    """Letters to insert, leave out, exchange or swap with the next, to make one word of the other."""
    before, last = list[int](), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]


def _best(score: _Scores, k: int) -> list[int]:
    """The places of the k largest positive scores, best first; of equals the first ones."""
    places = np.flatnonzero(score > 0)
    if k < 1:
        return []
    if len(places) > k:
        least = np.partition(score[places], len(places) - k)[len(places) - k]
        places = places[score[places] >= least]
    return [int(p) for p in places[np.argsort(-score[places], kind="stable")][:k]]
