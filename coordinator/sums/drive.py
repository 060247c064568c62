"""Drives a sum through its steps; a site may go after any of them, and either side may be killed and go on.

What a site sends is verified as it comes: who signed it, for which sum, and that it follows from
what the site was sent. An answer that does not hold is put aside, and its site counts as gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk, SiteProgress
from coordinator.sums.asking import basis_of
from coordinator.sums.outcome import signed_outcome, write_outcome
from coordinator.sums.record import SumRecord, SumStore
from protocol.errors import FederationError, ProtocolError, RoundError, UsageError
from protocol.secure_sum import (
    Consent,
    KeyAdvert,
    MaskedVector,
    Participant,
    ParticipantList,
    ReceivedSignature,
    Shares,
    Transcript,
    Unmasking,
    aggregate,
    received_list,
)
from protocol.secure_sum.messages import FromSite, open_all, set_digest
from protocol.signed import open_signed
from protocol.sums import Answer, PooledSum, Step, StepMaterial, SumOffer, SumReceipt, layout, read_answer

Transport = Callable[[RoundDesk, tuple[str, ...]], None]
"""Brings a step's material to the sites and their answers to the desk, as far as they come in time."""

Check = Callable[[str, Answer], None]


def run_sum(home: Home, name: str, transport: Transport) -> PooledSum:
    """Run a sum to its end, from wherever it is.

    Args:
        home: the coordinator.
        name: of the sum.
        transport: called once a step at most, and only for sites whose answer is not here.

    Raises:
        RoundError: too few sites have answered; run again, nothing is lost.
        ProtocolError: a site's message spoils the sum; it names the site.
    """
    store = SumStore(home.folder / "sums" / name)
    record = store.load()
    while True:
        run = _Run(home, store, record, transport)
        try:
            return run.to_the_end()
        except _LeftOut as left:
            # Nothing was masked yet: a list without those who did not agree gives nothing away.
            record = restart(store, record, [*record.without, *left.sites])


def restart(store: SumStore, record: SumRecord, without: Collection[str]) -> SumRecord:
    """Begin a new attempt, with new keys, without some sites; the sites see to it that it exposes nobody.

    Raises:
        UsageError: a name is no site of the sum.
        RoundError: too few would remain.
    """
    if strangers := sorted(set(without) - set(record.nodes)):
        raise UsageError(f"{strangers[0]} is no site of sum {store.name}")
    left = record.model_copy(update={"attempt": record.attempt + 1, "without": tuple(sorted(set(without)))})
    if len(left.sites) < record.proposal.minimum:
        raise RoundError(
            f"{len(left.sites)} sites would remain in sum {store.name}, {record.proposal.minimum} are needed",
            do="Wait for the missing sites and run the sum again",
        )
    store.save(left)
    return left


class _LeftOut(Exception):  # noqa: N818 - caught here, never shown
    """Sites that did not agree to the participant list in time."""

    def __init__(self, sites: Collection[str]) -> None:
        super().__init__(sites)
        self.sites = tuple(sites)


