"""`site-agent cohort`: patients that resemble each other, for the site alone."""

from __future__ import annotations

import json as json_module
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from protocol.console import out, print_json, progress, shown, table
from protocol.errors import UsageError
from protocol.files import write_atomic
from site_agent import cli_fuse, cli_predict, cli_questions
from site_agent.cli_options import HERE, HomeOption, JsonOption, MemoryOption, ThreadsOption
from site_agent.config import Home

if TYPE_CHECKING:
    from site_agent.cohort import Cohort, CohortStore, Description, Filters, Space

app = typer.Typer(
    no_args_is_help=True,
    help="Patients that resemble each other. Nothing leaves, but for approved answers to questions of how many.",
)

app.add_typer(cli_questions.app, name="questions")
app.command(epilog="Example: site-agent cohort predict --outcome 'I50*' --at 2021-01-01 --home north")(
    cli_predict.predict
)
app.command(epilog="Example: site-agent cohort fuse --label 'I50*' --term CHF --compare-terms --home north")(
    cli_fuse.fuse
)

PatientOption = Annotated[str, typer.Option("--patient", help="Patients like this one.")]
CodesOption = Annotated[
    list[str] | None, typer.Option("--code", help="Patients with codes like this one; may be repeated.")
]
TextOption = Annotated[str, typer.Option("--text", help="Patients with codes whose names have these words.")]
ProfileOption = Annotated[
    Path | None, typer.Option("--profile", help="Patients like this JSON file of codes and weights.")
]
CountOption = Annotated[int, typer.Option("-k", "--k", min=1, help="How many patients, with a query.")]
LeastOption = Annotated[float, typer.Option("--least", help="Smallest cosine with the query.")]
AgeOption = Annotated[
    str, typer.Option("--age", help="In years at the last event in the window: 50-70, 65- or -40.")
]
SexOption = Annotated[
    list[str] | None, typer.Option("--sex", help="As the patients table writes it; may be repeated.")
]
FromOption = Annotated[str, typer.Option("--from", help="YYYY-MM-DD.")]
ToOption = Annotated[str, typer.Option("--to", help="YYYY-MM-DD.")]
HavingOption = Annotated[
    list[str] | None,
    typer.Option("--with", help="Only patients with this code; E11* for all that begin so; may be repeated."),
]
LackingOption = Annotated[
    list[str] | None, typer.Option("--without", help="Only patients without this code; may be repeated.")
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Compute all cosines, even where there is a search graph.")
]
FusedOption = Annotated[
    bool,
    typer.Option("--fused", help="With --patient: by the vectors of codes and notes that cohort fuse kept."),
]
SpaceOption = Annotated[
    Literal["joined", "harmonised"],
    typer.Option(
        help="By the site's own vectors of its codes too, if the build has them, or by the release's alone, as all sites."
    ),
]
ByOption = Annotated[
    Literal["code", "standard"],
    typer.Option(help="Compare the site's codes, or the standard codes that the release maps them to."),
]


