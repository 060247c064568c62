"""Options that several commands of `site-agent` share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import UsageError
from protocol.keyfile import Passphrase, passphrase_from_file

HomeOption = Annotated[Path, typer.Option("--home", envvar="SMILE_SITE_HOME", help="The site's home folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MemoryOption = Annotated[
    str, typer.Option(help="Memory to count in, such as 6G; half of what is free if left out.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Cores to count on; 0 means all.")]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(help="File of mode 0600 with the passphrase on its first line; without it you are asked."),
]
HERE = Path()


def passphrase(file: Path | None, question: str, *, twice: bool = False) -> Passphrase:
    """From a file, or from the person at the terminal.

    Raises:
        UsageError: there is neither.
    """
    if file is not None:
        return lambda: passphrase_from_file(file)
    if not sys.stdin.isatty():
        raise UsageError(
            "There is no terminal to type a passphrase in", do="Give --passphrase-file, a file of mode 0600"
        )
    return lambda: str(typer.prompt(question, hide_input=True, confirmation_prompt=twice))
