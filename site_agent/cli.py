"""`site-agent`: what a hospital's IT runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol import logs
from protocol.console import out, print_json, progress, run_app, stop_event, table
from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.keyfile import passphrase_from_file
from site_agent import (
    cli_airgap,
    cli_cohort,
    cli_connect,
    cli_enrol,
    cli_graph,
    cli_keys,
    cli_ledger,
    cli_release,
    cli_search,
    cli_signers,
    cli_status,
    enrolment,
)
from site_agent.agent import Agent
from site_agent.cli_options import HERE, HomeOption, JsonOption, MemoryOption, ThreadsOption
from site_agent.config import Home
from site_agent.sections import Kind
from site_agent.software import version
from site_agent.status import places
from site_agent.sums.cli import roster_app, sums_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turns a hospital's events into a gated, approved and sealed release, and takes the code map back. "
    "Nothing leaves before `approve`; the agent only dials out.",
)

app.add_typer(cli_signers.app, name="signer")
app.add_typer(cli_ledger.app, name="ledger")
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_cohort.app, name="cohort")
app.add_typer(sums_app, name="sums")
app.add_typer(roster_app, name="roster")


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
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="File of mode 0600 with a passphrase for the site's own key; none if left out."),
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
        passphrase=None if passphrase_file is None else lambda: passphrase_from_file(passphrase_file),
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
    # What reads and counts tables is imported where it is used: `site-agent run` needs none of it.
    from site_agent.doctor import examine  # noqa: PLC0415
    from site_agent.doctor.page import page  # noqa: PLC0415
    from site_agent.doctor.terminal import as_json, show  # noqa: PLC0415

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
    confirm: Annotated[
        Path | None, typer.Option(help="welcome-SITE.json from the coordinator: take it in.")
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(help="With --confirm: the fingerprint that the coordinator told you; does not ask."),
    ] = "",
    anew: Annotated[
        bool,
        typer.Option("--anew", help="This home comes from an old backup: take new keys for it first."),
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(help="With --anew: file of mode 0600 with a passphrase for the new key.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the enrolment file for the coordinator, which holds public keys only; or take its welcome in."""
    if confirm is not None:
        cli_enrol.confirm(Home(home), confirm, fingerprint, json=json)
        return
    site = cli_enrol.anew(Home(home), passphrase_file, json=json) if anew else Home(home)
    path, keys = enrolment.write_enrolment(site, contact)
    if json:
        print_json({"file": str(path), "fingerprint": keys.fingerprint})
        return
    out.print(f"Send {path} to the coordinator. This site's fingerprint is [bold]{keys.fingerprint}[/]:")
    out.print("tell it to the coordinator by telephone, not in the same message.")
    out.print(
        f"When its welcome comes: site-agent enroll --confirm welcome-{site.config.site}.json --home {home}"
    )


cli_release.add_to(app)


@app.command(epilog="Example: site-agent run --home north")
def run(
    home: HomeOption = HERE,
    until_delivered: Annotated[
        bool, typer.Option("--until-delivered", help="Leave once a published release has arrived.")
    ] = False,
    agent_only: Annotated[
        bool, typer.Option("--agent-only", help="No connection: another account runs site-agent connect.")
    ] = False,
) -> None:
    """Stay connected: answer calls with the approved release, take in results."""
    from site_agent.run import run_agent  # noqa: PLC0415 - Flower takes seconds to import

    site = Home(home)
    logs.configure("site-agent", site=site.config.site, hide=places(site))
    run_agent(
        Agent(site),
        say=logs.speaker(lambda text: out.print(text, markup=False)),
        stop=stop_event(),
        until_delivered=until_delivered,
        agent_only=agent_only,
    )


cli_connect.add_to(app)
cli_enrol.add_to(app)
cli_airgap.add_to(app)
cli_search.add_to(app)
cli_graph.add_to(app)
cli_status.add_to(app)


@app.command(epilog="Example: site-agent apply --home north")
def apply(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Join the newest published release to this site's code list: harmonised.csv and .parquet."""
    applied = Agent(Home(home)).apply()
    if json:
        print_json({"version": applied.version, "file": str(applied.path), "codes": applied.states})
        return
    table(f"Version {applied.version}", ["state", "codes"], [[k, v] for k, v in applied.states.items()])
    out.print(f"Wrote {applied.path}")


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
