"""`coordinator study`: the parts of a study file that name other files, ready to paste."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli_options import JsonOption
from protocol.canonical import digest, file_digest
from protocol.console import out, print_json
from protocol.errors import UsageError
from protocol.sections import ExtraView, Ontology, Text

app = typer.Typer(
    no_args_is_help=True, help="Print the parts of a study file that hold the digest of another file."
)


class Encoder(StrEnum):
    """As `text.encoder` of the study."""

    LEXICAL = "lexical"
    MINILM = "minilm"
    DIRECTORY = "directory"


@app.command(epilog="Example: coordinator study encoder minilm --dim 384")
def encoder(
    kind: Annotated[Encoder, typer.Argument(help="The encoder: lexical, minilm or directory.")],
    folder: Annotated[Path | None, typer.Option(help="The model's folder, for directory.")] = None,
    dim: Annotated[int, typer.Option(min=8, max=1024, help="Columns of the text view.")] = 128,
    sites: Annotated[
        bool, typer.Option("--sites", help="Sites may release vectors of their own descriptions.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print the study's text section for an encoder as it is installed here, with its digest."""
    if folder is not None and kind is not Encoder.DIRECTORY:
        raise UsageError(
            f"The encoder {kind} has no folder", do="Leave --folder out, or name the encoder directory"
        )
    if folder is None and kind is Encoder.DIRECTORY:
        raise UsageError("The encoder directory needs --folder", do="Name the model's folder")
    from protocol.text import Projected, find_encoder  # noqa: PLC0415 - scikit-learn takes seconds to import

    found = Projected(find_encoder(kind.value, folder, dim=dim), dim)
    part = Text(encoder=kind.value, digest=found.digest, dim=dim, sites=sites)
    _print("[text]", part.model_dump(), as_json=json)


@app.command(epilog="Example: coordinator study ontology ontology.csv")
def ontology(
    file: Annotated[Path, typer.Argument(help="CSV of code, parent.")],
    json: JsonOption = False,
) -> None:
    """Check an ontology file, and print the study's ontology section with its digest."""
    from protocol.keep import make_is_a, read_ontology  # noqa: PLC0415
    from protocol.keep.files import FILE  # noqa: PLC0415

    links = read_ontology(file)
    graph, part = make_is_a(links), Ontology(digest=file_digest(file))
    codes, inside = len(graph.above), len(graph.codes) - 1  # the root that joins all others is no code
    about = {"codes": codes, "roots": int(graph.parents[:, [0]].sum()), "deeper": codes - inside}
    if not json:
        out.print(
            f"# {codes:,} codes, {about['roots']:,} of them roots; {about['deeper']:,} lie deeper than depth {part.depth}. "
            f"Give it to all parties as {FILE}, beside the study file.",
            markup=False,
        )
    _print("[ontology]", part.model_dump(), as_json=json, about=about)


@app.command(epilog="Example: coordinator study view severity severity.py --dim 16")
def view(
    name: Annotated[str, typer.Argument(help="The view's name in releases.")],
    file: Annotated[Path, typer.Argument(help="The Python file that makes it.")],
    dim: Annotated[int, typer.Option(min=2, max=1024, help="Largest dimension of the view.")] = 16,
    json: JsonOption = False,
) -> None:
    """Print the study's section for a view of the consortium's own; the file is not run."""
    try:
        part = ExtraView(name=name, digest=digest(file.read_bytes()), dim=dim)
    except OSError as error:
        raise UsageError(f"The file {file} cannot be read", why=str(error)) from None
    except ValueError:
        raise UsageError(
            f"{name!r} is no name of a view",
            why="it has small letters, digits and -, and begins with a letter",
        ) from None
    _print("[[views]]", part.model_dump(), as_json=json)


def _print(head: str, part: dict[str, Any], *, as_json: bool, about: dict[str, int] | None = None) -> None:
    if as_json:
        print_json(part | (about or {}))
        return
    lines = [head]
    for key, value in part.items():
        text = f'"{value}"' if isinstance(value, str) else str(value).lower()
        lines.append(f"{key} = {text}")
    out.print("\n".join(lines), markup=False)
