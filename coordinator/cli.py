"""`coordinator`: what the consortium's coordinator runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator import (
    cli_backup,
    cli_cohort,
    cli_graph,
    cli_knowledge,
    cli_research,
    cli_review,
    cli_round,
    cli_search,
    cli_serve,
    cli_sites,
    cli_study,
    cli_sum,
    cli_token,
    cli_versions,
    rounds,
    setup,
)
from coordinator.cli_options import HERE, HomeOption, JsonOption, RoundArgument
from coordinator.config import Home
from coordinator.exports.formats import FORMATS
from coordinator.store import Store
from coordinator.version import VERSION
from protocol.console import out, print_json, progress, run_app, table
from protocol.errors import UsageError
from protocol.keyfile import passphrase_from_file
from protocol.messages import Invitation
from protocol.signed import parse

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Enrols sites, runs rounds, fits SMILE to what the sites released, and publishes harmonised code maps.",
)
cli_sites.add_to(app)
cli_versions.add_to(app)
cli_search.add_to(app)
cli_round.add_to(app)
cli_backup.add_to(app)
app.add_typer(cli_cohort.app, name="cohort")
app.add_typer(cli_graph.app, name="graph")
app.add_typer(cli_knowledge.app, name="knowledge")
app.add_typer(cli_review.app, name="review")
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_sum.sum_app, name="sum")
app.add_typer(cli_token.app, name="token")


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        out.print(VERSION)
        raise typer.Exit


@app.command(epilog="Example: coordinator init hub --study study.toml --address hub.example:9443")
def init(
    folder: Annotated[Path, typer.Argument(help="New home folder of the coordinator.")] = HERE,
    study: Annotated[Path | None, typer.Option(help="The study file that all parties share.")] = None,
    address: Annotated[
        str, typer.Option(help="host:port under which the sites will reach this machine.")
    ] = "",
    listen: Annotated[str, typer.Option(help="Interface that the fleet proxy listens on.")] = "0.0.0.0",  # noqa: S104
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            help="File of mode 0600 whose first line protects the keys; SMILE_PASSPHRASE_FILE later names it."
        ),
    ] = None,
    example_study: Annotated[
        bool, typer.Option("--example-study", help="Print an example of a study file and stop.")
    ] = False,
) -> None:
    """Make the coordinator's home folder: keys, certificates, Flower bundle, invitation."""
    if example_study:
        typer.echo(setup.EXAMPLE_STUDY, nl=False)
        return
    if study is None or not address:
        raise UsageError(
            "init needs --study and --address",
            do="For a study file to start from: coordinator init --example-study > study.toml",
        )
    given = (lambda: passphrase_from_file(passphrase_file)) if passphrase_file else None
    home = setup.init_home(folder, study=study, address=address, listen=listen, passphrase=given)
    if passphrase_file:
        out.print("Its keys open with the passphrase only: set SMILE_PASSPHRASE_FILE, or type it when asked.")
    out.print(f"Made {folder} for study {home.study.id}, digest {home.study.digest[:12]}.")
    invited = parse((folder / "invitation.json").read_bytes(), Invitation).keys
    out.print(f"This coordinator's fingerprint is [bold]{invited.fingerprint}[/].")
    out.print(
        f"Give every site {folder / 'invitation.json'} and {folder / 'study.toml'}; tell the fingerprint by telephone."
    )
    out.print(f"Next: coordinator serve --home {folder}")


@app.command(epilog="Example: coordinator fit 2026-q4 --home hub")
def fit(
    name: RoundArgument,
    home: HomeOption = HERE,
    accept_site: Annotated[
        list[str] | None,
        typer.Option(help="Use this site's release and its changes in spite of the checks; needs --because."),
    ] = None,
    because: Annotated[str, typer.Option(help="Why; recorded in the fit and in the report.")] = "",
    json: JsonOption = False,
) -> None:
    """Check the accepted releases of a round beside each other, and fit SMILE to those that pass."""
    from coordinator import cli_checks  # noqa: PLC0415 - scikit-learn takes a second to import
    from coordinator.fitting import fit_round  # noqa: PLC0415

    hub = Home(home)
    store = Store(hub.database_url)
    accepted = cli_checks.accepted_sites(accept_site, because, hub.study)
    with rounds.exclusive(hub), progress("fit", quiet=json) as step:
        step("opening releases", 0.0)
        result = fit_round(hub, store, name, accepted=accepted, progress=step)
    learnt = result.calibration
    found_again = f"{learnt.right:.0%} of {learnt.n}" if learnt.n else "too few to hide"
    facts: dict[str, Any] = {
        "round": name,
        "codes": len(result.union.codes),
        "rows": result.union.n_rows,
        "clusters": result.n_clusters,
        "dim": int(result.fit.embedding.shape[1]),
        "kappa": round(float(result.fit.kappa), 2),
        "method": hub.study.fit.method,
        "hidden anchors found again": found_again,
        "beside the releases": "; ".join(b.detail for b in result.background) or "nothing",
        "site recognised": result.audit.words or "too few codes are shared to ask",
        "warnings": list(result.warnings),
    }
    if json:
        print_json(facts | {"audit": result.audit.facts()} | cli_checks.check_facts(result.screening))
        return
    cli_checks.show_checks(result.screening)
    table(
        f"Fit of round {name}", ["fact", "value"], [[k, str(v)] for k, v in facts.items() if k != "warnings"]
    )
    for warning in facts["warnings"]:
        out.print(f"[yellow]warning:[/] {warning}")
    out.print(f"Next: coordinator publish {name} --home {home}")


