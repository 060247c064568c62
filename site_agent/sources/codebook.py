"""The code book: from the texts of codes and systems to CURIEs, their numbers and their descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from protocol.errors import DataError
from protocol.vocabulary import MAX_CODE_LENGTH, PREFIX, curie
from site_agent.sections import Data
from site_agent.sources import Description
from site_agent.sources.columns import Flags, Int32s, Int64s, distinct, is_missing, optional

MAX_CODES = 2_000_000
"""More distinct codes than any hospital has: the column holds free text, and its code book would fill the memory."""

# Marks in place of a slot.
NO_CODE, NO_SYSTEM, TOO_LONG, CONTROL, _UNSEEN = (int(np.iinfo(np.int32).min) + i for i in range(5))
_TABLE_CELLS = 1 << 24  # pairs of distinct system and code up to which a table of them beats sorting the rows


@dataclass(frozen=True)
class CodeBook:
    """What the codes of all `CodedRows` mean.

    Attributes:
        codes: CURIEs that have events, in order of text.
        position: (k,) int32, for each code number in order of first sight its row of `codes`; -1 where no event has it.
        descriptions: CURIE -> its smallest text from a public terminology, else its smallest.
        skipped: reason -> rows left out, those of the source included.
    """

    codes: tuple[str, ...]
    position: Int32s
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]


class GrowingCodeBook:
    """The code book while it grows.

    A slot stands for one CURIE as the data have it, a code number for one that is counted; they differ after roll-up.
    """

    def __init__(self, data: Data, rollup: Mapping[str, tuple[str, ...]] | None) -> None:
        self._data, self._rollup = data, rollup
        # system -> code -> slot, both as the data write them
        self._seen: dict[str | None, dict[str | None, int]] = {}
        self._slot: dict[str, int] = {}  # CURIE -> slot
        self._names: list[str] = []  # slot -> CURIE
        self._number: dict[str, int] = {}  # CURIE -> code number
        self._targets: list[tuple[int, ...]] = []  # slot -> code numbers
        self._descriptions: dict[str, Description] = {}
        self._used = np.zeros(0, dtype=bool)  # code number -> whether a usable row has it

    def slots(self, codes: pa.ChunkedArray, systems: pa.ChunkedArray | None) -> Int32s:
        """(n,) the slot of each row, or the mark of what is wrong with it."""
        texts, index = distinct(codes)
        names: list[Any] = [None]
        pair = index
        if systems is not None:
            raw, which = distinct(systems)
            # A column made from another one's dictionary repeats its few values.
            order = {name: i for i, name in enumerate(dict.fromkeys(raw))}
            names = list(order)
            which = np.array([order[name] for name in raw], dtype=np.int64)[which]
            pair = which * len(texts) + index
        cells = len(names) * len(texts)
        if cells <= _TABLE_CELLS:
            present = np.zeros(cells, dtype=bool)
            present[pair] = True
            keys = np.flatnonzero(present)
            table: Int32s = np.empty(cells, dtype=np.int32)
            table[keys] = self._resolve(texts, names, keys)
        else:
            keys, pair = np.unique(pair, return_inverse=True)
            table = self._resolve(texts, names, keys)
        found: Int32s = table[pair]
        return found

    def _resolve(
        self, texts: npt.NDArray[Any], names: list[Any], keys: npt.NDArray[np.integer[Any]]
    ) -> Int32s:
        """Slots of ascending pairs (system, code), each given as system * len(texts) + code."""
        found = np.empty(len(keys), dtype=np.int32)
        bounds = np.searchsorted(keys, np.arange(len(names) + 1) * len(texts))
        for s, system in enumerate(names):
            here = slice(bounds[s], bounds[s + 1])
            wanted = texts[keys[here] - s * len(texts)]
            seen = self._seen.setdefault(system, {})
            slots = np.fromiter(map(seen.get, wanted, repeat(_UNSEEN)), dtype=np.int32, count=len(wanted))
            for i in np.flatnonzero(slots == _UNSEEN):
                slots[i] = self._new(system, wanted[i])
                if slots[i] >= 0:  # others may be any number of texts
                    seen[wanted[i]] = int(slots[i])
            found[here] = slots
        return found

    def _new(self, system: str | None, code: str | None) -> int:
        if code is None or is_missing(code):
            return NO_CODE
        if system is None or is_missing(system):
            prefix = self._data.system
        else:
            system = system.strip()
            prefix = self._data.systems.get(system, system)
            if not PREFIX.fullmatch(prefix):
                return NO_SYSTEM
        try:
            name = curie(prefix, code)
        except DataError:
            return TOO_LONG if len(code.strip()) > MAX_CODE_LENGTH else CONTROL
        if name not in self._slot:
            self._add(name)
        return self._slot[name]

    def _add(self, name: str) -> None:
        targets: tuple[str, ...] = (name,)
        if self._rollup is not None:
            targets = self._rollup.get(name) or (targets if self._data.rollup.unmapped == "keep" else ())
        self._slot[name] = len(self._names)
        self._names.append(name)
        self._targets.append(
            tuple(self._number.setdefault(t, len(self._number)) for t in dict.fromkeys(targets))
        )
        if len(self._names) > MAX_CODES:
            raise DataError(
                f"The data have more than {MAX_CODES:,} distinct codes",
                why=f"one of them is {name[:60]!r}",
                do="Check that the code column does not hold free text, numbers or identifiers",
            )

    def describe(self, batch: pa.Table, keep: Flags | None, slot: Int32s) -> None:
        """Keep of each code its smallest text from a public terminology, else its smallest: the order of rows says nothing."""
        column = optional(batch, "description")
        if column is None or not len(slot):
            return
        flags = optional(batch, "public")
        local = (
            np.ones(len(column), bool)
            if flags is None
            else ~flags.fill_null(False).to_numpy(zero_copy_only=False)
        )
        texts, index = distinct(column)
        if keep is not None:
            local, index = local[keep], index[keep]
        key = (slot.astype(np.int64) * len(texts) + index) * 2 + local
        for found in np.unique(key).tolist():
            pair, is_local = divmod(found, 2)
            code, text = self._names[pair // len(texts)], texts[pair % len(texts)]
            if text is None or is_missing(text):
                continue
            known = self._descriptions.get(code)
            if known is None or (is_local, text) < (not known.public, known.text):
                self._descriptions[code] = Description(text, public=not is_local)

    def rolled_up(self, slot: Int32s) -> tuple[Int32s, Int64s | None]:
        """(m,) code numbers, and the row that each comes from; None where rows and events are the same."""
        source_row = None
        if self._rollup is not None:
            count = np.fromiter(map(len, self._targets), dtype=np.int64, count=len(self._targets))
            flat = np.fromiter((t for ts in self._targets for t in ts), dtype=np.int32)
            start = np.cumsum(count) - count
            n = count[slot]
            source_row = np.repeat(np.arange(len(slot)), n)
            within = np.arange(len(source_row)) - np.repeat(np.cumsum(n) - n, n)
            slot = flat[start[slot[source_row]] + within]
        self._used = _grown(self._used, len(self._number), fill=False)
        self._used[slot] = True
        return slot, source_row

    def unmapped(self, slot: Int32s) -> int:
        """Rows whose code has no target."""
        if self._rollup is None:
            return 0
        none = np.array([not targets for targets in self._targets], dtype=bool)
        return int(np.count_nonzero(none[slot]))

    def finish(self) -> tuple[tuple[str, ...], Int32s, dict[str, Description]]:
        """CURIEs in order of text, their row for each code number, and their descriptions."""
        used = [name for name, number in self._number.items() if self._used[number]]
        codes = tuple(sorted(used))
        position = np.full(len(self._number), -1, dtype=np.int32)
        position[[self._number[name] for name in codes]] = np.arange(len(codes), dtype=np.int32)
        return codes, position, {c: self._descriptions[c] for c in codes if c in self._descriptions}


def _grown(array: npt.NDArray[Any], size: int, fill: Any) -> npt.NDArray[Any]:
    if size <= len(array):
        return array
    return np.concatenate([array, np.full(size - len(array), fill, dtype=array.dtype)])
