"""Answers the steps of secure sums by itself, once a person has approved what is summed.

State is stored before a message is put where the transport can fetch it, and every step can be
repeated with the same outcome, so the agent may be killed at any point and go on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path

from protocol.canonical import digest
from protocol.errors import FederationError, GateError, ProtocolError, RoundError, StudyError, VersionError
from protocol.keys import PublicKeys
from protocol.secure_sum import (
    Consent,
    SiteSum,
    advertise,
    commit,
    deal_shares,
    join,
    mask,
    reveal,
    sign_received,
)
from protocol.secure_sum.fixed import Int64Vector
from protocol.secure_sum.masks import Ring
from protocol.secure_sum.state import need
from protocol.signed import open_signed, parse, peek, sign_message
from protocol.sums import (
    MAX_MATERIAL,
    STEPS,
    PooledSum,
    Step,
    StepMaterial,
    SumCall,
    SumOffer,
    SumReceipt,
    step_id,
    write_answer,
)
from site_agent.budget import BudgetLedger, bounding, noisy
from site_agent.config import Home
from site_agent.exchange import Exchange, SiteStatus
from site_agent.ledger import Ledger
from site_agent.sums import approval, basis, roster
from site_agent.sums.folder import Offer, SumFolder, SumMemory, SumPreview

Reply = tuple[bytes, Ring | None]


class _NotYet(Exception):  # noqa: N818 - nothing went wrong: a person has to act first
    """What the site waits for."""


@dataclass(frozen=True)
class SumAgent:
    """One site's part in all secure sums.

    Args:
        home: the site's home folder.
        approved: raises GateError unless people have approved the preview of this digest.
    """

    home: Home
    approved: Callable[[str], None] | None = None

    @cached_property
    def exchange(self) -> Exchange:
        """The room of sums in the folder shared with the Flower processes; what a killed agent left is removed."""
        room = Exchange(self.home.exchange).sums
        room.sweep()
        return room

    @property
    def folder(self) -> SumFolder:
        """States, counts and memory."""
        return SumFolder(self.home.folder / "sums")

    @property
    def ledger(self) -> Ledger:
        """The record of what left."""
        return Ledger(self.home.folder / "ledger.jsonl")

    def step(self) -> list[str]:
        """Answer every waiting call; what happened, in words. A bad call is refused, and never stops the agent."""
        with self.folder.locked():
            news = [line for data in self.exchange.calls() for line in self._hear(data)]
            self._drop_unasked()
        return news

    def _drop_unasked(self) -> None:
        """Remove material that no waiting call names, as a transfer repeated after its answer leaves it."""
        # Results before calls: the call of whatever has arrived lies here already.
        results, named = self.exchange.results(), set()
        for data in self.exchange.calls():
            with contextlib.suppress(ProtocolError):
                named.add(peek(data, SumCall).material)
        for path in results:
            if path.stem not in named:
                path.unlink(missing_ok=True)

    # --- One call --------------------------------------------------------------------------------------

    def _hear(self, data: bytes) -> list[str]:
        try:
            call = open_signed(data, SumCall, self.home.invitation.keys)
        except FederationError as error:
            self.exchange.drop_call(data)
            version = isinstance(error, VersionError)
            what = "Refused a call" if version else "Ignored a call that the coordinator did not sign"
            return [f"{what}: {error}"]
        name = step_id(call.name, call.attempt, call.step)
        before = self.exchange.status(name)
        if call.expires <= datetime.now(UTC):
            self.exchange.drop_call(data)
            return [f"The call for sum {call.name} has expired"]
        if before is not None and before.state == "sealed":
            self.exchange.drop_call(data)
            return []
        try:
            material = self._material(call)
            if material is None:
                return []
            status = self._answered(call, name, material)
        except _NotYet as wait:
            status = _status(name, "awaiting-approval", str(wait), call.material)
        except FederationError as error:
            status = _status(name, "refused", str(error), call.material)
        # The transport brings the call again while it runs, and with it another try.
        self.exchange.drop_call(data)
        if before == status:
            return []
        if status.state == "refused":
            self.ledger.append("sum-refused", sum=call.name, step=call.step, reason=status.detail[:500])
        self.exchange.set_status(status)
        return [f"Sum {call.name}, {call.step}: {status.state}. {status.detail}".strip()]

    def _material(self, call: SumCall) -> StepMaterial | None:
        """What the call's step came with; None while it is on its way."""
        if call.study_digest != self.home.study.digest:
            raise StudyError(
                f"The coordinator sums under another study than site {self.home.config.site} holds",
                do="Agree on one study file; nothing was sent",
            )
        data = self.exchange.take_result(call.material, MAX_MATERIAL)
        if data is not None:
            self.folder.keep_material(call.name, data)
        else:
            data = self.folder.material(call.name)
        if data is None or digest(data) != call.material:
            return None
        return parse(data, StepMaterial)

    def _answered(self, call: SumCall, name: str, material: StepMaterial) -> SiteStatus:
        message, vector = self._steps[call.step](call, material)
        self._forget_steps_before(call)
        with tempfile.TemporaryDirectory(dir=self.folder.root) as work:
            path = Path(work) / "answer"
            write_answer(path, message, vector)
            sha256, size = self.exchange.put_sealed(path)
        return SiteStatus(round=name, state="sealed", detail="The answer is ready", sha256=sha256, size=size)

    def _forget_steps_before(self, call: SumCall) -> None:
        """The coordinator has stored the answers to earlier steps before it began this one."""
        for attempt in range(1, call.attempt + 1):
            last = STEPS.index(call.step) if attempt == call.attempt else len(STEPS)
            for step in STEPS[:last]:
                self.exchange.clear(step_id(call.name, attempt, step))

    # --- The steps -------------------------------------------------------------------------------------

    @cached_property
    def _steps(self) -> dict[Step, Callable[[SumCall, StepMaterial], Reply]]:
        return {
            "offer": self._offer,
            "participants": self._participants,
            "advertise": partial(self._simple, self._advertise),
            "share": partial(self._simple, self._share),
            "mask": self._mask,
            "received": self._received,
            "unmask": self._unmask,
            "close": self._close,
        }

    def _offer(self, call: SumCall, material: StepMaterial) -> Reply:
        proposal = need(material.proposal)
        if proposal.name != call.name:
            raise ProtocolError("The proposal is of another sum than its call")
        if self.folder.pooled(call.name) is not None:
            raise RoundError(f"The sum {call.name} is over", do="Have the coordinator open a new one")
        if call.name not in self.folder.names() or self.folder.proposal(call.name) != proposal:
            if self.folder.offer(call.name) is not None:
                raise RoundError(
                    f"The sum {call.name} was proposed otherwise before",
                    do="Have the coordinator open a new one",
                )
            self.folder.keep(call.name, proposal)
        roster.offer(self.home, proposal.roster)
        approval.check_terms(self.home, proposal)
        try:
            approval.check_roster(self.home, proposal)
        except GateError as error:
            if roster.trusted(self.home) is None:
                raise _NotYet(str(error)) from None
            raise
        preview = self.folder.preview(call.name)
        if preview is None or preview.proposal != proposal.digest:
            basis.check(self.folder, proposal, self.home.config.site, material.basis)
            command = "cohort questions" if proposal.cohort else "sums"
            raise _NotYet(f"Nothing is counted yet: run site-agent {command} preview {call.name}")
        self._check(preview)
        offer = self.folder.offer(call.name)
        if offer is None:
            offer = Offer(preview=preview.digest, nonce=os.urandom(32).hex())
            self.folder.keep(call.name, offer)
            self.ledger.append("sum-offered", sum=call.name, preview=preview.digest)
        commitment = commit(preview.data, bytes.fromhex(offer.nonce))
        answer = SumOffer(proposal=proposal.digest, site=self.home.config.site, commitment=commitment)
        return sign_message(answer, self.home.keys), None

    def _participants(self, call: SumCall, material: StepMaterial) -> Reply:
        sites, site = need(material.sites), self.home.config.site
        preview, offer = self._begun(call)
        if sites.attempt != call.attempt:
            raise ProtocolError("The participant list is of another attempt than its call")
        memory = self.folder.memory()
        if sites.digest not in memory.states:
            state, ledger, message = join(
                sites,
                memory.ledger,
                self.home.keys,
                site=site,
                subject=preview.subject,
                enrolled=self._trusted(preview),
                data=preview.data,
                nonce=bytes.fromhex(offer.nonce),
                min_sites=max(
                    self.home.study.sharing.minimum_summed_sites,
                    self.home.config.sharing.minimum_summed_sites,
                ),
            )
            self.ledger.append("sum-joined", sum=call.name, session=sites.digest, sites=list(sites.names))
            self._remember(memory.model_copy(update={"ledger": ledger}), state, drop=call.name)
            return message, None
        return sign_message(Consent(session=sites.digest, site=site), self.home.keys), None

    def _simple(
        self,
        act: Callable[[SiteSum, list[bytes]], tuple[SiteSum, bytes]],
        call: SumCall,
        material: StepMaterial,
    ) -> Reply:
        self._begun(call)
        memory, state = self._state(call)
        state, message = act(state, _messages(material))
        self._remember(memory, state)
        return message, None

    def _advertise(self, state: SiteSum, messages: list[bytes]) -> tuple[SiteSum, bytes]:
        return advertise(state, self.home.keys, messages)

    def _share(self, state: SiteSum, messages: list[bytes]) -> tuple[SiteSum, bytes]:
        return deal_shares(state, self.home.keys, messages)

    def _mask(self, call: SumCall, material: StepMaterial) -> Reply:
        preview, _ = self._begun(call)
        memory, state = self._state(call)
        values = self._values(call.name, preview, state.session)
        state, ledger, message, vector = mask(
            state, memory.ledger, self.home.keys, _messages(material), values
        )
        self._remember(memory.model_copy(update={"ledger": ledger}), state)
        self.ledger.append("sum-masked", sum=call.name, session=state.session, cells=len(values))
        return message, vector

    def _received(self, call: SumCall, material: StepMaterial) -> Reply:
        memory, state = self._state(call)
        state, ledger, message = sign_received(state, memory.ledger, self.home.keys, need(material.received))
        self.ledger.append(
            "sum-closed", sum=call.name, session=state.session, sites=sorted(need(material.received).vectors)
        )
        self._remember(memory.model_copy(update={"ledger": ledger}), state)
        return message, None

    def _unmask(self, call: SumCall, material: StepMaterial) -> Reply:
        _, state = self._state(call)
        return reveal(state, self.home.keys, _messages(material)), None

    def _close(self, call: SumCall, material: StepMaterial) -> Reply:
        data = material.result.encode()
        result = open_signed(data, PooledSum, self.home.invitation.keys)
        if self.folder.pooled(call.name) is None:
            _, state = self._state(call)
            if (result.name, result.session) != (call.name, state.session):
                raise ProtocolError("The outcome is of another sum than the one that was joined")
            self.ledger.append("sum-received", sum=call.name, session=result.session, result=result.digest)
            self.folder.close(call.name, data)
        receipt = SumReceipt(session=result.session, site=self.home.config.site, result=result.digest)
        return sign_message(receipt, self.home.keys), None

    # --- What the steps share --------------------------------------------------------------------------

    def _check(self, preview: SumPreview) -> None:
        """Return only if people said yes, and the preview speaks of noise if and only if the study does."""
        if preview.noise != self.home.study.differential_privacy.enabled:
            raise StudyError(
                "The study and the preview of this sum differ on whether noise is added",
                do="Run site-agent sums preview again and approve what it shows",
            )
        try:
            (self.approved or partial(approval.check_approved, self.home))(preview.digest)
        except GateError as error:
            raise _NotYet(str(error)) from None

    def _begun(self, call: SumCall) -> tuple[SumPreview, Offer]:
        """Preview and nonce of a sum for which an offer was sent; a yes that was taken back stops it here."""
        preview, offer = self.folder.preview(call.name), self.folder.offer(call.name)
        if preview is None or offer is None or offer.preview != preview.digest:
            raise RoundError(
                f"This site has made no offer for sum {call.name}", do="Repeat the sum from its first step"
            )
        self._check(preview)
        return preview, offer

    def _trusted(self, preview: SumPreview) -> dict[str, PublicKeys]:
        pinned = roster.trusted(self.home)
        if pinned is None or pinned.digest != preview.roster:
            raise GateError(
                "The trusted roster is not the one that was approved",
                ("another one was trusted since",),
                do="Have the coordinator open a new sum",
            )
        return dict(pinned.keys)

    def _state(self, call: SumCall) -> tuple[SumMemory, SiteSum]:
        memory = self.folder.memory()
        for state in memory.states.values():
            if (state.sites.subject.round, state.sites.attempt) == (call.name, call.attempt):
                return memory, state
        raise RoundError(
            f"This site has not joined attempt {call.attempt} of sum {call.name}",
            do="Have the coordinator start a new attempt",
        )

    def _remember(self, memory: SumMemory, state: SiteSum, drop: str = "") -> None:
        """Store a state; with `drop`, states of earlier attempts of that sum are forgotten, and so are their keys."""
        states = {s: old for s, old in memory.states.items() if old.sites.subject.round != drop}
        self.folder.remember(memory.model_copy(update={"states": states | {state.session: state}}))

    def _values(self, name: str, preview: SumPreview, session: str) -> Int64Vector:
        """The approved counts, with their noise if there is to be any; the same at every call."""
        values = self.folder.vector(name)
        if values is None or approval.values_digest(values) != preview.values:
            raise GateError(
                f"The stored counts of sum {name} are not those that were approved",
                ("the file is gone, or was altered",),
                do="Have the coordinator open a new sum; restore nothing from a backup",
            )
        if not preview.noise:
            return values
        stored = self.folder.vector(name, "noised")
        if stored is not None:
            return stored
        # Other statistics cannot be summed where the study asks for noise: `Kind.unfit`.
        statistic: bounding.Statistic = "cells" if preview.subject.statistic == "cells" else "margins"
        budget = BudgetLedger(self.home.folder / "budget.jsonl")
        spending = budget.spend(self.home.study.differential_privacy, statistic=statistic, session=session)
        noised = noisy(values, statistic, spending.scale)
        self.folder.keep_vector(name, noised, "noised")
        return noised


def _messages(material: StepMaterial) -> list[bytes]:
    return [m.encode() for m in material.messages]


def _status(name: str, state: str, detail: str, material: str) -> SiteStatus:
    return SiteStatus.model_validate(
        {"round": name, "state": state, "detail": detail[:2000], "sha256": material}
    )