@app.command(epilog="Example: coordinator publish 2026-q4 --home hub")
def publish(
    name: RoundArgument,
    home: HomeOption = HERE,
    truth: Annotated[
        Path | None,
        typer.Option(help="CSV (system, code, concept) of known truth: the report then scores the map."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write, sign and number the release of a fitted round, and seal each site's copy."""
    from coordinator.publication import publish_round  # noqa: PLC0415 - torch takes a second to import

    hub = Home(home)
    store = Store(hub.database_url)
    with rounds.exclusive(hub), progress("publish", quiet=json) as step:
        made = publish_round(hub, store, name, truth=truth, progress=step)
    edition, folder, quality = made.edition, made.folder, made.quality
    rows, scored = ([vars(r) for r in quality.rows], quality.scored) if quality else ([], "")
    if json:
        print_json(
            {
                "version": edition.version,
                "folder": str(folder),
                "quality": rows,
                "scored": quality.scored if quality else "",
            }
        )
        return
    out.print(f"Published version {edition.version}: {folder}")
    if quality:
        show_quality(rows, scored)
    out.print(f"Look at {folder / 'report.html'}. Next: coordinator round deliver {name} --home {home}")


@app.command(epilog="Example: coordinator export 1 --format sssom --output map.sssom.tsv --home hub")
def export(
    version: Annotated[int, typer.Argument(min=1, help="The published version.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    form: Annotated[str, typer.Option("--format", help=f"One of: {', '.join(FORMATS)}.")] = "sssom",
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="Folder of the OMOP vocabularies from Athena; stcm, crm and usagi need it."),
    ] = None,
    at_least: Annotated[
        float, typer.Option(min=0, max=1, help="Found mappings less probable than this get no target.")
    ] = 0.0,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Copy a published map out of a verified release in an analyst's format."""
    from coordinator.exports.writing import export_release  # noqa: PLC0415 - pyarrow takes 40 MB

    hub = Home(home)
    known = [p.version for p in Store(hub.database_url).versions()]
    if version not in known:
        raise UsageError(f"There is no version {version}", why=f"published are {known or 'none'}")
    made = export_release(
        hub.release_folder(version),
        output,
        form,
        trust=hub.keys.public(),
        vocabulary=vocabulary,
        at_least=at_least,
    )
    if json:
        counts = vars(made) if made else {}
        print_json({"version": version, "format": form, "file": str(output), **counts})
        return
    out.print(f"Wrote {output}")
    if made:
        out.print(f"{made.mappings:,} codes with a target, {made.unmapped:,} without.")
    if made and made.no_target:
        out.print(f"{made.no_target:,} standard codes are no concept of the vocabulary: they got no target.")
    if made and made.no_source:
        out.print(
            f"{made.no_source:,} codes are no concept of the vocabulary and are left out: the format cannot hold them."
        )


@app.command(epilog="Example: coordinator demo --sites 3 --patients 5000 --seed 0")
def demo(
    output: Annotated[Path, typer.Option(help="New folder for the whole consortium.")] = Path("demo"),
    sites: Annotated[int, typer.Option(min=3, max=9, help="Number of hospitals.")] = 3,
    patients: Annotated[int, typer.Option(min=100, help="Patients a hospital.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="Run on real files instead: a folder with one SITE.csv or SITE.parquet a site."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the folder of an earlier demo.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a whole federation on this machine: real processes, TLS, sealed releases, one published map."""
    from coordinator.demo.federation import MARK, run_demo  # noqa: PLC0415

    if output.exists() and any(output.iterdir()):
        if not replace or not (output / MARK).exists():
            raise UsageError(
                f"The folder {output} is not empty", do="Name a new one, or add --replace for an old demo"
            )
        shutil.rmtree(output)
    run_demo(output, sites=sites, patients=patients, seed=seed, data=data, as_json=json)


app.command(epilog="Example: coordinator serve --home hub")(cli_serve.serve)
app.command(epilog="Example: coordinator simulate --output simulation --settings 1,2,3,4 --jobs 2")(
    cli_research.simulate
)
app.command(epilog="Example: coordinator evaluate releases/v1 --truth truth.csv --output scores")(
    cli_research.evaluate
)


def show_quality(rows: list[dict[str, Any]], scored: str) -> None:
    """The table of methods on the same codes."""

    def cell(row: dict[str, Any], key: str) -> str:
        value, error = row[key], row[f"{key}_se"]
        return "" if value is None else f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")

    table(
        "Planted synonyms recovered",
        ["method", "AMI", "hits@1", "hits@5"],
        [[r["method"], cell(r, "ami"), cell(r, "hits1"), cell(r, "hits5")] for r in rows],
    )
    out.print(scored, markup=False)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
