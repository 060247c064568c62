"""`coordinator simulate` and `coordinator evaluate`: methods compared on simulated data, a release scored."""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from protocol.console import Step, out, print_json, progress, table
from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.keys import PublicKeys
from protocol.messages import Invitation

if TYPE_CHECKING:
    from coordinator.evaluation import Estimate
    from coordinator.scoring.scores import Score
    from coordinator.simulation.experiment import Job
    from coordinator.simulation.methods import Measured
    from coordinator.simulation.results import Line, ResultFile

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def simulate(
    output: Annotated[Path, typer.Option(help="Folder of the results; one with results is gone on with.")],
    settings: Annotated[
        str, typer.Option(help="Which settings: 1 sources, 2 kappa, 3 clusters, 4 pairs.")
    ] = "1,2,3,4",
    replications: Annotated[int, typer.Option(min=1, max=10_000, help="Data sets for each value.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first data set; the next count up.")] = 0,
    methods: Annotated[
        str,
        typer.Option(help="Names with commas between; a rival's name alone means all of its clusterings."),
    ] = "all",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes that run at a time.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="A fifth of the codes and clusters: to try the command.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Compare SMILE with its rivals on simulated data of known truth, in the SMILE paper's four settings."""
    from coordinator.simulation import experiment  # noqa: PLC0415 - scikit-learn takes a second to import
    from coordinator.simulation.figure import draw_experiment  # noqa: PLC0415
    from coordinator.simulation.results import ResultFile, as_records, summarise, write_summary  # noqa: PLC0415

    chosen, names = experiment.chosen_settings(settings), experiment.chosen_methods(methods)
    base = experiment.SMALL if quick else experiment.Design()
    seeds = range(seed, seed + replications)
    file = ResultFile(output, base, chosen)
    todo = file.missing(experiment.jobs(chosen, base, seeds), names)
    with progress("simulate", quiet=json) as step:
        experiment.run(todo, processes=jobs, done=_recorder(file, len(todo), step))
    rows = [
        row
        for row in experiment.rows(file.results, chosen, base)
        if row.method in names and row.seed in seeds
    ]
    lines = summarise(rows)
    files = [file.path, write_summary(output, lines), *draw_experiment(output, lines)]
    errors = sorted({f"{row.method}: {row.error}" for row in rows if row.error})
    if json:
        print_json({"files": [str(f) for f in files], "errors": errors, "summary": as_records(lines)})
        return
    _show_experiment(lines, {n: s.title for n, s in experiment.SETTINGS.items()})
    for error in errors[:20]:
        out.print("[yellow]failed:[/]", end=" ")
        out.print(error, markup=False)
    out.print("Wrote " + ", ".join(map(str, files)), markup=False)


def _recorder(file: ResultFile, total: int, step: Step) -> Callable[[Job, list[Measured]], None]:
    """Writes each replication down when it ends, and says how fast it goes."""
    start, ended = time.monotonic(), 0

    def done(job: Job, measured: list[Measured]) -> None:
        nonlocal ended
        file.add(job, measured)
        ended += 1
        rate = ended / max(time.monotonic() - start, 1e-9)
        left = (total - ended) / rate
        step(f"{ended} of {total} data sets, {60 * rate:.1f} a minute, {_duration(left)} left", ended / total)

    step(f"0 of {total} data sets", 0.0)
    return done


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _show_experiment(lines: Sequence[Line], titles: dict[int, str]) -> None:
    for setting in sorted({line.setting for line in lines}):
        rows: list[list[str]] = []
        last = None
        for line in (each for each in lines if each.setting == setting):
            figures = [line.figures[c] for c in ("accuracy_u", "accuracy_centers", "ami")]
            lead = line.lead.get("ami")
            kappa = line.figures["kappa"].mean
            rows.append(
                [
                    f"{line.value:g}" if line.value != last else "",
                    line.method + (f" ({line.failed} failed)" if line.failed else ""),
                    *(_short(figure) for figure in figures),
                    _short(lead) if lead else "",
                    f"{kappa:.1f}" if kappa == kappa else "",  # noqa: PLR0124 - nan differs from itself
                ]
            )
            last = line.value
        columns = ["", "method", "U", "centers", "AMI", "lead in AMI", "kappa"]
        table(f"Setting {setting}: {titles[setting]}", columns, rows)
    out.print(
        "U and centers: accuracy. ± is one standard error over data sets. Lead: SMILE less the method, paired."
    )


def _short(estimate: Estimate) -> str:
    """For example `.893±.004`; empty where there is no figure."""
    if estimate.mean != estimate.mean:
        return ""
    error = "" if estimate.error != estimate.error else f"±{estimate.error:.3f}"
    return re.sub(r"\b0\.", ".", f"{estimate.mean:.3f}{error}")


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A published release, for example releases/v1.")],
    truth: Annotated[Path, typer.Option(help="CSV (system, code, concept) of what codes mean.")],
    output: Annotated[Path, typer.Option(help="Folder for the scores and their figure.")],
    pairs: Annotated[
        Path | None,
        typer.Option(help="CSV (system_1, code_1, system_2, code_2, kind, optional label and similarity)."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Groups that AMI is given for: system, or a column of the truth file.")
    ] = "system",
    with_anchored: Annotated[
        bool, typer.Option("--with-anchored", help="Score codes too that an anchor gave away.")
    ] = False,
    nulls: Annotated[
        int, typer.Option(min=1, max=1000, help="Negatives drawn for a pair of a kind without given ones.")
    ] = 10,
    invitation: Annotated[
        Path | None,
        typer.Option(help="The coordinator's invitation.json: check the signature with its keys."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of drawn negatives and of resampling.")] = 0,
    json: JsonOption = False,
) -> None:
    """Score a published release against truth: clusters, retrieval of standard codes, pairs; with intervals."""
    from coordinator.scoring import scores  # noqa: PLC0415 - pyarrow, scikit-learn
    from coordinator.scoring import truth as files  # noqa: PLC0415
    from coordinator.scoring.figure import draw_scores  # noqa: PLC0415

    release = files.read_published(folder, _keys(invitation))
    known = files.read_truth(truth, release)
    if by != files.CODE_SYSTEM and not any(by in row for row in known.columns.values()):
        raise UsageError(
            f"The truth file {truth} has no column {by!r}", do="Name one of its columns after --by"
        )
    labelled, graded = files.read_pairs(pairs, release) if pairs else ([], [])
    with progress("evaluate", quiet=json) as step:
        test = scores.scored_codes(release, known, with_anchored=with_anchored)
        step(f"clusters of {test.sum():,} codes", 0.1)
        found = scores.cluster_scores(release, known, test, by, seed=seed)
        step("standard codes of local codes", 0.5)
        found += scores.retrieval_scores(release, known, test, seed=seed)
        step("pairs", 0.7)
        open_codes = release if with_anchored else release.only(~release.touched)
        found += scores.pair_scores(open_codes, labelled, known, nulls=nulls, seed=seed)
        found += scores.graded_scores(open_codes, graded, seed=seed)
    if not found:
        raise UsageError(
            "There is nothing to score",
            why=f"of {len(release.codes):,} codes {test.sum():,} have a known concept and no anchor, and no pair is given",
            do="Give a truth of more codes, --pairs, or --with-anchored",
        )
    title = f"{release.manifest.study['id']}, version {release.manifest.version}: {test.sum():,} codes scored"
    written = [_write_scores(output, found), *draw_scores(output, found, title)]
    notes = _notes(release.signed, with_anchored, len(labelled) + len(graded))
    if json:
        print_json(
            {
                "version": release.manifest.version,
                "scored": int(test.sum()),
                "signature": "checked" if release.signed else "own keys",
                "scores": [_record(score) for score in found],
                "notes": notes,
                "files": [str(f) for f in written],
            }
        )
        return
    _show_scores(title, found)
    for note in notes:
        out.print(note, markup=False)
    out.print("Wrote " + ", ".join(map(str, written)), markup=False)


def _keys(invitation: Path | None) -> PublicKeys | None:
    if invitation is None:
        return None
    try:
        return Invitation.model_validate_json(invitation.read_bytes()).keys
    except (OSError, ValidationError):
        raise UsageError(
            f"{invitation} is no invitation", do="Name the invitation.json of the coordinator's home folder"
        ) from None


def _notes(signed: bool, with_anchored: bool, pairs: int) -> list[str]:
    notes = ["± is one standard error; the interval holds the true value in 95 of 100 such samples."]
    if with_anchored:
        notes.append(
            "Anchored codes are scored too: their answers were given to the fit, so the scores are too good."
        )
    if pairs:
        notes.append("Pairs count as independent: where many share a code, their intervals are too narrow.")
    if not signed:
        notes.append(
            "The files are those of the manifest; who signed it was not checked: add --invitation for that."
        )
    return notes


def _record(score: Score) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and v != v else round(v, 6) if isinstance(v, float) else v  # noqa: PLR0124
        for k, v in asdict(score).items()
    }


def _write_scores(folder: Path, found: Sequence[Score]) -> Path:
    text = io.StringIO()
    records = [_record(score) for score in found]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    try:
        write_atomic(folder / "scores.csv", text.getvalue(), mode=0o644)
    except OSError as error:
        raise UsageError(
            f"The scores cannot be written to {folder}", why=str(error.strerror), do="Name another folder"
        ) from None
    return folder / "scores.csv"


def _show_scores(title: str, found: Sequence[Score]) -> None:
    table(
        title,
        ["metric", "of", "n", "value", "95 % interval", "chance", ""],
        [
            [
                s.metric,
                s.group,
                s.n,
                f"{s.value:.3f} ± {s.error:.3f}",
                f"{s.low:.3f} to {s.high:.3f}",
                f"{s.chance:.3f}",
                s.detail,
            ]
            for s in found
        ],
    )
