"""`coordinator cohort`: asks the sites how many patients like this they have, and learns the total only."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.sums.outcome import signed_outcome
from coordinator.sums.record import SumStore
from protocol.cohort import Profile, Sex
from protocol.console import out, print_json, shown, table
from protocol.errors import UsageError

app = typer.Typer(
    no_args_is_help=True, help="Ask how many patients like this all sites together have, by secure sum."
)

NameArgument = Annotated[str, typer.Argument(help="The question's name.")]
DayOption = Annotated[str, typer.Option(help="YYYY-MM-DD.")]


@app.command(
    epilog="Example: coordinator cohort ask hf-1 --profile heart-failure.json --least 0.6 --age 65- --home hub"
)
def ask(
    name: Annotated[str, typer.Argument(help="A new name: 1 to 24 of a-z, 0-9 and -.")],
    profile: Annotated[
        Path | None, typer.Option(help="JSON file of standard codes and weights: patients like this.")
    ] = None,
    least: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Smallest cosine of a patient with the profile.")
    ] = None,
    having: Annotated[
        list[str] | None,
        typer.Option("--with", help="Only patients with this standard code; may be repeated."),
    ] = None,
    lacking: Annotated[
        list[str] | None,
        typer.Option("--without", help="Only patients without this standard code; may be repeated."),
    ] = None,
    age: Annotated[
        str, typer.Option(help="In years at the last event in the window: 50-70, 65- or -40.")
    ] = "",
    sex: Annotated[list[str] | None, typer.Option(help="female or male; may be repeated.")] = None,
    seen_from: DayOption = "",
    seen_to: DayOption = "",
    window_from: Annotated[str, typer.Option(help="Events from this day on count: YYYY-MM-DD.")] = "",
    window_to: Annotated[str, typer.Option(help="Events until this day count: YYYY-MM-DD.")] = "",
    title: Annotated[str, typer.Option(help="For people; the profile's name if left out.")] = "",
    release: Annotated[
        int | None, typer.Option(min=1, help="The published version; the newest if left out.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days until the question expires.")] = 30,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Put a question to all sites; people there see what they would say, and approve it or not."""
    from coordinator import cohort  # noqa: PLC0415 - searching takes a second to import
    from coordinator.cli_sum import open_for_members  # noqa: PLC0415

    hub, given = Home(home), Profile.read(profile) if profile is not None else None
    conditions = cohort.Conditions(
        weights=given.codes if given else {},
        least=least,
        having=having or (),
        lacking=lacking or (),
        age=_ages(age),
        sexes=tuple(_sex(s) for s in sex or ()),
        seen=(_day(seen_from), _day(seen_to)),
        window=(_day(window_from), _day(window_to)),
    )
    asked = cohort.ask(hub, title or (given.name if given else ""), conditions, release)
    record = open_for_members(hub, name, asked, days)
    if json:
        print_json(_facts(hub, name))
        return
    assert asked.cohort is not None  # noqa: S101 - for the type checker
    table(
        f"Question {name}", ["patients", ""], [[what, shown(which, 500)] for what, which in asked.cohort.said]
    )
    out.print(f"The roster of sites and keys has fingerprint [bold]{record.proposal.roster.fingerprint}[/].")
    out.print(f"Next: coordinator sum run {name} --home {home}")


@app.command(epilog="Example: coordinator cohort status --home hub")
def status(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show all questions, and how far each is."""
    hub = Home(home)
    folders = sorted((hub.folder / "sums").glob("*/sum.json"))
    stores = [SumStore(path.parent) for path in folders]
    found = [_facts(hub, s.name) for s in stores if s.load().proposal.cohort is not None]
    if json:
        print_json(found)
        return
    rows = [[f["question"], shown(f["title"]), f["step"], f["expires"], ", ".join(f["sites"])] for f in found]
    table("Questions", ["question", "about", "step", "expires", "sites"], rows)


@app.command(epilog="Example: coordinator cohort answer hf-1 --home hub")
def answer(name: NameArgument, home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show how many patients all sites together have; no site's own number is known here."""
    from coordinator import cohort  # noqa: PLC0415

    hub = Home(home)
    found = cohort.told(hub, name)
    if json:
        print_json(
            {
                "question": name,
                "title": found.question.title,
                "total": found.total,
                "off": found.off,
                "sites": found.sites,
                "conditions": found.question.model_dump(mode="json", exclude={"title"}),
            }
        )
        return
    table(
        f"Question {name}: {shown(found.question.title)}",
        ["patients", ""],
        [[what, shown(which, 500)] for what, which in found.question.said],
    )
    out.print(f"[bold]{found.total:,}[/] patients at {', '.join(found.sites)} together.")
    out.print(
        f"Each site rounds its number and says 0 below its floor: the total may be off by up to {found.off:,}, "
        "more where a site's own floors are stricter. Who is a patient of two sites counts twice."
    )


def _facts(hub: Home, name: str) -> dict[str, Any]:
    store = SumStore(hub.folder / "sums" / name)
    record = store.load()
    question = record.proposal.cohort
    return {
        "question": name,
        "title": question.title if question else "",
        "release": question.release if question else 0,
        "conditions": dict(question.said) if question else {},
        "step": "finished" if signed_outcome(hub, name) else store.step(record) or "opened",
        "expires": record.proposal.expires,
        "roster": record.proposal.roster.fingerprint,
        "sites": record.sites,
    }


def _ages(text: str) -> tuple[int | None, int | None]:
    low, dash, high = text.partition("-")
    if text and not (dash and (low or high) and all(not part or part.isdigit() for part in (low, high))):
        raise UsageError(f"{text!r} is no range of ages", do="Write 50-70, 65- or -40")
    return int(low) if low else None, int(high) if high else None


def _sex(text: str) -> Sex:
    if text == "female":
        return "female"
    if text == "male":
        return "male"
    raise UsageError(f"{text!r} is no sex that all sites know", do="Write female or male")


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError(f"{text!r} is no date", do="Write YYYY-MM-DD") from None
