"""Earlier maps into the review log: every line is taken or reported, all that is taken in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.knowledge.systems import Systems, canonical
from coordinator.library import OpenRelease
from coordinator.review.earlier import FORMS, Form, Left, Row, read_earlier, turned
from coordinator.review.record import Decision, person, remark
from coordinator.review.reviews import Reviews
from coordinator.review.rules import seen
from coordinator.review.standing import Standing, opinions
from protocol.canonical import file_digest
from protocol.errors import UsageError
from protocol.study import StudySpec
from protocol.vocabulary import split_curie


@dataclass(frozen=True)
class Clash:
    """A line that contradicts what somebody decided.

    Attributes:
        line: in the file, from 1.
        code: the CURIE.
        verdict: of the file.
        target: of the file.
        state: of the code before.
        known: the target that is accepted, or the ones that are wrong.
        by: numbers of the records that say so.
    """

    line: int
    code: str
    verdict: str
    target: str
    state: str
    known: str
    by: tuple[int, ...]


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        source: format and digest of the file.
        taken: the rows that were recorded, or would be.
        left: the lines that were not, with reasons.
        clashes: lines that contradict decisions; in `taken` too where they were to be taken.
        records: of the log; empty for a dry run.
    """

    source: str
    taken: tuple[Row, ...]
    left: tuple[Left, ...]
    clashes: tuple[Clash, ...]
    records: tuple[Decision, ...] = ()

    def counts(self) -> dict[str, int]:
        """Verdict -> rows taken; `none` for accepted codes without a standard code, `note` for rows without a verdict."""
        found = dict.fromkeys(("accept", "none", "reject", "unsure", "note"), 0)
        for row in self.taken:
            found["none" if row.verdict == "accept" and not row.target else row.verdict or "note"] += 1
        return found


def import_file(
    reviews: Reviews,
    path: Path,
    form: Form,
    *,
    actor: str,
    vocabulary: Path | None = None,
    system: str = "",
    with_conflicts: bool = False,
    dry_run: bool = False,
) -> Imported:
    """Record what a file of an earlier map says, as decisions of one person who vouches for it.

    A line that says what is settled, or what this person imported before, is not taken again. One that contradicts a decision is
    shown, and taken only if that is asked for: the code is in conflict then.

    Args:
        reviews: of the study.
        path: the file.
        form: see `earlier.read_earlier`.
        actor: who vouches.
        vocabulary: folder of the OMOP vocabularies, for concept ids.
        system: prefix of the source codes, for files that do not name it.
        with_conflicts: record contradictions too.
        dry_run: record nothing.

    Raises:
        UsageError, DataError: as `read_earlier`; nothing was recorded.
    """
    who, study = person(actor), reviews.home.study
    rows, left = read_earlier(path, form, Systems.of_study(study), vocabulary=vocabulary, system=system)
    release, version = _newest(reviews)
    known = [] if release is None else list(release.entries)
    rows, unfit = _fitting(rows, study, [*reviews.standings(), *known])
    rows, unclear = _consistent(rows)
    source = f"{form} {file_digest(path)}"
    found = Imported(source, (), (), ())

    def make() -> Sequence[Mapping[str, Any]]:
        nonlocal found
        taken, refused, clashes = _judge(
            rows, reviews.standings(), reviews, who, with_conflicts=with_conflicts
        )
        lines = sorted([*left, *unfit, *unclear, *refused], key=lambda x: x.line)
        found = Imported(source, tuple(taken), tuple(lines), tuple(clashes))
        return [] if dry_run else [_fields(row, who, source, release, version) for row in taken]

    if dry_run:
        make()
        return found
    records = reviews.log.append(make)
    return Imported(found.source, found.taken, found.left, found.clashes, records)


def _newest(reviews: Reviews) -> tuple[OpenRelease | None, int]:
    """The newest version that stands; none in a study without any."""
    standing = [v for v in reviews.library.versions() if v.withdrawn is None]
    if not standing:
        return None, 0
    return reviews.library.open(standing[-1].number), standing[-1].number


def _fields(row: Row, actor: str, source: str, release: OpenRelease | None, version: int) -> dict[str, Any]:
    entry = release.entries.get(row.code) if release is not None else None
    shown = seen(version, release, entry) if release is not None and entry is not None else {}
    return {
        "kind": "import",
        "actor": actor,
        "code": row.code,
        "target": row.target,
        "verdict": row.verdict,
        "relation": row.relation,
        "comment": remark(row.comment),
        "source": source,
        "line": row.line,
        **shown,
    }


