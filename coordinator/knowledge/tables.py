"""Tables of text in files: CSV, Athena's tab-separated files, UMLS's RRF; checked, streamed, cells as they stand."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pacsv

from protocol.errors import DataError

_BLOCK: Final = 1 << 24
OTHER_WIDTH: Final = "another number of cells than the header"

_SIGNS: Final = {",": "commas", "\t": "tabs", "|": "bars", ";": "semicolons"}


def batches(
    path: Path,
    columns: Sequence[str],
    skipped: Counter[str],
    *,
    delimiter: str = ",",
    quote: str = '"',
    header: Sequence[str] | None = None,
    optional: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """The named columns of a table as strings, in pieces of about 16 MB of the file; `.gz` is unpacked.

    Args:
        path: the file, in UTF-8.
        columns: names, whose case does not count.
        skipped: counts the rows that have another number of cells than the header.
        delimiter: between cells.
        quote: around cells that hold the delimiter; empty where the format has none.
        header: the names of all columns, for files without a header line.
        optional: more columns, empty where the file lacks them.

    Raises:
        DataError: no such file, nothing in it, a column is missing, or it is not UTF-8.
    """
    # The first line is read in any case: pyarrow itself would print a traceback for a binary file.
    first = next(text_lines(path), "")
    names = list(header) if header is not None else _header(path, first, delimiter, quote)
    place = {name.casefold(): name for name in names}
    lacking = [c for c in columns if c.casefold() not in place]
    if lacking:
        raise DataError(
            f"The knowledge file {path} has no column {lacking[0]!r}",
            why=f"read with {_SIGNS.get(delimiter, repr(delimiter))} between cells, its first line has {', '.join(names)[:200]}",
            do="Name the right file and delimiter, or the file's own columns in the source's table",
        )
    there = [c for c in (*columns, *optional) if c.casefold() in place]
    wanted = [place[c.casefold()] for c in there]

    before, rows = skipped[OTHER_WIDTH], 0

    def other_width(_row: pacsv.InvalidRow) -> str:
        skipped[OTHER_WIDTH] += 1
        return "skip"

    try:
        with pacsv.open_csv(
            pa.input_stream(str(path), compression="detect"),
            # One thread: the handler counts, and pieces come in the file's order.
            pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK, column_names=names, skip_rows=int(header is None)
            ),
            pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char=quote or False,
                newlines_in_values=False,
                invalid_row_handler=other_width,
            ),
            pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                include_columns=list(dict.fromkeys(wanted)),
                strings_can_be_null=False,
            ),
        ) as reader:
            for batch in reader:
                rows += batch.num_rows
                found = {c: batch.column(name) for c, name in zip(there, wanted, strict=True)}
                for name in optional:
                    found.setdefault(name, pa.array([""] * batch.num_rows, pa.string()))
                yield pa.RecordBatch.from_pydict(found)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    if not rows and skipped[OTHER_WIDTH] > before:
        raise DataError(
            f"No row of the knowledge file {path} has {len(names)} cells",
            why=f"it was read with {_SIGNS.get(delimiter, repr(delimiter))} between cells",
            do="Name the right file and delimiter",
        )


def table(path: Path, columns: Sequence[str], skipped: Counter[str], **how: object) -> pa.Table:
    """All of `batches` at once, for files that fit in memory many times over."""
    found = list(batches(path, columns, skipped, **how))  # type: ignore[arg-type]
    if not found:
        return pa.table({name: pa.array([], pa.string()) for name in columns})
    return pa.Table.from_batches(found).combine_chunks()


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file in UTF-8; `.gz` is unpacked.

    Raises:
        DataError: no such file, or it is not UTF-8.
    """
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            rest = b""
            while chunk := stream.read(_BLOCK):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode("utf-8-sig").rstrip("\r")
            if rest:
                yield rest.decode("utf-8-sig").rstrip("\r")
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def need_files(*paths: Path) -> None:
    """Return only if all of these files exist.

    Raises:
        DataError: one does not.
    """
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"There is no knowledge file {path}",
                do="Correct path in the knowledge file's table; it is taken from that file's folder",
            )


def _header(path: Path, line: str, delimiter: str, quote: str) -> list[str]:
    how = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, **how), [])]
    if not any(names):
        raise DataError(f"The knowledge file {path} is empty", do="Fetch it again, or name another")
    twice = [name for name, n in Counter(name.casefold() for name in names if name).items() if n > 1]
    if twice:
        raise DataError(
            f"The knowledge file {path} has more than one column {twice[0]!r}",
            do="Rename or remove one of them",
        )
    return names


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(
        f"The knowledge file {path} cannot be read",
        why="it is not text in UTF-8" if "utf" in reason.casefold() else reason[:200],
        do="Save it as UTF-8, or fetch it again",
    )
