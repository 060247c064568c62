"""`site-agent search`: codes of the newest release by text, and neighbours of a code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol.published import Trust, read_listed, verify_folder
from protocol.searching import (
    CategoryOption,
    CountOption,
    NearOption,
    SystemOption,
    TextArgument,
)
from protocol.searching import search as search_and_show
from protocol.study import StudySpec
from protocol.textindex import TextIndex
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home
from site_agent.keys import coordinator_keys

_COLUMNS = ["code", "name", "cluster", "standard_code"]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        "search",
        epilog="Example: site-agent search ICD10CM:E11.9 --near -k 5 --home north",
    )(search)


def search(
    text: TextArgument,
    near: NearOption = False,
    system: SystemOption = None,
    category: CategoryOption = None,
    k: CountOption = 10,
    approximate: Annotated[
        bool,
        typer.Option(
            "--approximate", help="With --near: use the release's HNSW index; needs the extra `search`."
        ),
    ] = False,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Find codes of the newest release by code, words of a name, or the name of a synonym; case and typos do not matter."""
    from protocol.codeindex import CodeIndex  # noqa: PLC0415
    from site_agent.codelist import latest_result  # noqa: PLC0415

    site = Home(home)
    folder, trust = latest_result(site), coordinator_keys(site)
    study, texts = read_texts(folder, trust)
    index = CodeIndex.load(folder, trust=trust, exact=not approximate) if near else None
    search_and_show(text, k, index, texts, study.prefixes(system or (), category or ()), json=json)


def read_texts(folder: Path, trust: Trust) -> tuple[StudySpec, TextIndex]:
    """A release's study and its codes by text, once it is verified.

    Raises:
        ProtocolError: the release is not what its manifest says.
        EnvelopeError: its signature does not hold.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    manifest = verify_folder(folder, trust)
    data = read_listed(folder, manifest, "clusters.parquet")
    rows = pq.read_table(pa.BufferReader(data), columns=_COLUMNS)
    texts = TextIndex(*(rows[column].to_pylist() for column in _COLUMNS))
    return StudySpec.model_validate(manifest.study), texts
