"""The documents say what the code does: links, commands, fields, errors, signatures and examples."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from coordinator.exports.tables import clusters_table, evidence_table
from coordinator.index import write_index
from coordinator.mapping import Mapping, MappingSet
from protocol import errors
from protocol.enrolment import Authority, NodeKeyChange, Welcome
from protocol.envelope import EnvelopeHeader
from protocol.errors import FederationError
from protocol.keylist import KeyVersion
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import (
    BackgroundSource,
    Enrolment,
    Invitation,
    Policy,
    PublishedManifest,
    Receipt,
    ReleaseManifest,
    ReleaseStatistics,
    RoundCall,
    SiteSummary,
    Tombstone,
)
from protocol.published import list_files, sign_manifest
from protocol.rotation import KeyReceipt
from site_agent.exchange import SiteStatus
from site_agent.sections import Data
from site_agent.sources import fhir, meds
from site_agent.sources.clean import Cleaner
from site_agent.sources.i2b2 import I2B2_TABLES
from tests import docs_reference
from tests.docs_reference import PROGRAMS, ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
REFERENCE = DOCS / "reference"

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_INLINE = re.compile(r"`([^`\n]+)`")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    return [(m[2], m[3]) for m in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that a link into the page may have behind its #, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        found.add(kept.replace(" ", "-"))
    return found


# --- Links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for link in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(DOCS / "index.md"))}
    pages = {p for p in DOCS.rglob("*.md") if p.parent.name != "adr" and p.name != "index.md"}
    assert sorted(map(name_of, pages - linked)) == []


# --- Commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", docs_reference.PAGES)
def test_generated_pages_are_those_of_the_code(page: str) -> None:
    assert page not in docs_reference.stale(), "run: python -m tests.docs_reference --write"


def shell_lines(text: str) -> Iterator[str]:
    """Lines of a fenced block, continued ones joined."""
    yield from text.replace("\\\n", " ").splitlines()


def program_words(line: str) -> list[str]:
    """The words of a call of one of our programs, up to the first shell operator; none for another line."""
    first = line.strip().removeprefix("$ ").split(" ", 1)[0]
    if Path(first).name not in PROGRAMS:
        return []
    lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("();<>|&"):
            break
        words.append(word)
    return [Path(words[0]).name, *words[1:]]


def parse_call(words: list[str]) -> None:
    """Parse a call as the program itself would, without running it; a wrong one raises `click.UsageError`."""
    command, rest, parent = PROGRAMS[words[0]], words[1:], None
    name: str | None = words[0]
    while True:
        try:
            context = command.make_context(name, list(rest), parent=parent)
        except click.exceptions.Exit:  # --help
            return
        if not isinstance(command, click.Group):
            return
        remaining = [*context._protected_args, *context.args]
        if not remaining and context.params.get("show_version"):
            return
        name, found, rest = command.resolve_command(context, remaining)
        assert found is not None
        command, parent = found, context


FENCED_CALLS = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for page in PAGES
    for _, text in fences(page)
    for line in shell_lines(text)
    if (words := program_words(line)) and "[OPTIONS]" not in words
]


@pytest.mark.parametrize("words", FENCED_CALLS)
def test_a_documented_call_parses(words: list[str]) -> None:
    parse_call(words)


@pytest.mark.parametrize(
    "line",
    [
        "site-agent ledger",
        "site-agent preview --everything",
        "coordinator fit --home hub",
        "coordinator round pause r1",
        "coordinator round open r1 --days 400",
    ],
)
def test_the_call_check_finds_what_is_wrong(line: str) -> None:
    with pytest.raises(click.UsageError):
        parse_call(program_words(line))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_named_in_the_text_exist(page: Path) -> None:
    """`site-agent X --option` inside a sentence: the command and the options, not the arguments."""
    wrong = []
    for code in _INLINE.findall(prose(page)):
        words = code.split()
        if words[0] not in PROGRAMS or len(words) == 1:
            continue
        command, rest = PROGRAMS[words[0]], words[1:]
        while rest and isinstance(command, click.Group) and not rest[0].startswith("-"):
            below = command.commands.get(rest.pop(0))
            if below is None:
                wrong.append(code)
                break
            command = below
        known = {o for p in command.params for o in p.opts} | {"--help"}
        wrong += [code for w in rest if w.startswith("--") and w not in known]
    assert wrong == []


# --- Errors --------------------------------------------------------------------------------------------


class Raised(NamedTuple):
    """What the source says of errors."""

    classes: set[str]
    messages: set[str]


def source_errors() -> Raised:
    """Names of all subclasses of FederationError, and the first sentence of every one that is made."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for package in ("protocol", "site_agent", "coordinator")
        for path in sorted((ROOT / package).rglob("*.py"))
    ]
    defined = [
        (node.name, {b.id for b in node.bases if isinstance(b, ast.Name)})
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    classes = {"FederationError"}
    while more := {name for name, bases in defined if bases & classes} - classes:
        classes |= more
    calls = [
        node.args[0]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in classes and node.args
    ]
    return Raised(classes, {text for call in calls for text in templates(call)})


def templates(node: ast.expr) -> list[str]:
    """A message with … for everything that is filled in; two if it is one of two."""
    if isinstance(node, ast.IfExp):
        return templates(node.body) + templates(node.orelse)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)]
    return []


SOURCE = source_errors()
ERRORS_PAGE = REFERENCE / "errors.md"


