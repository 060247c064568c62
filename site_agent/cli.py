"""`site-agent`: what a hospital's IT runs."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.codeindex import CodeIndex
from protocol.console import out, print_json, progress, run_app, stop_event, table
from protocol.errors import FederationError, UsageError
from protocol.files import write_atomic
from protocol.messages import ReleaseManifest
from site_agent import enrolment
from site_agent.agent import Agent
from site_agent.codelist import apply_result, latest_result
from site_agent.config import Home, Kind
from site_agent.doctor import examine
from site_agent.doctor.page import page
from site_agent.doctor.terminal import as_json, show
from site_agent.prepare import version
from site_agent.resources import resources

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns a hospital's events into a gated, approved and sealed release, and takes the code map back. "
    "Nothing leaves before `approve`; the agent only dials out.",
)

HomeOption = Annotated[Path, typer.Option("--home", envvar="SMILE_SITE_HOME", help="The site's home folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
MemoryOption = Annotated[
    str, typer.Option(help="Memory to count in, such as 6G; half of what is free if left out.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Cores to count on; 0 means all.")]
HERE = Path()


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        out.print(version())
        raise typer.Exit


@app.command(epilog="Example: site-agent init north --site north --invitation invitation.json --study study.toml "
             "--events events.parquet --system ICD10CM")  # fmt: skip
def init(
    folder: Annotated[Path, typer.Argument(help="New home folder of this site.")],
    site: Annotated[str, typer.Option(help="The site's name in the study.")],
    invitation: Annotated[Path, typer.Option(help="invitation.json from the coordinator.")],
    study: Annotated[Path, typer.Option(help="study.toml, the same file at every party.")],
    system: Annotated[str, typer.Option(help="Code system of rows that name none, e.g. ICD10CM.")],
    kind: Annotated[
        Kind, typer.Option(help="What the data are: triplets, meds, fhir, omop, i2b2 or pcornet.")
    ] = "triplets",
    events: Annotated[
        Path | None,
        typer.Option(
            help="triplets: CSV or Parquet file with the columns patient, date, code; meds, fhir: the folder."
        ),
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            help="omop, i2b2, pcornet: duckdb:///FILE, postgresql://USER@HOST/NAME or spark://HOST:PORT."
        ),
    ] = "",
    schema: Annotated[str, typer.Option(help="omop, i2b2, pcornet: the schema of the tables.")] = "",
    anchors: Annotated[
        Path | None, typer.Option(help="CSV with the columns local_code, standard_code.")
    ] = None,
) -> None:
    """Make a site's home folder, its configuration and its keys."""
    home = enrolment.init_home(
        folder,
        site=site,
        invitation=invitation,
        study=study,
        system=system,
        events=events,
        anchors=anchors,
        kind=kind,
        database=database,
        schema=schema,
    )
    out.print(f"Made {folder}. The coordinator's fingerprint is [bold]{home.invitation.keys.fingerprint}[/]:")
    out.print("compare it with the coordinator by telephone before you go on.")
    out.print(f"Next: site-agent doctor --home {folder}, then site-agent enroll --home {folder}")


