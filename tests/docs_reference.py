"""Reference pages that are made from the code: commands, the study file, the configuration files.

python -m tests.docs_reference            say which pages differ from the code
python -m tests.docs_reference --write    rewrite them
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast, get_type_hints

import click
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from coordinator.cli import app as coordinator_app
from coordinator.config import CoordinatorConfig
from coordinator.setup import EXAMPLE_STUDY
from coordinator.web.app import api
from protocol.study import StudySpec
from site_agent.cli import app as site_app
from site_agent.sections import SiteConfig

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
MADE = "<!-- Made by `python -m tests.docs_reference --write`; change the code, not this page. -->"

PROGRAMS: dict[str, click.Command] = {
    "site-agent": typer.main.get_command(site_app),
    "coordinator": typer.main.get_command(coordinator_app),
}

_COMMANDS = """\
Two programs: `site-agent` runs at a site, `coordinator` at the coordinator. Every command has `--help` with an
example. Where a command reports, `--json` prints one JSON document on standard output; progress goes to standard
error. Options and arguments may come in any order.

## Exit codes

| Code | Meaning |
|---|---|
| 0 | done |
| 1 | failed; one sentence on standard error says what, why and what to do ([errors](errors.md)) |
| 2 | the command was called wrongly, or a study or configuration file is wrong |
| 130 | stopped with Ctrl-C; `serve` and `run` end with 0 when they are stopped |

