"""`site-agent cohort questions`: a person sees what the consortium asks, and what this site would say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.cohort import Profile
from protocol.console import out, print_json, progress, shown, table
from protocol.errors import UsageError
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home
from site_agent.ledger import Ledger
from site_agent.sums.approval import approved_by
from site_agent.sums.folder import CohortAnswer, SumFolder, SumPreview

app = typer.Typer(
    no_args_is_help=True,
    help="How many patients like this? Questions of the consortium, of which it learns the total only.",
)

NameArgument = Annotated[str, typer.Argument(help="The question's name.")]


@app.command("list", epilog="Example: site-agent cohort questions list --home north")
def list_(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show the questions that were asked, and what each waits for."""
    site = Home(home)
    folder = SumFolder(site.folder / "sums")
    found = [_facts(site, folder, n) for n in folder.names() if folder.proposal(n).cohort is not None]
    if json:
        print_json(found)
        return
    rows = [
        [f["question"], shown(f["title"]), f["state"], f["expires"], ", ".join(f["approved_by"])]
        for f in found
    ]
    table("Questions", ["question", "about", "state", "expires", "approved by"], rows)
    rule = site.config.cohort
    out.print(f"This site answers {rule.questions} in {rule.question_days} days.")


@app.command("try", epilog="Example: site-agent cohort questions try profile.json --home north")
def try_(
    profile: Annotated[Path, typer.Argument(help="JSON file of standard codes and weights.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Count this site's patients at each threshold, to find one to ask by; nothing leaves, nothing is recorded."""
    from site_agent.cohort.asked import try_profile  # noqa: PLC0415

    with progress("profile", quiet=json) as step:
        found = try_profile(Home(home), Profile.read(profile), progress=step)
    if json:
        print_json([{"least": least, "patients": patients} for least, patients in found])
    else:
        table("Patients of this site, which stays here", ["cosine at least", "patients"], [*map(list, found)])


@app.command(epilog="Example: site-agent cohort questions preview hf-1 --home north")
def preview(name: NameArgument, home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Count who a question is about and show what would be said; nothing leaves."""
    from site_agent.cohort.asked import preview_question  # noqa: PLC0415

    site = Home(home)
    with progress("question", quiet=json) as step:
        found = preview_question(site, name, progress=step)
    if json:
        print_json({"digest": found.digest} | found.model_dump(mode="json"))
        return
    show_question(site, name, found)
    out.print(
        f"\nNothing has left. To approve: site-agent sums approve {name} --digest {found.digest[:16]} --home {home}"
    )


def show_question(site: Home, name: str, preview: SumPreview) -> None:
    """Question and answer, for the person who is to say yes.

    Raises:
        UsageError: the sum asks no question.
    """
    proposal, answer = SumFolder(site.folder / "sums").proposal(name), preview.answer
    if proposal.cohort is None or answer is None:
        raise UsageError(f"The sum {name} asks no question about a cohort")
    rows = [[what, shown(which, 500)] for what, which in proposal.cohort.said]
    table(f"Question {name}: {shown(proposal.cohort.title)}", ["patients", ""], rows)
    facts: list[list[Any]] = [
        ["patients here, which stays here", f"{answer.patients:,} of {answer.everyone:,}"],
        ["would enter the sum", _said(answer)],
        ["how it is made", f"0 below {answer.floor:,}, otherwise to the nearest {answer.step:,}"],
        [
            "who learns what",
            "the coordinator: the total of all sites; all sites but this one together: this one's",
        ],
        ["sites", f"{', '.join(sorted(proposal.roster.keys))}; at least {preview.minimum} of them"],
        ["digest to approve", preview.digest],
    ]
    table("What this site would say", ["fact", "value"], facts)
    out.print(
        "Decide by the question, not by the number: a yes to large numbers alone would tell that the others are small."
    )


def _said(answer: CohortAnswer) -> str:
    said = f"{answer.answer:,}"
    if answer.sticks_to:
        return f"{said}, as answered to {answer.sticks_to}: too few patients differ for another answer"
    if not answer.answer:
        return f"{said}: below the floor, or less than half a step; nobody can tell which, nor whether there is anyone"
    return said


def _facts(site: Home, folder: SumFolder, name: str) -> dict[str, Any]:
    proposal, preview = folder.proposal(name), folder.preview(name)
    counted = preview is not None and preview.proposal == proposal.digest
    entries = Ledger(site.folder / "ledger.jsonl").verify()
    have = approved_by(entries, preview.digest) if preview is not None and counted else ()
    if folder.pooled(name) is not None:
        state = "answered"
    elif not counted:
        state = "to be counted"
    else:
        state = "approved" if len(have) >= site.config.approval.signers else "to be approved"
    question = proposal.cohort
    return {
        "question": name,
        "title": question.title if question else "",
        "conditions": dict(question.said) if question else {},
        "state": state,
        "expires": proposal.expires,
        "approved_by": have,
    }