@dataclass
class _Run:
    """One attempt."""

    home: Home
    store: SumStore
    record: SumRecord
    transport: Transport
    answers: dict[Step, dict[str, Answer]] = field(default_factory=dict)

    def to_the_end(self) -> PooledSum:
        """All steps in order."""
        signed = signed_outcome(self.home, self.store.name)
        told: Collection[str] = self.sites.names if signed else ()
        if signed is None:
            self._offers()
            self._consents()
            adverts = self._step("advertise", self.sites.names, _of(self.answers["participants"]), KeyAdvert)
            self._step("share", adverts, _of(adverts), Shares, self._check_shares)
            self._step(
                "mask", self.answers["share"], _of(self.answers["share"]), MaskedVector, self._check_vector
            )
            signed = self._unmasked()
            # Who went away is told when the command is run again; nobody waits for them now.
            told = self.answers["unmask"]
        return self._closed(signed, told)

    # --- Steps -----------------------------------------------------------------------------------------

    def _offers(self) -> None:
        proposal = self.record.proposal
        material = StepMaterial(proposal=proposal, basis=basis_of(self.home, proposal))
        found = self._ask("offer", self.record.sites, material, self._check_offer)
        if missing := sorted(set(self.record.sites) - set(found)):
            raise RoundError(
                f"{len(found)} of {len(self.record.sites)} sites take part in sum {self.store.name} so far",
                why=f"nothing came from {', '.join(missing)}: people there may still have to look",
                do="Run the same command again later, or leave sites out with coordinator sum restart --without",
            )

    @cached_property
    def sites(self) -> ParticipantList:
        """The list that every site is to sign."""
        stored = self.store.material(self.record, "participants")
        if stored is not None and stored.sites is not None:
            return stored.sites
        keys = self.record.proposal.roster.keys
        return ParticipantList(
            subject=layout(self.record.proposal, self.home.study).subject,
            attempt=self.record.attempt,
            minimum=self.record.proposal.minimum,
            sites=tuple(
                Participant(site=s, keys=keys[s], commitment=self._offer_of(s, answer).commitment)
                for s, answer in sorted(self.answers["offer"].items())
            ),
        )

    def _consents(self) -> None:
        found = self._ask(
            "participants", self.sites.names, StepMaterial(sites=self.sites), self._signed_by(Consent)
        )
        if missing := set(self.sites.names) - set(found):
            raise _LeftOut(missing)

    def _step(
        self,
        step: Step,
        expected: Collection[str],
        messages: tuple[str, ...],
        kind: type[FromSite],
        check: Check | None = None,
    ) -> dict[str, Answer]:
        signed = self._signed_by(kind)

        def both(site: str, answer: Answer) -> None:
            signed(site, answer)
            if check is not None:
                check(site, answer)

        found = self._ask(step, expected, StepMaterial(messages=messages), both)
        self.sites.check_enough(found, step)
        return found

    def _unmasked(self) -> bytes:
        """The last two steps. Who has signed the list may go: the others' shares do."""
        sent = {k: tuple(a.message for a in self.answers[k].values()) for k in ("advertise", "share", "mask")}
        transcript = Transcript(sent["advertise"], sent["share"], sent["mask"])
        received = received_list(self.sites, transcript)
        members = tuple(received.vectors)
        signatures = self._ask(
            "received",
            members,
            StepMaterial(received=received),
            self._signed_by(ReceivedSignature),
            again=not self._enough_unmaskings(),
        )
        self.sites.check_signatures(signatures)
        unmaskings = self._ask(
            "unmask", tuple(signatures), StepMaterial(messages=_of(signatures)), self._signed_by(Unmasking)
        )
        summed = aggregate(
            self.sites,
            received,
            transcript._replace(unmaskings=tuple(a.message for a in unmaskings.values())),
            ((site, self.answers["mask"][site].vector) for site in members),
        )
        pairs = layout(self.record.proposal, self.home.study).pairs
        return write_outcome(self.home, self.record.proposal, pairs, self.sites, summed)

    def _enough_unmaskings(self) -> bool:
        """Whether so many sites have unmasked that those who did not sign need not be asked again."""
        desk = self.store.desk(self.record, "unmask")
        return sum(desk.received(s).exists() for s in self.sites.names) >= self.sites.threshold

    def _closed(self, signed: bytes, told: Collection[str]) -> PooledSum:
        """Tell sites the outcome, upon which they forget their keys; the sum stands whether or not they hear."""
        result = open_signed(signed, PooledSum, self.home.keys.public())
        self._ask("close", told, StepMaterial(result=signed.decode()), self._check_receipt(result))
        return result

    # --- One step --------------------------------------------------------------------------------------

    def _ask(
        self,
        step: Step,
        expected: Collection[str],
        material: StepMaterial,
        check: Check,
        *,
        again: bool = False,
    ) -> dict[str, Answer]:
        """Begin a step, or take it up again; the answers that hold, by site.

        Once the next step was begun nobody is asked any more, unless `again`: what followed rests on
        the answers of then.
        """
        order: tuple[Step, ...] = (
            "offer",
            "participants",
            "advertise",
            "share",
            "mask",
            "received",
            "unmask",
        )
        following = order[order.index(step) + 1 :][:1] if step in order else ()
        over = any(self.store.desk(self.record, s).material.exists() for s in following)
        desk = self.store.desk(self.record, step)
        if not desk.material.exists():
            desk = self.store.lay_out(self.record, step, material, self.home.keys)
        found = self._read(desk, expected, check)
        missing = tuple(sorted(set(expected) - set(found)))
        if missing and (again or not over):
            self.transport(desk, missing)
            found = self._read(desk, expected, check)
        self.answers[step] = found
        return found

    def _read(self, desk: RoundDesk, expected: Collection[str], check: Check) -> dict[str, Answer]:
        found = {}
        for site in sorted(expected):
            path = desk.received(site)
            if not path.exists():
                continue
            try:
                answer = read_answer(path)
                check(site, answer)
            except FederationError as error:
                path.replace(path.with_suffix(".quarantine"))
                desk.report(SiteProgress(site=site, state="refused", detail=str(error)[:2000]))
                desk.log(f"{site}: put aside. {error}")
                continue
            found[site] = answer
        return found

    # --- What must hold of an answer -------------------------------------------------------------------

    def _offer_of(self, site: str, answer: Answer) -> SumOffer:
        return open_signed(answer.message, SumOffer, self.record.proposal.roster.keys[site])

    def _check_offer(self, site: str, answer: Answer) -> None:
        offer = self._offer_of(site, answer)
        if (offer.site, offer.proposal) != (site, self.record.proposal.digest):
            raise ProtocolError(f"The offer of {site} is for another proposal")

    def _signed_by(self, kind: type[FromSite]) -> Check:
        def check(site: str, answer: Answer) -> None:
            if tuple(open_all([answer.message], kind, self.sites)) != (site,):
                raise ProtocolError(f"The answer of {site} was signed by another site")

        return check

    def _check_shares(self, site: str, answer: Answer) -> None:
        shares = open_all([answer.message], Shares, self.sites)[site]
        adverts = open_all((a.message for a in self.answers["advertise"].values()), KeyAdvert, self.sites)
        if shares.adverts != set_digest(adverts) or set(shares.share_digests) != set(adverts):
            raise ProtocolError(f"{site} dealt shares to other keys than it was sent")

    def _check_vector(self, site: str, answer: Answer) -> None:
        vector = open_all([answer.message], MaskedVector, self.sites)[site]
        dealt = open_all((a.message for a in self.answers["share"].values()), Shares, self.sites)
        size = 8 * self.sites.subject.cells
        if vector.sharers != set_digest(dealt) or len(answer.vector) != size or vector.cells * 8 != size:
            raise ProtocolError(f"The vector of {site} was masked against other shares, or has another size")
        if hashlib.sha256(answer.vector).hexdigest() != vector.sha256:
            raise ProtocolError(f"The vector of {site} is not the one that it announced")

    def _check_receipt(self, result: PooledSum) -> Check:
        keys: Mapping[str, Participant] = {p.site: p for p in self.sites.sites}

        def check(site: str, answer: Answer) -> None:
            receipt = open_signed(answer.message, SumReceipt, keys[site].keys)
            if (receipt.site, receipt.result) != (site, result.digest):
                raise ProtocolError(f"The receipt of {site} is for another outcome")

        return check


def _of(answers: Mapping[str, Answer]) -> tuple[str, ...]:
    """The signed messages, by name of the site."""
    return tuple(answer.message.decode() for _, answer in sorted(answers.items()))