def _fitting(rows: Sequence[Row], study: StudySpec, spelled: Sequence[str]) -> tuple[list[Row], list[Left]]:
    """Rows from a code outside the standard system to a standard code, in the spelling of the release."""
    spelling = {canonical(code): code for code in reversed(spelled)}
    kinds = {s.prefix: s.category for s in study.code_systems}
    kept: list[Row] = []
    left: list[Left] = []
    for given in rows:
        row = given
        if row.target and split_curie(row.code)[0] == study.standard != split_curie(row.target)[0]:
            row = turned(row)
        prefix = split_curie(row.code)[0]
        other = split_curie(row.target)[0] if row.target else study.standard
        if prefix == study.standard:
            left.append(Left(row.line, row.code, "a standard code is its own target"))
        elif other != study.standard:
            left.append(Left(row.line, row.code, f"the target {row.target} is not of {study.standard}"))
        elif kinds[prefix] != kinds[other]:
            left.append(Left(row.line, row.code, f"a {kinds[prefix]} cannot mean a {kinds[other]}"))
        else:
            target = spelling.get(canonical(row.target), row.target) if row.target else ""
            code = spelling.get(canonical(row.code), row.code)
            kept.append(Row(row.line, code, target, row.verdict, row.relation, row.comment))
    return kept, left


def _consistent(rows: Sequence[Row]) -> tuple[list[Row], list[Left]]:
    """Rows of which the file says one thing only; of equal ones the first."""
    of_code: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_code[row.code].append(row)
    kept: list[Row] = []
    left: list[Left] = []
    for code, said in of_code.items():
        accepted = {r.target for r in said if r.verdict == "accept"}
        rejected = {r.target for r in said if r.verdict == "reject"}
        before: dict[tuple[str, str], int] = {}
        for row in said:
            again = before.setdefault((row.verdict, row.target), row.line)
            if again != row.line:
                left.append(Left(row.line, code, f"line {again} says the same"))
            elif row.verdict == "accept" and len(accepted) > 1:
                left.append(
                    Left(
                        row.line,
                        code,
                        f"the file maps this code to {len(accepted)} targets, a decision names one",
                    )
                )
            elif row.verdict and row.target in accepted & rejected:
                left.append(Left(row.line, code, "the file accepts and rejects this target"))
            elif row.verdict == "unsure" and accepted | rejected:
                left.append(Left(row.line, code, "another line decides this code"))
            else:
                kept.append(row)
    # What is rejected first: an accepted target has the last word on its code.
    return sorted(kept, key=lambda r: (r.verdict == "accept", r.line)), left


def _judge(
    rows: Sequence[Row],
    known: Mapping[str, Standing],
    reviews: Reviews,
    actor: str,
    *,
    with_conflicts: bool,
) -> tuple[list[Row], list[Left], list[Clash]]:
    """Which rows say something new, and which contradict what was said."""
    taken: list[Row] = []
    left: list[Left] = []
    clashes: list[Clash] = []
    histories = reviews.log.of_each({row.code for row in rows} & known.keys())
    for row in rows:
        standing = known.get(row.code, Standing(row.code))
        reason = _nothing_new(row, standing, histories.get(row.code, ()), actor)
        if reason:
            left.append(Left(row.line, row.code, reason))
            continue
        clash = _clash(row, standing, actor)
        if clash is not None:
            clashes.append(clash)
            if not with_conflicts or standing.adjudication is not None:
                by = ", ".join(str(n) for n in clash.by)
                left.append(Left(row.line, row.code, f"it contradicts record {by}"))
                continue
        taken.append(row)
    return taken, left, clashes


def _nothing_new(row: Row, standing: Standing, history: Sequence[Decision], actor: str) -> str:
    """Why a row need not be recorded; "" where it must."""
    for record in history:
        same = (record.target, record.verdict) == (row.target, row.verdict)
        if record.kind == "import" and record.actor == actor and same:
            return f"imported before, as record {record.number}"
    if not row.verdict:
        return ""
    if standing.assigned and actor not in standing.assigned:
        return f"assigned to {' and '.join(standing.assigned)}"
    accepted = row.verdict == "accept" and standing.state == "accepted" and standing.target == row.target
    if accepted or (row.verdict == "reject" and row.target in standing.wrong):
        return "settled so already"
    if row.verdict == "unsure" and (standing.settled or actor in opinions(standing.records)):
        return "decided already"
    return ""


def _clash(row: Row, standing: Standing, actor: str) -> Clash | None:
    """What a row contradicts."""
    own = opinions(standing.records).get(actor)
    differs = {
        "accept": standing.state == "conflict"
        or row.target in standing.wrong
        or (standing.state == "accepted" and standing.target != row.target)
        or (own is not None and (own.target not in {None, row.target} or row.target in own.wrong)),
        "reject": standing.state == "conflict"
        or (standing.state == "accepted" and standing.target == row.target)
        or (own is not None and own.target == row.target),
        "unsure": standing.state == "conflict",
    }.get(row.verdict, False)
    if not differs:
        return None
    made = standing.decisions or ((own.last,) if own else ())
    known = standing.target if standing.state == "accepted" else ", ".join(standing.wrong)
    return Clash(
        row.line, row.code, row.verdict, row.target, standing.state, known, tuple(d.number for d in made)
    )


def check_form(form: str) -> Form:
    """One of the formats.

    Raises:
        UsageError: there is no such format.
    """
    for known in FORMS:
        if form == known:
            return known
    raise UsageError(f"No earlier map is read from the format {form!r}", do=f"Take one of {', '.join(FORMS)}")
