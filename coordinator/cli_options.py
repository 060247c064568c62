"""Options that several commands of `coordinator` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SMILE_COORDINATOR_HOME", help="The coordinator's home folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
FingerprintOption = Annotated[
    list[str] | None,
    typer.Option(help="The fingerprint that the site told you; takes it without asking."),
]
DaysOption = Annotated[
    int, typer.Option(min=0, max=365, help="Days until the call expires; 0: as the study's rounds.days says.")
]
RoundArgument = Annotated[str, typer.Argument(help="The round's name.")]
HERE = Path()
