"""`site-agent cohort fuse`: codes and notes in one vector, learnt from a label, beside either alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from protocol.console import out, print_json, progress, shown, table
from protocol.errors import UsageError
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home


def fuse(
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Patients with this code, or its beginning and *; may be repeated."),
    ] = None,
    flags: Annotated[
        Path | None, typer.Option("--flags", help="Instead: a CSV file with the columns patient and flag.")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="A code that no vector may know, as those the flag was made of."),
    ] = None,
    term: Annotated[
        list[str] | None,
        typer.Option(
            "--term",
            help="Leave out sentences with this word or phrase, beside those with words of the label's codes.",
        ),
    ] = None,
    compare_terms: Annotated[
        bool, typer.Option("--compare-terms", help="Also learn from notes with these sentences left in.")
    ] = False,
    keep: Annotated[
        Literal["gated", "concatenated", "text", "codes", "none"],
        typer.Option(help="Whose vectors are kept for cohort search --fused."),
    ] = "gated",
    seeds: Annotated[int, typer.Option(min=2, max=50, help="Splits of the patients.")] = 5,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Join codes and notes in one vector by a gate that is learnt from a label, and compare. Needs torch."""
    from site_agent.cohort import NOTICE, fusing  # noqa: PLC0415

    if bool(label) == (flags is not None):
        raise UsageError("A representation is learnt from one label", do="Give --label, or --flags")
    wanted = fusing.Wanted(
        codes=tuple(label or ()),
        flags=flags,
        left_out=tuple(leave_out or ()),
        terms=tuple(term or ()),
        compare_terms=compare_terms,
        keep=keep,
        seeds=seeds,
    )
    with progress("cohort fuse", quiet=json) as step:
        report = fusing.fuse(Home(home), wanted, progress=step)
    if json:
        print_json({"notice": NOTICE, **report})
        return
    _show(report)
    out.print(NOTICE)


def _show(report: dict[str, Any]) -> None:
    rows = []
    for name, way in report["ways"].items():
        area, gain = way["area"], way["gain"]
        rows.append(
            [
                name,
                f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})",
                "" if gain is None else f"{gain['value']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})",
                f"{way['random']:.3f} ± {way['spread'][1]:.3f}",
                f"{way['hard']:.3f} ± {way['spread'][2]:.3f}",
                "" if way["gate"] is None else f"{way['gate']:.2f}",
            ]
        )
    table(
        f"The label {shown(report['label'])}: area under the precision-recall curve, and pairs of patients",
        ["", "area (95 %)", "gated less this", "pairs", "hard pairs", "share of codes"],
        rows,
    )
    learn, stop, asked = report["patients"]
    out.print(
        f"{report['seeds']} splits: learnt from {learn + stop:,} patients, asked about {asked:,}; {report['with_label']:.3f} is "
        "chance for the area, 0.5 for pairs (± standard deviation over the splits)."
    )
    notes = report["notes"]
    removed = ", ".join(f"{kind} {n:,}" for kind, n in notes["removed"].items()) or "nothing"
    out.print(
        f"{notes['notes']:,} notes of {notes['patients']:,} patients by the encoder {report['encoder']}; of {notes['lines']:,} "
        f"lines {notes['templates']:,} belong to forms and {notes['copied']:,} were copied forward. "
        f"{notes['terms']:,} sentences were left out for words of the label. Taken out by rules: {removed}. Rules miss "
        "some: nothing here is anonymous."
    )
    if report["left_out"]:
        few = ", ".join(shown(code) for code in report["left_out"][:12])
        more = len(report["left_out"]) - 12
        out.print(f"Codes that no vector knows: {few}{f' and {more:,} more' if more > 0 else ''}.")
    if report["kept"] != "none":
        out.print(
            f"The {report['kept']} vectors are kept: site-agent cohort search --patient ID --fused finds by them."
        )
