"""`coordinator review`: what people say of the mappings."""

from __future__ import annotations

from typing import Annotated

import typer

from coordinator import cli_review_files
from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.cli_review_files import AsOption, account, open_reviews
from coordinator.cli_review_show import (
    facts,
    in_words,
    record_facts,
    show_records,
)
from coordinator.review.record import Decision, Relation, Verdict
from coordinator.review.reviews import Reviews
from protocol.console import out, print_json, shown, table
from protocol.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    help="Accept or reject mappings; import what people decided elsewhere; see the log of it.",
)
VersionOption = Annotated[
    int | None,
    typer.Option("--version", help="The version that is looked at; the newest that stands without it."),
]
CodeArgument = Annotated[str, typer.Argument(help="The code, as SYSTEM:CODE.")]
VerdictArgument = Annotated[str, typer.Argument(help="accept, reject or unsure.")]
TargetOption = Annotated[
    str, typer.Option(help="The standard code; the version's own standard code of the code without it.")
]
NoneOption = Annotated[bool, typer.Option("--none", help="Accept that no standard code is right.")]
CommentOption = Annotated[str, typer.Option(help="Why.")]
SystemOption = Annotated[
    list[str] | None, typer.Option("--system", help="Codes of this system only; may be repeated.")
]
_SHOWN = 20


@app.command(epilog="Example: coordinator review queue --system NORTH --limit 20 --home hub")
def queue(
    version: VersionOption = None,
    reviewer: Annotated[
        str, typer.Option("--as", help="What this person can do something about; everything without it.")
    ] = "",
    state: Annotated[str, typer.Option(help="open, accepted, rejected, unsure, conflict or all.")] = "open",
    system: SystemOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Codes to show.")] = 20,
    offset: Annotated[int, typer.Option(min=0, help="Codes to pass over.")] = 0,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """List the codes to look at: conflicts first, then the most doubtful mappings."""
    reviews = open_reviews(home)
    release = reviews.library.open(version)
    tasks = reviews.queue(
        release, reviewer=reviewer, state=state, systems=system or (), limit=limit, offset=offset
    )
    done = reviews.progress(release)
    if json:
        rows = [
            {
                "code": t.code,
                "name": t.entry.name,
                "target": t.entry.standard_code,
                "target_name": t.entry.standard_name,
                "probability": t.entry.probability,
                "alternatives": list(t.entry.alternatives),
                "doubt": t.doubt,
                "state": t.standing.state,
                "assigned": list(t.standing.assigned),
            }
            for t in tasks
        ]
        print_json({"version": release.manifest.version, "progress": done.counts, "tasks": rows})
        return
    table(
        f"Version {release.manifest.version}: to review",
        ["code", "name", "standard code", "name", "probability", "state"],
        [
            [
                shown(t.code),
                shown(t.entry.name, 60),
                shown(t.entry.standard_code),
                shown(t.entry.standard_name, 60),
                round(t.entry.probability, 3),
                t.standing.state,
            ]
            for t in tasks
        ],
    )
    out.print(
        ", ".join(f"{count:,} {name}" for name, count in done.counts.items()) + f" of {done.total:,} codes"
    )


@app.command(epilog="Example: coordinator review show NORTH:4711 --home hub")
def show(
    code: CodeArgument,
    reviewer: AsOption = "",
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Show what is hidden from a reviewer who has not decided, and what was taken back."
        ),
    ] = False,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show where a code stands and what was said of it."""
    reviews, who = open_reviews(home), reviewer or account()
    standing = reviews.standing(code) if everything else reviews.seen_by(who, code)
    records = reviews.history(code) if everything else standing.records
    if json:
        print_json({**facts(standing), "records": [record_facts(r) for r in records]})
        return
    out.print(f"[bold]{shown(standing.code)}[/] is {in_words(standing)}")
    if standing.assigned:
        out.print(f"Assigned to {shown(', '.join(standing.assigned))}")
    show_records(records)


@app.command(
    epilog="Example: coordinator review decide NORTH:4711 accept --comment 'checked the label' --as ann --home hub"
)
def decide(
    code: CodeArgument,
    verdict: VerdictArgument,
    target: TargetOption = "",
    none: NoneOption = False,
    relation: Annotated[
        str, typer.Option(help="What an accepted target is to the code: exact, broad, narrow or close.")
    ] = "",
    comment: CommentOption = "",
    reviewer: AsOption = "",
    version: VersionOption = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Say that a mapping is right, wrong, or that you are unsure; a later decision of yours replaces an earlier one."""
    reviews = open_reviews(home)
    made = reviews.decide(
        reviewer=reviewer or account(),
        code=code,
        target=_target(reviews, code, target, verdict, version, none=none),
        verdict=_verdict(verdict),
        comment=comment,
        version=version,
        relation=_relation(relation),
    )
    _say(reviews, made, reviewer or account(), json=json)


