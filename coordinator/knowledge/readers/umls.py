"""UMLS Metathesaurus: MRCONSO and MRREL, for users who hold its licence."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from coordinator.knowledge.assertions import IS_A, RAW, RELATED, SAME_AS, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.readers.functional import UMLS_KINDS
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import batches
from protocol.errors import DataError

_MRCONSO: Final = tuple(
    "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF END".split()  # noqa: SIM905
)
_MRREL: Final = tuple(
    "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF END".split()  # noqa: SIM905
)
_BARS: Final = {"delimiter": "|", "quote": ""}
SUPPRESSED: Final = "suppressed"
WIDE: Final = "a concept with too many codes"


class Umls(Source):
    """Codes of one concept are same-as, PAR is is-a between codes, and functional RELA are related.

    RELA joins concepts: every code of one with every code of the other. Concepts with more than `most_codes` codes of
    the study take part in the hierarchy only.

    Source: UMLS Reference Manual, chapter 3 (Rich Release Format).
    """

    licence: ClassVar[str] = "UMLS Metathesaurus License Agreement, and those of its source vocabularies"
    kind: Literal["umls"]
    through: tuple[str, ...] = Field((), description="More SABs whose codes are ancestors, as ATC.")
    related: dict[str, str] = Field(default_factory=dict, description="More RELA -> kinds of relatedness.")
    most_codes: int = Field(
        20, ge=1, description="Codes of one concept, above which it is taken as too vague."
    )
    shared_depth: int = Field(
        2, ge=0, description="Kinship counts through ancestors at least this many steps below a root."
    )

    def files(self) -> tuple[Path, ...]:
        """See `Source.files`."""
        return (self.path / "MRCONSO.RRF", self.path / "MRREL.RRF")

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        conso, rel = self.files()
        atoms = self._atoms(conso, systems, skipped)
        codes = atoms.select(["CUI", "SAB", "CODE"]).group_by(["CUI", "SAB", "CODE"]).aggregate([])
        size = codes.group_by("CUI").aggregate([("CODE", "count")])
        wide = size.filter(pc.greater(size["CODE_count"], self.most_codes))["CUI"].combine_chunks()
        skipped[WIDE] += len(wide)
        narrow = codes.filter(pc.invert(pc.is_in(codes["CUI"], wide)))
        parents, functions = self._relations(rel, atoms, skipped)
        return pa.concat_tables([RAW.empty_table(), _same(narrow), parents, _between(narrow, functions)]), ""

    def _atoms(self, path: Path, systems: Systems, skipped: Counter[str]) -> pa.Table:
        found, wanted = [], set(self.through)
        for batch in batches(
            path, ["CUI", "AUI", "SAB", "CODE", "SUPPRESS"], skipped, **_BARS, header=_MRCONSO
        ):
            sabs = [
                s
                for s in pc.unique(batch["SAB"]).to_pylist()
                if s in wanted or systems.resolve(s) is not None
            ]
            piece = batch.filter(pc.is_in(batch["SAB"], pa.array(sabs, pa.string())))
            piece = piece.filter(pc.not_equal(piece["CODE"], "NOCODE"))
            shown = pc.equal(piece["SUPPRESS"], "N")
            skipped[SUPPRESSED] += piece.num_rows - int(pc.sum(shown).as_py() or 0)
            found.append(piece.filter(shown))
        atoms = pa.Table.from_batches(found).combine_chunks() if found else None
        if atoms is None or not atoms.num_rows:
            raise DataError(
                f"The Metathesaurus in {path.parent} holds no code of the study's code systems",
                why=f"the study has {', '.join(sorted(systems.category))}",
                do="Choose these source vocabularies in MetamorphoSys, or name their SAB in the source's systems",
            )
        return atoms

    def _relations(self, path: Path, atoms: pa.Table, skipped: Counter[str]) -> tuple[pa.Table, pa.Table]:
        """is-a rows of `RAW`, and pairs of concepts with their kind."""
        kinds = UMLS_KINDS | self.related
        names, values = pa.array(list(kinds), pa.string()), pa.array(list(kinds.values()), pa.string())
        ids, sabs, codes = (atoms[name].combine_chunks() for name in ("AUI", "SAB", "CODE"))
        parents, functions = [RAW.empty_table()], [_FUNCTIONS.empty_table()]
        columns = ["CUI1", "AUI1", "REL", "CUI2", "AUI2", "RELA", "SUPPRESS"]
        for batch in batches(path, columns, skipped, **_BARS, header=_MRREL):
            shown = pc.equal(batch["SUPPRESS"], "N")
            skipped[SUPPRESSED] += batch.num_rows - int(pc.sum(shown).as_py() or 0)
            piece = batch.filter(shown)
            # REL is how the second stands to the first: PAR, the second is the parent.
            up = piece.filter(pc.equal(piece["REL"], "PAR"))
            child, parent = (pc.index_in(up[name], ids) for name in ("AUI1", "AUI2"))
            both = pc.and_(pc.is_valid(child), pc.is_valid(parent))
            child, parent = child.filter(both), parent.filter(both)
            parents.append(
                raw_table(
                    system_1=sabs.take(child),
                    code_1=codes.take(child),
                    system_2=sabs.take(parent),
                    code_2=codes.take(parent),
                    relation=IS_A,
                )
            )
            told = piece.filter(pc.is_in(piece["RELA"], names))
            kind = values.take(pc.index_in(told["RELA"], names))
            functions.append(pa.table([told["CUI1"], told["CUI2"], kind], schema=_FUNCTIONS))
        return pa.concat_tables(parents), pa.concat_tables(functions)


_FUNCTIONS: Final = pa.schema([("CUI1", pa.string()), ("CUI2", pa.string()), ("kind", pa.string())])


def _same(codes: pa.Table) -> pa.Table:
    """Each two codes of one concept, once."""
    pairs = codes.join(codes, "CUI", join_type="inner", right_suffix="_2")
    one, other = (pc.binary_join_element_wise(pairs["SAB" + s], pairs["CODE" + s], "|") for s in ("", "_2"))
    pairs = pairs.filter(pc.less(one, other))
    return raw_table(
        system_1=pairs["SAB"],
        code_1=pairs["CODE"],
        system_2=pairs["SAB_2"],
        code_2=pairs["CODE_2"],
        relation=SAME_AS,
    )


def _between(codes: pa.Table, functions: pa.Table) -> pa.Table:
    """Each code of one concept with each of the other."""
    single = functions.group_by(["CUI1", "CUI2", "kind"]).aggregate([])
    first = single.join(codes, "CUI1", "CUI", join_type="inner")
    both = first.join(codes, "CUI2", "CUI", join_type="inner", right_suffix="_2")
    return raw_table(
        system_1=both["SAB"],
        code_1=both["CODE"],
        system_2=both["SAB_2"],
        code_2=both["CODE_2"],
        relation=pc.binary_join_element_wise(RELATED, both["kind"], ""),
    )
