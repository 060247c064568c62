"""Opening a sum: the statistic, what it follows from, and the roster, in one proposal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from coordinator.config import Home
from coordinator.sums.asking import Asked
from coordinator.sums.record import SumRecord, SumStore
from protocol.errors import RoundError, StudyError, UsageError
from protocol.keys import PublicKeys
from protocol.study import validation_reasons
from protocol.sums import KINDS, Roster, SumProposal, layout


def open_sum(
    home: Home,
    name: str,
    asked: Asked,
    *,
    enrolled: Mapping[str, PublicKeys],
    nodes: Mapping[str, int],
    days: int = 30,
) -> SumRecord:
    """Store a new sum; nothing is sent before `run_sum`.

    Args:
        home: the coordinator.
        name: 1 to 24 of a-z, 0-9 and -.
        asked: what is summed.
        enrolled: site -> keys, of all enrolled sites.
        nodes: site -> Flower node.
        days: until the sites answer no longer.

    Raises:
        UsageError: the name is taken, or the sum cannot be put together; the reason follows.
        StudyError: the study sums nothing, or not this.
        RoundError: too few sites are enrolled.
        DataError: the margins allow no sum of cells.
    """
    study, store = home.study, SumStore(home.folder / "sums" / name)
    if study.sharing.counts != "summed":
        raise StudyError(
            "This study sums no counts",
            why="it says sharing.counts = none",
            do="Agree on counts = summed in the study file at every party",
        )
    if reasons := KINDS[asked.statistic].unfit(study):
        raise StudyError(
            f"This study cannot have {asked.statistic} summed",
            why="; ".join(reasons),
            do="Agree on another study file at every party, or sum another statistic",
        )
    if (store.folder / "sum.json").exists():
        raise UsageError(f"Sum {name!r} exists", do="Take a new name; coordinator sum status lists them")
    needed = study.sharing.minimum_summed_sites
    if len(enrolled) < needed:
        raise RoundError(
            f"{len(enrolled)} sites are enrolled, and the study sums {needed} or more",
            do="Enrol the missing sites first",
        )
    try:
        proposal = SumProposal(
            study_digest=study.digest,
            name=name,
            statistic=asked.statistic,
            vocabulary=asked.vocabulary,
            margins=asked.margins,
            graph=asked.graph,
            cohort=asked.cohort,
            minimum=needed,
            roster=Roster(study_digest=study.digest, keys=dict(enrolled)),
            expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days),
        )
    except ValidationError as error:
        raise UsageError(f"The sum {name!r} cannot be opened", why=validation_reasons(error)) from None
    layout(proposal, study)
    record = SumRecord(proposal=proposal, nodes={s: nodes[s] for s in enrolled if s in nodes})
    store.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store.save(record)
    return record