`site-agent doctor` also leaves with 1 when one of its checks has failed; a check that says `look` is no failure.
"""

_STUDY = """\
`study.toml` is the one file that all parties share. Its digest (SHA-256 of the parsed content as canonical JSON, without
fields at their defaults) binds every message: comments and the order of fields do not change it, the order of lists does.
`coordinator init --example-study` prints the [example](#example) below. A field that is not listed here is refused.

Rules that join fields:

- `standard` names one of the `code_systems`, and not one that is local to a site.
- No site and no prefix is listed twice; `local_to` names one of the `sites`.
- `min_code_patients` below 20, `min_pair_patients` or `sticky_patients` below 11, `min_changed_patients` below 1,000,
  `small_site_patients` below 6,000 or `small_site_pair_patients` below 25 needs `public_data = true`.
- `release_epsilon` is at most `epsilon`; sites share embeddings, or sums, or both.
"""

_CONFIGURATION = """\
Each home folder holds one configuration file, which `init` writes. A field that is not listed here is refused.

| Environment variable | Read by | Meaning |
|---|---|---|
| `SMILE_SITE_HOME` | `site-agent` | the home folder where `--home` is left out |
| `SMILE_COORDINATOR_HOME` | `coordinator` | the home folder where `--home` is left out |
| `SMILE_PASSPHRASE_FILE` | both | a file of mode 0600 whose first line opens the party's own keys |
| `SMILE_DATABASE_PASSWORD` | `site-agent` | the password of a PostgreSQL database; `~/.pgpass` does as well |
| `HTTPS_PROXY` | `site-agent run` | a web proxy on the site's way out; passed on to Flower's SuperNode |

No key, password or other secret is read from a configuration file.
"""


_HTTP_API = """\
What `coordinator serve` answers; [Serve a release](../how-to/serve-a-release.md) sets it up. `/openapi.json` is the same for
programs, and may be read without signing in.

Everything else needs the header `Authorization: Bearer TOKEN` (`coordinator token add`). A role may do what those before it
may: `analyst` reads, `reviewer` also decides, comments and takes back, `coordinator` also assigns and adjudicates.

Errors are `application/problem+json` (RFC 9457) with `what` happened, `why`, and what to `do`; below `/fhir` they are an
OperationOutcome. 404: there is no such thing; 409: it does not fit what is there; 410: the version was withdrawn; 422: the
request is not valid; 429: too many requests, `Retry-After` says when to come again; 503: the database cannot be
used just now, or the version's files are not what was signed.

- A version never changes, so its lists have cursors that neither skip nor repeat anything, and its answers have ETags for
  `If-None-Match`.
- The ETag of a download is the SHA-256 of the whole file. `Range` with `If-Range` goes on where a download broke off.
- Every GET takes HEAD. Names and comments are what sites and reviewers wrote: escape them. Lists cut names at 500 characters.
"""


# --- Commands ------------------------------------------------------------------------------------------


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below a program that does something by itself, with its full name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    for word, below in command.commands.items():
        yield from commands(below, f"{name} {word}")


def _render_commands() -> str:
    parts = ["# Commands", MADE, _COMMANDS]
    for program, command in PROGRAMS.items():
        parts += [f"## {program}", command.help or ""]
        parts.append("`--version` prints the version. Without a command the help is shown.")
        for name, below in commands(command, program):
            parts += _command(name, below)
    return _page(parts)


def _command(name: str, command: click.Command) -> list[str]:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    words = [name, *(_usage(a) for a in arguments), *(_usage(o) for o in options if o.required)]
    usage = " ".join([*words, "[OPTIONS]"])
    said = _helps(command)
    rows = [[f"`{a.human_readable_name.upper()}`", _default(a), _meaning(a, said)] for a in arguments]
    rows += [[_flags(o), _default(o), _meaning(o, said)] for o in options]
    example = (command.epilog or "").removeprefix("Example: ")
    return [
        f"### {name}",
        command.help or "",
        f"```text\n{usage}\n```",
        _table(["argument or option", "default", "meaning"], rows),
        f"Example:\n\n```sh\n{example}\n```",
    ]


def _helps(command: click.Command) -> dict[str, str]:
    """Help of each parameter, from the function's own annotations: click 8.5 drops typer's help of arguments."""
    function = inspect.unwrap(cast(Callable[..., Any], command.callback))
    hints = get_type_hints(function, include_extras=True)
    return {name: hint.__metadata__[0].help for name, hint in hints.items() if hasattr(hint, "__metadata__")}


def _usage(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return f"{parameter.opts[0]} {_metavar(parameter)}"
    word = parameter.human_readable_name.upper() + ("..." if parameter.nargs == -1 else "")
    return word if parameter.required else f"[{word}]"


def _flags(option: click.Option) -> str:
    names = ", ".join(f"`{o}`" for o in option.opts)
    return names if option.is_flag else f"{names} `{_metavar(option)}`"


def _metavar(parameter: click.Parameter) -> str:
    return parameter.type.name.upper().removesuffix(" RANGE")


def _default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return "off"
    if value is None or value == "":
        return ""
    return "`.`, the current folder" if value == Path() else f"`{value}`"


def _meaning(parameter: click.Parameter, said: dict[str, str]) -> str:
    parts = [said[str(parameter.name)]]
    low, high = getattr(parameter.type, "min", None), getattr(parameter.type, "max", None)
    if low is not None:
        parts.append(f"{low} to {high}." if high is not None else f"At least {low}.")
    if isinstance(parameter, click.Option) and parameter.multiple:
        parts.append("May be repeated.")
    if parameter.envvar:
        parts.append(f"Environment: `{parameter.envvar}`.")
    return " ".join(p for p in parts if p)


# --- Models --------------------------------------------------------------------------------------------


def _render_study() -> str:
    sections = _sections(StudySpec, "")
    example = ["## Example", f"```toml\n{EXAMPLE_STUDY}```"]
    return _page(["# The study file", MADE, _STUDY, *sections, *example])


def _render_configuration() -> str:
    parts = ["# Configuration", MADE, _CONFIGURATION]
    parts += ["## site.toml", "Paths are relative to the home folder.", *_sections(SiteConfig, "#")]
    parts += ["## coordinator.toml", *_sections(CoordinatorConfig, "#")]
    return _page(parts)


def _sections(model: type[BaseModel], deeper: str, path: str = "", title: str = "Top level") -> list[str]:
    """A table of the model's plain fields, then one section for each field that is a table itself."""
    properties, required = _properties(model)
    plain, below = [], []
    for attribute, info in model.model_fields.items():
        inner, many = _inner_model(info)
        name = info.alias or attribute
        if inner is None:
            default = "required" if name in required else _value(info.default)
            plain.append([f"`{name}`", _type(properties[name]), default, info.description or ""])
            continue
        where = f"{path}.{name}" if path else name
        heading = f"`[[{where}]]`" if many else f"`[{where}]`"
        about = info.description or (inner.__doc__ or "").strip()
        below += [f"{deeper}## {heading}", about, *_sections(inner, deeper, where, "")]
    head = [f"{deeper}## {title}"] if title else []
    return [*head, _table(["field", "type", "default", "meaning"], plain), *below]


def _properties(model: type[BaseModel]) -> tuple[dict[str, Any], set[str]]:
    schema = model.model_json_schema()
    return schema["properties"], set(schema.get("required", ()))


def _inner_model(info: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """The model of a table, or of a list of tables."""
    annotation = info.annotation
    arguments = getattr(annotation, "__args__", ())
    for candidate, many in ((annotation, False), (arguments[0] if arguments else None, True)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate, many
    return None, False


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(s) for s in schema["anyOf"])
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{v}`" for v in choices)
    kind = str(schema["type"])
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object":
        return f"table of {_type(schema['additionalProperties'])}"
    if kind in {"integer", "number"}:
        return kind + _range(schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum"))
    pattern = f" matching `{schema['pattern']}`" if "pattern" in schema else ""
    length = f", at most {schema['maxLength']} characters" if "maxLength" in schema else ""
    text = "date" if schema.get("format") == "date" else "text"
    words = {"boolean": "`true` or `false`", "null": "none", "string": text}
    return words[kind] + pattern + length


def _range(low: float | None, over: float | None, high: float | None) -> str:
    if over is not None:
        return f", over {over:,}" + (f", at most {high:,}" if high is not None else "")
    if high is not None:
        return f", {low:,} to {high:,}"
    return f", at least {low:,}" if low is not None else ""


def _value(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return "none"
    if default == {}:
        return "`{}`"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(repr, default))}]`"
    text = f'"{default}"' if isinstance(default, str) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


# --- The service ---------------------------------------------------------------------------------------


def _render_http_api() -> str:
    made = api().openapi()
    schemas = made["components"]["schemas"]
    parts = ["# HTTP interface", MADE, _HTTP_API]
    for tag in made["tags"]:
        operations = [
            _operation(method, path, operation, schemas)
            for path, below in made["paths"].items()
            for method, operation in below.items()
            if operation["tags"] == [tag["name"]]
        ]
        parts += [f"## {tag['name'].capitalize()}", tag["description"], *(p for o in operations for p in o)]
    parts += ["## Models"]
    for name, schema in sorted(schemas.items()):
        rows = [
            [f"`{field}`", _json_type(below), below.get("description", "")]
            for field, below in schema["properties"].items()
        ]
        parts += [
            f"### {name} fields",
            schema.get("description", ""),
            _table(["field", "type", "meaning"], rows),
        ]
    return _page(parts)


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> list[str]:
    parts = [f"### `{method.upper()} {path}`", operation.get("description", "")]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows = [
        [
            f"`{p['name']}`",
            p["in"],
            _json_type(p["schema"]).removesuffix(" or null"),
            _json_default(p),
            p.get("description", ""),
        ]
        for p in operation.get("parameters", [])
    ]
    if "$ref" in body:
        name = body["$ref"].rpartition("/")[2]
        needed = schemas[name].get("required", [])
        rows += [
            [
                f"`{field}`",
                "body",
                _json_type(below),
                _json_default({"required": field in needed, "schema": below}),
                below.get("description", ""),
            ]
            for field, below in schemas[name]["properties"].items()
        ]
    if rows:
        parts.append(_table(["parameter", "in", "type", "default", "meaning"], rows))
    done = next(r for status, r in operation["responses"].items() if status.startswith("2"))
    answer = done.get("content", {}).get("application/json", {}).get("schema", {})
    if answer:
        parts.append(f"Answers {_json_type(answer)}.")
    return parts


def _json_type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()}-fields)"
    if "anyOf" in schema:
        return " or ".join(_json_type(s) for s in schema["anyOf"])
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{v}`" for v in choices)
    kind = schema.get("type", "object")
    if kind == "array":
        return f"list of {_json_type(schema['items'])}"
    if schema.get("format") == "date-time":
        return "time"
    return {"string": "text", "boolean": "`true` or `false`", "null": "null"}.get(kind, kind)


def _json_default(parameter: dict[str, Any]) -> str:
    if parameter.get("required"):
        return "required"
    value = parameter["schema"].get("default")
    return "" if value is None or value in ("", []) else f"`{str(value).lower()}`"


# --- Pages ---------------------------------------------------------------------------------------------


def _table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _page(parts: list[str]) -> str:
    return "\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": _render_commands,
    "study.md": _render_study,
    "configuration.md": _render_configuration,
    "http-api.md": _render_http_api,
}


def stale() -> list[str]:
    """The pages that differ from what the code says."""
    found = []
    for name, render in PAGES.items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != render():
            found.append(name)
    return found


def main() -> int:
    """Entry point; 1 if a page differs and was not to be written."""
    pages = stale()
    if sys.argv[1:] == ["--write"]:
        for name in pages:
            (REFERENCE / name).write_text(PAGES[name](), encoding="utf-8")
            print(f"wrote {REFERENCE / name}")
        return 0
    for name in pages:
        print(f"{name} differs from the code: python -m tests.docs_reference --write")
    return 1 if pages else 0


if __name__ == "__main__":
    sys.exit(main())
