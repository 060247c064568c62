"""From the rows of event tables to events: codes with their systems and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from site_agent.sources import Reading
from site_agent.sources.tablemap import CodeColumn, Only

Coded: TypeAlias = tuple[pa.Array, pa.Array, pa.Array, pa.Array]
"""code, system, description (null where there is none) and public, each (n,)."""


class Decoder:
    """Says what the values of one code column mean.

    Args:
        code: the column.
        known: its lookup table's rows as key, description and, unless the key is the code, code and system; keys are
            unique. None without a lookup.
    """

    def __init__(self, code: CodeColumn, known: pa.Table | None) -> None:
        self._code, self._known = code, known

    def decode(self, values: pa.ChunkedArray, signs: pa.ChunkedArray | None) -> Coded:
        """The events of (n,) values, with (n,) signs of their code systems if the column has such.

        A value that the lookup table lacks has no text, nor a code unless it is the code.
        """
        code = values.combine_chunks()
        system = description = pa.nulls(len(code), pa.string())
        if self._known is not None:
            at = pc.index_in(code, value_set=self._known["key"].combine_chunks())
            description = self._known["description"].combine_chunks().take(at)
            if "code" in self._known.column_names:
                code = self._known["code"].combine_chunks().take(at)
                system = self._known["system"].combine_chunks().take(at)
        if self._code.split:
            system, code = _split(code)
        elif self._code.system:
            system = pa.repeat(self._code.system, len(code))
        elif signs is not None:
            system = self._named(signs.combine_chunks(), code)
        public = self._code.lookup is not None and self._code.lookup.public
        return code, system, description, pa.repeat(public, len(code))

    def _named(self, signs: pa.Array, codes: pa.Array) -> pa.Array:
        signs = pc.utf8_trim_whitespace(signs)
        upper = pc.utf8_upper(signs)
        names = self._code.systems
        at = pc.index_in(upper, value_set=pa.array(list(names), pa.string()))
        prefix = pa.array([p or None for p in names.values()], pa.string()).take(at)
        system = pc.if_else(pc.is_valid(at), prefix, signs)
        for sign, pattern, other in self._code.alike:
            alike = pc.and_(
                pc.equal(upper, sign), pc.match_substring_regex(codes, f"^\\s*(?:{pattern})\\s*$")
            )
            system = pc.if_else(pc.fill_null(alike, False), other, system)
        return system


def events_of(raw: pa.Table, decoders: Sequence[Decoder]) -> pa.Table:
    """Raw rows of the interface of sources, with the first code that each holds.

    Args:
        raw: patient, date; for each decoder code<i> and, if the column has signs of systems, system<i>.
        decoders: one for each code column, in order; at least one.
    """
    found = [
        decoder.decode(raw[f"code{i}"], raw[f"system{i}"] if f"system{i}" in raw.column_names else None)
        for i, decoder in enumerate(decoders)
    ]
    chosen = found[0]
    for other in found[1:]:
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(chosen[0]), ""), True)
        code, system, description, public = (
            pc.if_else(empty, new, old) for new, old in zip(other, chosen, strict=True)
        )
        chosen = code, system, description, public
    names = ("patient", "date", "code", "system", "description", "public")
    return pa.table([raw["patient"], raw["date"], *chosen], names=list(names))


def only_events(raw: pa.Table, only: Only | None, reading: Reading) -> pa.Table:
    """The rows that are events by themselves; the others are counted. A row whose column `only` is null is kept."""
    if only is None:
        return raw
    kept = raw.filter(pc.fill_null(pc.equal(pc.utf8_trim_whitespace(raw["only"]), only.value), True))
    reading.skip(only.reason, len(raw) - len(kept))
    return kept


def _split(codes: pa.Array) -> tuple[pa.Array, pa.Array]:
    """PREFIX and code; a code without a colon has no prefix."""
    encoded = codes.dictionary_encode()
    parts = pc.extract_regex(encoded.dictionary, r"(?s)^(?P<system>[^:]*):(?P<code>.*)$")
    system, code = parts.field("system"), parts.field("code")
    whole = parts.is_null()
    system = pc.if_else(whole, None, system)
    code = pc.if_else(whole, encoded.dictionary, code)
    return system.take(encoded.indices), code.take(encoded.indices)