@app.command(epilog="Example: site-agent cohort build --from 2020-01-01 --home north")
def build(
    first: FromOption = "",
    last: ToOption = "",
    exact: Annotated[bool, typer.Option("--exact", help="Make no search graph.")] = False,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Make a vector for each patient from the events of a window and the newest release."""
    from site_agent.cohort import NOTICE, Window, build_cohort  # noqa: PLC0415
    from site_agent.resources import resources  # noqa: PLC0415

    site, window = Home(home), Window(_day(first), _day(last))
    machine = resources(site.config.machine, memory=memory, threads=threads)
    with progress("cohort build", quiet=json) as step:
        told = build_cohort(site, window, machine=machine, progress=step, exact=exact)
    if json:
        print_json(told.model_dump(mode="json", exclude={"files"}))
        return
    rows: list[list[Any]] = [
        ["patients", told.patients],
        ["of them without a harmonised vector", told.without_vector],
        ["of them without any vector", told.without_any_vector],
        ["patients without an event in the window", told.outside],
        ["events, once a day and code", told.events],
        ["of them with a code in the release", told.covered],
        ["of them with a code that has any vector", told.covered_by_any],
        ["codes", told.codes],
        ["of them in the release: a harmonised vector", told.codes_with_vector],
        ["of them with a vector of the site's own", told.codes_with_own],
        ["of them with neither", told.codes_without_any],
        ["with a date of birth", told.with_birth],
        ["with a date of death", told.with_death],
    ]
    table(f"Patient vectors by release v{told.release}", ["", "number"], rows)
    out.print("Searched by an HNSW graph." if told.graph else "Searched exactly.")
    out.print(NOTICE)


@app.command(epilog="Example: site-agent cohort search --text 'heart failure' --age 65- -k 200 --home north")
def search(
    patient: PatientOption = "",
    code: CodesOption = None,
    text: TextOption = "",
    profile: ProfileOption = None,
    k: CountOption = 100,
    least: LeastOption = -1.0,
    age: AgeOption = "",
    sex: SexOption = None,
    first: FromOption = "",
    last: ToOption = "",
    having: HavingOption = None,
    lacking: LackingOption = None,
    exact: ExactOption = False,
    fused: FusedOption = False,
    space: SpaceOption = "joined",
    save: Annotated[
        Path | None, typer.Option(help="Write the patients to this JSON file, mode 0600.")
    ] = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Find the patients nearest to a patient, to codes, to a text or to a profile; or all that pass the filters."""
    from site_agent.cohort import NOTICE  # noqa: PLC0415

    filters = _filters(age, sex, first, last, having, lacking)
    store, cohort = _find(
        Home(home), patient, code, text, profile, k, least, filters, space, exact=exact, fused=fused
    )
    patients = _patients(store, cohort)
    document = {
        "notice": NOTICE,
        "cohort": cohort.said,
        "release": store.manifest.release,
        "space": "fused" if fused else store.space(space),
        "approximate": cohort.approximate,
        "patients": patients,
    }
    if save is not None:
        _write(save, json_module.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if json:
        print_json(document)
        return
    rows = [[shown(str(p["patient"])), p["cosine"] or ""] for p in patients[:20]]
    table(f"{len(cohort.rows):,} {shown(cohort.said)}", ["patient", "cosine"], rows)
    if len(cohort.rows) > len(rows):
        out.print(f"The first {len(rows)}; all with --json or --save.")
    if save is not None:
        out.print(f"Wrote {save}. {NOTICE}", markup=False)


@app.command(
    epilog="Example: site-agent cohort describe --with 'I50*' --age 65- --html cohort.html --home north"
)
def describe(
    patient: PatientOption = "",
    code: CodesOption = None,
    text: TextOption = "",
    profile: ProfileOption = None,
    k: CountOption = 100,
    least: LeastOption = -1.0,
    age: AgeOption = "",
    sex: SexOption = None,
    first: FromOption = "",
    last: ToOption = "",
    having: HavingOption = None,
    lacking: LackingOption = None,
    exact: ExactOption = False,
    fused: FusedOption = False,
    space: SpaceOption = "joined",
    by: ByOption = "code",
    censoring: Annotated[
        Literal["last-event", "data-end"],
        typer.Option(help="Until when the living were observed: data-end only where every death is known."),
    ] = "last-event",
    html: Annotated[Path | None, typer.Option(help="Write a page with plots too, mode 0600.")] = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Compare a cohort with the other patients of the same age, sex and days: codes and survival."""
    from site_agent.cohort import describe as compare  # noqa: PLC0415
    from site_agent.cohort.page import page  # noqa: PLC0415

    filters = _filters(age, sex, first, last, having, lacking)
    store, cohort = _find(
        Home(home), patient, code, text, profile, k, least, filters, space, exact=exact, fused=fused
    )
    found = compare(store, cohort, filters, by=by, censoring=censoring)
    if html is not None:
        _write(html, page(found, store.manifest))
    if json:
        print_json(_as_json(found) | {"space": "fused" if fused else store.space(space)})
        return
    _show(found)
    if html is not None:
        out.print(f"Wrote {html}. It must not leave the site.", markup=False)


@app.command(epilog="Example: site-agent cohort subgroups --with 'I50*' --groups 3 --home north")
def subgroups(
    patient: PatientOption = "",
    code: CodesOption = None,
    text: TextOption = "",
    profile: ProfileOption = None,
    k: CountOption = 100,
    least: LeastOption = -1.0,
    age: AgeOption = "",
    sex: SexOption = None,
    first: FromOption = "",
    last: ToOption = "",
    having: HavingOption = None,
    lacking: LackingOption = None,
    exact: ExactOption = False,
    space: SpaceOption = "joined",
    by: ByOption = "code",
    groups: Annotated[
        int, typer.Option(min=0, max=20, help="How many; 0 for as many as come back in bootstrap samples.")
    ] = 0,
    method: Annotated[Literal["k-means", "mixture"], typer.Option(help="How to divide.")] = "k-means",
    repeats: Annotated[int, typer.Option(min=10, max=1000, help="Bootstrap samples.")] = 50,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Divide a cohort into subgroups, and say whether they come back in bootstrap samples."""
    from site_agent.cohort import NOTICE, find_subgroups  # noqa: PLC0415

    filters = _filters(age, sex, first, last, having, lacking)
    store, cohort = _find(Home(home), patient, code, text, profile, k, least, filters, space, exact=exact)
    with progress("subgroups", quiet=json) as step:
        grouping, found = find_subgroups(
            store, cohort, groups, method=method, repeats=repeats, by=by, space=space, progress=step
        )
    if json:
        parts = [
            {"patients": g.patients, "jaccard": g.jaccard, "codes": [vars(c) for c in g.codes[:20]]}
            for g in found
        ]
        print_json(
            {
                "notice": NOTICE,
                "space": store.space(space),
                "rand": grouping.rand,
                "stable": grouping.stable,
                "groups": parts,
            }
        )
        return
    rows = [
        [
            i + 1,
            g.patients,
            g.jaccard,
            ", ".join(shown(f"{c.code} {c.name}", 40) for c in g.codes[:4] if c.low > 1),
        ]
        for i, g in enumerate(found)
    ]
    table(
        f"Subgroups of {shown(cohort.said)}, by {store.space(space)} vectors",
        ["group", "patients", "Jaccard", "more often"],
        rows,
    )
    if len(found) == 1:
        out.print("No division comes back in bootstrap samples: this cohort has no stable subgroups.")
    elif not grouping.stable:
        out.print("A group with a Jaccard index below 0.75 is a cut through a cloud, and no finding.")


def _find(
    home: Home,
    patient: str,
    code: list[str] | None,
    text: str,
    profile: Path | None,
    k: int,
    least: float,
    filters: Filters,
    space: Space,
    *,
    exact: bool,
    fused: bool = False,
) -> tuple[CohortStore, Cohort]:
    from site_agent.cohort import Asking, CohortStore, find_cohort, patient_index  # noqa: PLC0415

    if sum(bool(given) for given in (patient, code, text, profile)) > 1:
        raise UsageError("A cohort has one query", do="Give one of --patient, --code, --text and --profile")
    if fused and not patient:
        raise UsageError("Fused vectors are asked with a patient", do="Give --patient, or leave --fused out")
    store = CohortStore.open(home)
    asking, query = Asking(home, store, space), None
    if fused:
        from site_agent.cohort.fused import FusedVectors  # noqa: PLC0415
        from site_agent.cohort.index import PatientIndex  # noqa: PLC0415

        vectors = FusedVectors.open(home, store).vectors
        query = asking.patient(patient, vectors)
        return store, find_cohort(store, query, filters, k=k, least=least, index=PatientIndex(vectors))
    if patient:
        query = asking.patient(patient)
    elif code:
        query = asking.codes(code)
    elif text:
        query = asking.text(text)
    elif profile is not None:
        query = asking.profile(profile)
    index = None if query is None else patient_index(store, space=space, exact=exact)
    return store, find_cohort(store, query, filters, k=k, least=least, index=index)


def _filters(
    age: str,
    sex: list[str] | None,
    first: str,
    last: str,
    having: list[str] | None,
    lacking: list[str] | None,
) -> Filters:
    from site_agent.cohort import Filters  # noqa: PLC0415

    low, dash, high = age.partition("-")
    if age and not (dash and (low or high) and all(not part or part.isdigit() for part in (low, high))):
        raise UsageError(f"{age!r} is no range of ages", do="Write 50-70, 65- or -40")
    return Filters(
        age=(int(low) if low else None, int(high) if high else None),
        sexes=tuple(sex or ()),
        seen=(_day(first), _day(last)),
        having=tuple(having or ()),
        lacking=tuple(lacking or ()),
    )


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise UsageError(f"{text!r} is no date", do="Write YYYY-MM-DD") from None


def _patients(store: CohortStore, cohort: Cohort) -> list[dict[str, Any]]:
    cosines = [None] * len(cohort.rows) if cohort.cosine is None else cohort.cosine.tolist()
    return [
        {"patient": store.label(int(row)), "cosine": cosine}
        for row, cosine in zip(cohort.rows, cosines, strict=True)
    ]


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UsageError(
            f"The file {path} cannot be written", why=str(error.strerror or error), do="Name another file"
        ) from None


def _show(found: Description) -> None:
    from site_agent.cohort.page import DAYS  # noqa: PLC0415

    out.print(f"{found.cohort:,} {shown(found.said)}, beside {found.rest:,} others")
    codes = [c for c in found.codes if not c.asked][:20]
    rows = [
        [shown(c.code), shown(c.name, 50), c.cohort, c.rest, c.lift, f"{c.low:.2f} to {c.high:.2f}"]
        for c in codes
    ]
    table(
        "Codes that the cohort has more often",
        ["code", "name", "cohort", "rest", "lift", "95 % interval"],
        rows,
    )
    if found.lives is None:
        out.print("No date of death is known: no survival.")
        return
    lives = found.lives
    survived = []
    for day in DAYS:
        cells = [curve.at(day) for curve in (lives.cohort, lives.rest)]
        if any(cells):
            survived.append(
                [day, *("" if c is None else f"{c[0]:.3f} ({c[1]:.3f} to {c[2]:.3f})" for c in cells)]
            )
    table(f"Survival from {lives.begin}", ["days", "cohort", "rest"], survived)


def _as_json(found: Description) -> dict[str, Any]:
    from site_agent.cohort import NOTICE  # noqa: PLC0415

    document: dict[str, Any] = {
        "notice": NOTICE,
        "cohort": {"said": found.said, "patients": found.cohort},
        "rest": {"patients": found.rest},
        "codes": [vars(c) for c in found.codes],
        "survival": None,
    }
    if found.lives is not None:
        curves = {"cohort": found.lives.cohort, "rest": found.lives.rest}
        document["survival"] = {"begin": found.lives.begin, "left_out": found.lives.left_out} | {
            name: {
                "patients": c.patients,
                "median": c.median,
                "longest": c.longest,
                "steps": [
                    {
                        "day": int(t),
                        "share": float(s),
                        "low": float(low),
                        "high": float(high),
                        "at_risk": int(n),
                        "deaths": int(d),
                    }
                    for t, s, low, high, n, d in zip(
                        c.time, c.share, c.low, c.high, c.at_risk, c.deaths, strict=True
                    )
                ],
            }
            for name, c in curves.items()
        }
    return document