@app.command(epilog="Example: site-agent doctor --home north --html doctor.html")
def doctor(
    home: HomeOption = HERE,
    count: Annotated[
        bool,
        typer.Option(
            "--count", help="Count pairs too where there are 2,000,000 rows or more, and apply the floors."
        ),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the findings to this HTML page too.")] = None,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Check configuration, keys, data and connection before the first run; nothing leaves."""
    site = Home(home)
    if html is not None and html.is_dir():
        raise UsageError(f"{html} is a folder", do="Name a file for the page, such as doctor.html")
    with progress("doctor", quiet=json) as step:
        found = examine(site, step, memory=memory, threads=threads, count=count)
    if json:
        print_json(as_json(found))
    else:
        show(found)
    if html is not None:
        try:
            write_atomic(html, page(found, version=version()))
        except OSError as error:
            raise UsageError(
                f"The page {html} cannot be written", why=str(error.strerror or error), do="Name another file"
            ) from None
    if found.profile is not None and not json:
        out.print(
            f"\nCoded events stay in {site.work} until preview has used them, and need not be read again.",
            markup=False,
        )
    if html is not None and not json:
        out.print(f"Wrote {html}", markup=False)
    if any(c.result == "failed" for c in found.checks()):
        raise typer.Exit(1)


@app.command(epilog="Example: site-agent enroll --home north --contact it@north.example")
def enroll(
    home: HomeOption = HERE,
    contact: Annotated[str, typer.Option(help="Whom the coordinator calls when this site is offline.")] = "",
    json: JsonOption = False,
) -> None:
    """Write the enrolment file for the coordinator; it holds public keys only."""
    path, keys = enrolment.write_enrolment(Home(home), contact)
    if json:
        print_json({"file": str(path), "fingerprint": keys.fingerprint})
        return
    out.print(f"Send {path} to the coordinator. This site's fingerprint is [bold]{keys.fingerprint}[/]:")
    out.print("tell it to the coordinator by telephone, not in the same message.")


@app.command(epilog="Example: site-agent preview --home north --names")
def preview(
    home: HomeOption = HERE,
    names: Annotated[
        bool, typer.Option("--names", help="List every released code, not the first twenty.")
    ] = False,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Prepare the next release and show everything that would leave; nothing leaves."""
    agent = Agent(Home(home))
    machine = resources(agent.home.config.machine, memory=memory, threads=threads)
    with progress("preview", quiet=json) as step:
        prepared = agent.preview(step, machine)
    manifest = prepared.release.manifest
    size = (home / "outbox" / "prepared.release").stat().st_size
    if json:
        print_json(
            {
                "manifest_digest": manifest.digest,
                "bytes": size,
                "skipped_rows": prepared.skipped,
                "rows": prepared.n_rows,
            }
            | {"manifest": manifest.model_dump(mode="json")}
        )
        return
    _show_manifest(manifest, size, all_names=names)
    for reason, count in prepared.skipped.items():
        out.print(f"[yellow]{count:,} rows were skipped: {reason}[/]")
    out.print(
        f"\nNothing has left. To approve: site-agent approve --home {home} --digest {manifest.digest[:16]}"
    )


@app.command(epilog="Example: site-agent approve --home north --digest 3f9a77c1d2e4b5a6")
def approve(
    home: HomeOption = HERE,
    digest: Annotated[
        str, typer.Option(help="The manifest digest that preview printed, at least 16 digits.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who approves; your account's name if left out.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --digest.")] = False,
    json: JsonOption = False,
) -> None:
    """Say yes to the prepared release; only these bytes can be sealed afterwards."""
    agent = Agent(Home(home))
    manifest = agent.outbox.prepared().manifest
    if digest and (len(digest) < 16 or not manifest.digest.startswith(digest)):
        raise UsageError(
            f"The prepared release is {manifest.digest[:16]}, not {digest}",
            do="Run site-agent preview and look again",
        )
    if yes and not digest:
        raise UsageError("--yes needs --digest", why="a yes is to one release, by name")
    if not yes:
        _show_manifest(manifest, (home / "outbox" / "prepared.release").stat().st_size, all_names=False)
        if not typer.confirm("May this leave the site?"):
            raise FederationError(
                "Not approved", do="Nothing will leave; run preview again when you are ready"
            )
    approval = agent.approve(by or getpass.getuser(), manifest.digest)
    if json:
        print_json(approval.model_dump(mode="json"))
    else:
        out.print(
            f"Approved by {approval.by}: {manifest.digest}. It is sealed and sent when the coordinator calls."
        )


@app.command(epilog="Example: site-agent run --home north")
def run(
    home: HomeOption = HERE,
    until_delivered: Annotated[
        bool, typer.Option("--until-delivered", help="Leave once a published release has arrived.")
    ] = False,
) -> None:
    """Stay connected: answer calls with the approved release, take in results."""
    from site_agent.run import run_agent  # noqa: PLC0415 - Flower takes seconds to import

    run_agent(
        Agent(Home(home)),
        say=lambda text: out.print(text, markup=False),
        stop=stop_event(),
        until_delivered=until_delivered,
    )


@app.command(epilog="Example: site-agent apply --home north")
def apply(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Join the newest published release to this site's code list: harmonised.csv and .parquet."""
    applied = apply_result(Home(home))
    if json:
        print_json({"version": applied.version, "file": str(applied.path), "codes": applied.states})
        return
    table(f"Version {applied.version}", ["state", "codes"], [[k, v] for k, v in applied.states.items()])
    out.print(f"Wrote {applied.path}")


@app.command(epilog="Example: site-agent search ICD10CM:E11.9 -k 5 --home north")
def search(
    code: Annotated[str, typer.Argument(help="PREFIX:code, or a bare code that one system has.")],
    home: HomeOption = HERE,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many neighbours.")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="Exact search even where hnswlib is installed.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """The codes nearest to a code in the newest published release."""
    site = Home(home)
    index = CodeIndex.load(latest_result(site), trust=site.invitation.keys, exact=exact)
    hits = index.search(code, k)
    if json:
        print_json([{"code": h.code, "similarity": round(h.similarity, 6)} for h in hits])
    else:
        table(
            f"Nearest to {index.codes[index.row(code)]}",
            ["code", "cosine"],
            [[h.code, h.similarity] for h in hits],
        )


def _show_manifest(manifest: ReleaseManifest, size: int, *, all_names: bool) -> None:
    """Everything of a release on one screen; with `all_names`, every code and anchor too."""
    s, p = manifest.statistics, manifest.policy
    facts: list[list[Any]] = [
        ["site, release", f"{manifest.site}, {manifest.sequence}"],
        ["patients (rounded)", f"{s.patients:,}"],
        ["codes released", f"{s.codes_released:,} of {s.codes_seen:,} seen"],
        [f"codes withheld: fewer than {p.min_code_patients} patients", f"{s.codes_suppressed:,}"],
        [f"codes withheld: no pair with {p.min_pair_patients} patients", f"{s.codes_without_pairs:,}"],
        ["pairs used, not released themselves", f"{s.pairs_released:,}"],
        [f"pairs withheld: fewer than {p.min_pair_patients} patients", f"{s.pairs_suppressed:,}"],
        ["share of co-occurrences kept", f"{s.mass_kept:.0%}"],
        ["smallest patient count of a code (rounded)", f"{s.smallest_code_patients:,}"],
        ["fewest patients behind a pair in use", f"{s.smallest_pair_patients:,}"],
        ["anchors (local code = standard code)", f"{len(manifest.anchors):,}"],
        ["descriptions", "none"],
        ["bytes in all", f"{size:,}"],
        ["manifest digest", manifest.digest],
    ]
    table("What would leave", ["fact", "value"], facts)
    rows = [[a.name, a.dtype, " x ".join(map(str, a.shape)), a.sha256[:16]] for a in manifest.arrays]
    table("Every array", ["name", "type", "shape", "sha256 begins"], rows)
    shown = manifest.codes if all_names else manifest.codes[:20]
    out.print(
        f"Every name: {len(manifest.codes):,} codes, in order" + ("" if all_names else "; the first twenty:")
    )
    out.print("  " + ", ".join(shown), markup=False)
    anchors = manifest.anchors if all_names else manifest.anchors[:5]
    if anchors:
        out.print(f"Anchors: {len(manifest.anchors):,}" + ("" if all_names else "; the first five:"))
        out.print("  " + ", ".join(f"{manifest.codes[a.row]} = {a.standard}" for a in anchors), markup=False)
    if not all_names:
        out.print("The whole list: site-agent preview --names, or --json")


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
