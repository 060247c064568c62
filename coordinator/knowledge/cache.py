"""A build is made again only if something that it was made from has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from coordinator.knowledge.config import KnowledgeFile
from protocol.canonical import digest
from protocol.errors import DataError
from protocol.files import write_atomic
from protocol.study import StudySpec

FORMAT: Final = 2
"""Raised with every change of what a build makes of the same input."""

MARK: Final = "inputs.json"


def input_key(file: KnowledgeFile, study: StudySpec) -> dict[str, Any]:
    """What a build depends on: this format, the settings, the study's code systems, and the bytes of each file.

    Raises:
        DataError: a file cannot be read.
    """
    return {
        "format": FORMAT,
        "seed": file.seed,
        "code_systems": digest({s.prefix: s.category for s in study.code_systems}),
        "sources": [
            {"settings": s.settings(), "files": {p.name: file_digest(p) for p in s.files()}}
            for s in file.sources
        ],
    }


def is_current(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the folder holds, unaltered, what a build from these inputs wrote."""
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        made = {name: file_digest(folder / name) for name in mark["files"]}
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False
    return bool(mark.get("inputs") == json.loads(json.dumps(key)) and made == mark["files"])


def mark(folder: Path, key: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Say what the folder's files were made from; written last, so that a build that stopped is none."""
    files = {name: file_digest(folder / name) for name in names}
    write_atomic(folder / MARK, json.dumps({"inputs": key, "files": files}, indent=1) + "\n", mode=0o644)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"There is no knowledge file {path}"
            if isinstance(error, FileNotFoundError)
            else f"The knowledge file {path} cannot be read",
            why=str(error.strerror),
            do="Correct path in the knowledge file's table; it is taken from that file's folder",
        ) from None