def test_every_error_class_is_documented_with_its_exit_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d) \|", ERRORS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {name: int(code) for name, code in rows}
    assert documented == {
        name: getattr(errors, name).exit_code
        for name in SOURCE.classes
        if issubclass(getattr(errors, name), FederationError)
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_error_class_is_named_that_does_not_exist(page: Path) -> None:
    named = set(re.findall(r"\b[A-Z]\w*Error\b", page.read_text(encoding="utf-8")))
    assert {n for n in named - SOURCE.classes if not hasattr(builtins, n)} == set()


def test_documented_messages_are_those_of_the_code() -> None:
    quoted = re.findall(r"^\| ([^`|].*?) \| .* \|$", prose(ERRORS_PAGE), re.MULTILINE)
    messages = [q for q in quoted if q not in {"message", "class"}]
    assert len(messages) > 20
    assert [m for m in messages if m not in SOURCE.messages] == []


def test_every_reason_for_leaving_a_row_out_is_documented() -> None:
    cleaner = Cleaner(Data(events="x", system="A"), date(2026, 1, 1))
    reasons = [r.replace("2026-01-01", "…") for r in cleaner._faults]
    reasons += [fhir.NOT_JSON, fhir.OTHER_KIND, fhir.OTHER_SUBJECT, meds.STATIC, "no target in the roll-up"]
    reasons += [m.only.reason for m in I2B2_TABLES if m.only]
    page = (REFERENCE / "data-sources.md").read_text(encoding="utf-8")
    assert [r for r in reasons if f"| {r} |" not in page] == []
    assert [status for status in fhir._NEVER_HAPPENED if status not in page] == []


# --- Formats and functions -----------------------------------------------------------------------------


WIRE_MODELS: tuple[type[BaseModel], ...] = (
    PublicKeys,
    EnvelopeHeader,
    ReleaseManifest,
    Policy,
    ReleaseStatistics,
    PublishedManifest,
    SiteSummary,
    Tombstone,
    BackgroundSource,
    KeyVersion,
    KeyReceipt,
    Enrolment,
    Welcome,
    NodeKeyChange,
    Authority,
    RoundCall,
    Receipt,
    Invitation,
    SiteStatus,
)


@pytest.mark.parametrize("model", WIRE_MODELS, ids=lambda m: m.__name__)
def test_the_release_format_names_every_field(model: type[BaseModel]) -> None:
    page = (REFERENCE / "release-format.md").read_text(encoding="utf-8")
    heading = "`PublicKeys`:" if model is PublicKeys else f"### `{model.__name__}`\n"
    section = re.split(r"^##", page.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert rows == list(model.model_fields)


MAP_PAGE = DOCS / "how-to" / "use-the-map.md"
API_PAGE = REFERENCE / "python-api.md"
SIGNATURES = re.findall(r"^### `([\w.]+)(\(.*\))`$", API_PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(("name", "signature"), SIGNATURES)
def test_documented_signatures_are_those_of_the_code(name: str, signature: str) -> None:
    module, _, attribute = name.rpartition(".")
    if module.split(".")[-1][0].isupper():
        module, _, owner = module.rpartition(".")
        attribute = f"{owner}.{attribute}"
    found: object = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    assert callable(found)
    plain = inspect.signature(found)
    bare = [p.replace(annotation=p.empty) for p in plain.parameters.values() if p.name != "self"]
    assert str(plain.replace(parameters=bare, return_annotation=plain.empty)) == signature


@pytest.mark.parametrize("page", [API_PAGE, MAP_PAGE], ids=name_of)
def test_the_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a page in order, in a folder that holds a small published release and its invitation."""
    _small_release(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = [text for language, text in fences(page) if language == "python"]
    assert len(blocks) >= 3
    space: dict[str, object] = {}
    for number, text in enumerate(blocks, start=1):
        exec(compile(text, f"{name_of(page)}, example {number}", "exec"), space)  # noqa: S102


@pytest.mark.parametrize(("name", "table"), [("clusters", clusters_table), ("evidence", evidence_table)])
def test_the_columns_of_the_tables_are_documented(name: str, table: Callable[[MappingSet], pa.Table]) -> None:
    section = re.split(r"^## ", MAP_PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    page = next(s for s in section if s.startswith(f"`{name}.parquet`"))
    columns = table(MappingSet((), np.zeros((0, 2), np.float32))).column_names
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == columns


SMALL_STUDY = {
    "id": "small",
    "sites": ["north"],
    "standard": "ICD10CM",
    "code_systems": [{"prefix": "ICD10CM"}, {"prefix": "SOUTH"}],
}


def _small_release(folder: Path) -> None:
    """`releases/v1` with an index of three codes, signed, and the `invitation.json` whose keys signed it."""
    keys = PrivateKeys.generate()
    invitation = Invitation(
        study_digest="0" * 64,
        address="localhost:9443",
        certificate="",
        keys=keys.public(),
        bundle_digest="0" * 64,
    )
    (folder / "invitation.json").write_text(invitation.model_dump_json(), encoding="utf-8")
    release = folder / "releases" / "v1"
    release.mkdir(parents=True)
    vectors = np.eye(3, 4, dtype=np.float32) + np.float32(0.1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = ["ICD10CM:E11.9", "ICD10CM:I10", "SOUTH:D-0042"]
    write_index(release, codes, vectors)
    rows = tuple(
        Mapping(c, ("north",), i, 0.9, 0.95, False, False, codes[0], 0.5, (), (), "", "condition", None, 1.0)
        for i, c in enumerate(codes)
    )
    pq.write_table(clusters_table(MappingSet(rows, vectors)), release / "clusters.parquet")
    pq.write_table(evidence_table(MappingSet(rows, vectors)), release / "evidence.parquet")
    manifest = PublishedManifest(
        study=SMALL_STUDY,
        study_digest="0" * 64,
        round="r1",
        version=1,
        created=datetime.now(UTC),
        software="test",
        codes=3,
        clusters=3,
        sites=(),
        files=list_files(release),
    )
    sign_manifest(release, manifest, keys)