@app.command(
    epilog="Example: coordinator review comment NORTH:4711 'used for ward 3 only' --as ann --home hub"
)
def comment(
    code: CodeArgument,
    text: Annotated[str, typer.Argument(help="What to say.")],
    reviewer: AsOption = "",
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Say something of a code that is no decision."""
    reviews = open_reviews(home)
    made = reviews.comment(reviewer=reviewer or account(), code=code, text=text)
    _say(reviews, made, reviewer or account(), json=json)


@app.command(epilog="Example: coordinator review assign --first 100 --to ann --to bob --home hub")
def assign(
    codes: Annotated[list[str] | None, typer.Argument(help="The codes, as SYSTEM:CODE.")] = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="A reviewer; may be repeated.")] = None,
    first: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="As many codes from the head of the queue that nobody is asked for."
        ),
    ] = 0,
    system: SystemOption = None,
    by: AsOption = "",
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Ask reviewers for codes, each blind to what the others say; without --to an assignment ends."""
    reviews = open_reviews(home)
    wanted = list(codes or ()) + (_unassigned(reviews, first, system) if first else [])
    if not wanted:
        raise UsageError("No code is named", do="Name codes, or take the head of the queue with --first 100")
    made = reviews.assign_all(by=by or account(), codes=wanted, reviewers=to or [])
    if json:
        print_json([record_facts(r) for r in made])
        return
    who = f"assigned to {shown(' and '.join(to))}" if to else "assigned to nobody"
    out.print(f"{len(made):,} codes are {who}: records {made[0].number} to {made[-1].number}.")


@app.command(epilog="Example: coordinator review undo 17 --as ann --home hub")
def undo(
    number: Annotated[
        int, typer.Argument(min=1, help="Of the record, as `coordinator review log` shows it.")
    ],
    reviewer: AsOption = "",
    whole_file: Annotated[
        bool,
        typer.Option("--whole-file", help="Take back all that was imported from the file of this record."),
    ] = False,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take a record back, an undo too; what stood before it stands again."""
    reviews = open_reviews(home)
    if whole_file:
        gone = reviews.undo_import(reviewer=reviewer or account(), number=number, coordinator=True)
        if json:
            print_json([record_facts(r) for r in gone])
        else:
            out.print(f"Took {len(gone):,} records back.")
        return
    made = reviews.undo(reviewer=reviewer or account(), number=number, coordinator=True)
    _say(reviews, made, reviewer or account(), json=json)


@app.command(
    epilog="Example: coordinator review adjudicate NORTH:4711 accept --target SNOMED:44054006 --as carla --home hub"
)
def adjudicate(
    code: CodeArgument,
    verdict: VerdictArgument,
    target: TargetOption = "",
    none: NoneOption = False,
    comment: CommentOption = "",
    adjudicator: AsOption = "",
    version: VersionOption = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """End a conflict; whoever is part of it cannot."""
    reviews = open_reviews(home)
    made = reviews.adjudicate(
        adjudicator=adjudicator or account(),
        code=code,
        target=_target(reviews, code, target, verdict, version, none=none),
        verdict=_verdict(verdict),
        comment=comment,
        version=version,
    )
    _say(reviews, made, adjudicator or account(), json=json)


@app.command(epilog="Example: coordinator review conflicts --home hub")
def conflicts(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """List the codes on which people disagree, and who said what."""
    found = open_reviews(home).conflicts()
    if json:
        print_json([facts(s) for s in found])
        return
    rows = [
        [
            shown(s.code),
            d.number,
            shown(d.actor),
            d.verdict,
            shown(d.target or "no standard code"),
            shown(d.comment, 60),
        ]
        for s in found
        for d in s.decisions
    ]
    table(f"{len(found):,} conflicts", ["code", "record", "who", "verdict", "target", "comment"], rows)


@app.command(epilog="Example: coordinator review log --verify --home hub")
def log(
    verify: Annotated[bool, typer.Option("--verify", help="Check every record and every signature.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Records to show, the last ones.")] = _SHOWN,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show the last records of the log, and whether all of it is as it was written."""
    reviews = open_reviews(home)
    checked = reviews.verify() if verify else None
    records = reviews.log.records()
    last = records[-limit:] if limit else ()
    if json:
        known = {} if checked is None else {"head": checked.head, "doubtful": list(checked.doubtful)}
        print_json({"records": len(records), **known, "log": [record_facts(r) for r in last]})
        return
    show_records(last, code=True)
    if checked is not None:
        out.print(
            f"All {checked.records:,} records are as they were written; head {checked.head[:12] or 'none'}."
        )
        if checked.doubtful:
            some = ", ".join(str(n) for n in checked.doubtful[:_SHOWN])
            out.print(
                f"{len(checked.doubtful):,} were signed with a key after it was lost: {some}. Undo what nobody remembers."
            )


cli_review_files.add_to(app)


# --- Details -------------------------------------------------------------------------------------------


def _verdict(text: str) -> Verdict:
    found: dict[str, Verdict] = {"accept": "accept", "reject": "reject", "unsure": "unsure"}
    if text not in found:
        raise UsageError(f"There is no verdict {text!r}", do="Say accept, reject or unsure")
    return found[text]


def _relation(text: str) -> Relation:
    found: dict[str, Relation] = {
        "": "",
        "exact": "exact",
        "broad": "broad",
        "narrow": "narrow",
        "close": "close",
    }
    if text not in found:
        raise UsageError(f"There is no relation {text!r}", do="Say exact, broad, narrow or close")
    return found[text]


def _target(
    reviews: Reviews, code: str, target: str, verdict: str, version: int | None, *, none: bool
) -> str:
    """The target that is meant: the version's own where nobody names one."""
    if none:
        if target or verdict != "accept":
            raise UsageError(
                "--none accepts that there is no standard code", do="Leave out --target, and say accept"
            )
        return ""
    return target or reviews.library.open(version).entry(code).standard_code


def _unassigned(reviews: Reviews, first: int, system: list[str] | None) -> list[str]:
    release, found, offset = reviews.library.open(), list[str](), 0
    while len(found) < first:
        page = reviews.queue(release, systems=system or (), limit=1000, offset=offset)
        if not page:
            break
        found += [t.code for t in page if not t.standing.assigned and t.standing.state == "open"]
        offset += len(page)
    return found[:first]


def _say(reviews: Reviews, made: Decision, who: str, *, json: bool) -> None:
    if json:
        print_json(record_facts(made))
        return
    out.print(f"Record {made.number}: {shown(made.code)} is {in_words(reviews.seen_by(who, made.code))}.")
