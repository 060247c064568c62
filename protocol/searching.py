"""What the search commands of both parties share: their options, and how they show what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from protocol.codeindex import CodeIndex, Hit
from protocol.console import out, print_json, shown, table
from protocol.textindex import Found, TextIndex

TextArgument = Annotated[
    str,
    typer.Argument(metavar="TEXT", help="Words of a name, or a code or its beginning; with --near a code."),
]
NearOption = Annotated[
    bool, typer.Option("--near", help="The codes nearest to a code, by the cosine of their vectors.")
]
SystemOption = Annotated[
    list[str] | None, typer.Option("--system", help="Only codes of this code system; may be repeated.")
]
CategoryOption = Annotated[
    list[str] | None, typer.Option("--category", help="Only code systems of this category; may be repeated.")
]
CountOption = Annotated[int, typer.Option("-k", "--k", min=1, max=1000, help="How many codes.")]


def search(
    text: str, k: int, index: CodeIndex | None, texts: TextIndex, systems: frozenset[str], *, json: bool
) -> None:
    """Search and show.

    Args:
        text: what was typed.
        k: how many.
        index: where neighbours are sought; None for a search by text.
        texts: where texts are sought; it also knows the names.
        systems: prefixes to which codes are limited; all if empty.
        json: for machines.

    Raises:
        UsageError: neighbours of a code that is not in the release.
    """
    if index is None:
        _show_found(text, texts.find(text, k, systems=systems), json=json)
        return
    code = index.codes[index.row(text)]
    _show_near(code, index.search(code, k, systems=systems), texts, json=json)


def _show_found(text: str, found: Sequence[Found], *, json: bool) -> None:
    if json:
        print_json([asdict(f) for f in found])
    elif not found:
        out.print(f"Nothing in this release is found by {text[:80]!r}.", markup=False)
    else:
        rows = [[shown(f.code), shown(f.name), f.where + (f" {shown(f.by)}" if f.by else "")] for f in found]
        table("Found", ["code", "name", "found in"], rows)


def _show_near(code: str, hits: Sequence[Hit], texts: TextIndex, *, json: bool) -> None:
    if json:
        print_json(
            [{"code": h.code, "name": texts.name(h.code), "similarity": round(h.similarity, 6)} for h in hits]
        )
        return
    rows = [[shown(h.code), shown(texts.name(h.code)), h.similarity] for h in hits]
    table(f"Nearest to {shown(code)}", ["code", "name", "cosine"], rows)
