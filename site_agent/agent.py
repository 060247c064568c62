"""The site's side of a round: answers a signed call with an approved, sealed release; takes in results.

The agent holds the keys and reads the site's folders. The Flower processes hold
neither: they and the agent meet in the exchange folder only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from protocol.bundle import unpack_bundle
from protocol.canonical import fingerprint
from protocol.envelope import EnvelopeHeader, open_sealed
from protocol.errors import EnvelopeError, FederationError, StudyError
from protocol.messages import PublishedManifest, Receipt, RoundCall
from protocol.signed import open_signed, sign_message
from protocol.study import StudySpec, study_differences
from site_agent.codelist import write_code_list
from site_agent.config import Home
from site_agent.exchange import Exchange, SiteStatus
from site_agent.ledger import Ledger
from site_agent.outbox import Approval, Outbox
from site_agent.prepare import Prepared, agent_digest, prepare_release
from site_agent.resources import Resources
from site_agent.sources import Progress, silent
from site_agent.state import load_state, save_state

_ROUNDS_REMEMBERED = 64


@dataclass(frozen=True)
class Agent:
    """One site's agent over its home folder."""

    home: Home

    @property
    def outbox(self) -> Outbox:
        """The release under review."""
        return Outbox(self.home.folder / "outbox")

    @property
    def ledger(self) -> Ledger:
        """The record of what left."""
        return Ledger(self.home.folder / "ledger.jsonl")

    @property
    def exchange(self) -> Exchange:
        """The folder shared with the Flower processes."""
        return Exchange(self.home.exchange)

    def preview(self, progress: Progress = silent, machine: Resources | None = None) -> Prepared:
        """Prepare the next release for review; nothing leaves."""
        state = load_state(self.home.folder)
        prepared = prepare_release(
            self.home,
            sequence=state.accepted_sequence + 1,
            previous=state.accepted_digest,
            machine=machine,
            progress=progress,
        )
        self.outbox.prepare(prepared.release)
        write_code_list(self.home, prepared)
        manifest = prepared.release.manifest
        self.ledger.append("prepared", manifest=manifest.digest, sequence=manifest.sequence)
        return prepared

    def approve(self, by: str, manifest_digest: str) -> Approval:
        """Record a person's yes to the prepared release."""
        approval = Approval(manifest_digest=manifest_digest, by=by, at=datetime.now(UTC))
        self.outbox.approve(approval, self.home.keys)
        self.ledger.append("approved", manifest=manifest_digest, by=by)
        return approval

    def step(self) -> list[str]:
        """Answer every waiting call and take in every result; what happened, in words.

        A bad call or result is refused and recorded; it never stops the agent.
        """
        news = []
        for data in self.exchange.calls():
            news += self._answer(data)
        for path in self.exchange.results():
            news += self._take_in(path)
        return news

    def _answer(self, data: bytes) -> list[str]:
        try:
            call = open_signed(data, RoundCall, self.home.invitation.keys)
        except FederationError as error:
            self.exchange.drop_call(data)
            return [f"Ignored a call that the coordinator did not sign: {error}"]
        before = self.exchange.status(call.round)
        if call.expires <= datetime.now(UTC):
            self.exchange.drop_call(data)
            return [f"The call of round {call.round} has expired"]
        if before is not None and self._answered(call, before):
            return []
        try:
            status = self._status(call)
        except FederationError as error:
            status = SiteStatus(round=call.round, state="refused", detail=str(error)[:2000])
        if before is not None and before.state == status.state and before.detail == status.detail:
            return []
        if status.state == "refused":
            self.ledger.append("refused", round=call.round, reason=status.detail)
        self.exchange.set_status(status)
        return [f"Round {call.round}: {status.state}. {status.detail}".strip()]

    def _answered(self, call: RoundCall, before: SiteStatus) -> bool:
        """Whether nothing is left to do for this call."""
        if before.state == "delivered":
            return True
        return (
            before.state == "sealed"
            and load_state(self.home.folder).sealed.get(call.round) == call.recipient.digest
        )

    def _status(self, call: RoundCall) -> SiteStatus:
        """What this site answers; seals the approved release when all conditions hold."""
        self._check_study(call)
        self._note_accepted(call)
        state = load_state(self.home.folder)
        if not self.outbox.has_prepared():
            return SiteStatus(
                round=call.round,
                state="preparing",
                detail="No release is prepared yet: run site-agent preview",
            )
        manifest = self.outbox.prepared().manifest
        resend = manifest.digest == state.accepted_digest
        following = (manifest.sequence, manifest.previous) == (
            state.accepted_sequence + 1,
            state.accepted_digest,
        )
        if manifest.study_digest != self.home.study.digest or not (resend or following):
            return SiteStatus(
                round=call.round,
                state="preparing",
                detail=f"The prepared release {manifest.sequence} is stale: run site-agent preview, then approve",
            )
        if self.outbox.approval(self.home.keys.public()) is None:
            return SiteStatus(
                round=call.round,
                state="awaiting-approval",
                detail=f"Release {manifest.sequence} ({fingerprint(manifest.digest)}) waits for a person's approval",
            )
        return self._seal(call)

    def _seal(self, call: RoundCall) -> SiteStatus:
        keys, manifest = self.home.keys, self.outbox.prepared().manifest
        head = self.ledger.append(
            "sealed", round=call.round, manifest=manifest.digest, to=call.recipient.digest
        )
        header = EnvelopeHeader(
            kind="release",
            suite=call.recipient.suite,
            consortium=self.home.study.id,
            study_digest=self.home.study.digest,
            round=call.round,
            site=self.home.config.site,
            recipient_key=call.recipient.digest,
            signer_key=keys.public().digest,
            sequence=manifest.sequence,
            previous=manifest.previous,
            content=manifest.digest,
            agent_digest=agent_digest(),
            policy_digest=manifest.policy.digest,
            ledger_head=head,
            expires=call.expires,
        )
        with tempfile.TemporaryDirectory(dir=self.home.folder / "outbox") as work:
            target = Path(work) / "release.sealed"
            self.outbox.seal(header, target, to=call.recipient, keys=keys)
            sha256, size = self.exchange.put_sealed(target)
        state = load_state(self.home.folder)
        sealed = dict([*state.sealed.items(), (call.round, call.recipient.digest)][-_ROUNDS_REMEMBERED:])
        save_state(self.home.folder, state.model_copy(update={"sealed": sealed}))
        return SiteStatus(
            round=call.round,
            state="sealed",
            detail=f"Release {manifest.sequence} is sealed to {fingerprint(call.recipient.digest)}",
            sha256=sha256,
            size=size,
        )

    def _check_study(self, call: RoundCall) -> None:
        if call.study_digest == self.home.study.digest:
            return
        try:
            differences = study_differences(self.home.study, StudySpec.model_validate(call.study))
        except ValidationError:
            differences = ["the coordinator's study is not valid here"]
        raise StudyError(
            f"The coordinator's study differs from the one at site {self.home.config.site}",
            why="; ".join(differences[:8]),
            do="Agree on one study file; nothing was sent",
        )

    def _note_accepted(self, call: RoundCall) -> None:
        """Learn from the signed call which of our releases the coordinator has accepted.

        Raises:
            EnvelopeError: it knows of fewer than we do.
        """
        sequence, content = call.expected.get(self.home.config.site, (0, ""))
        state = load_state(self.home.folder)
        if sequence < state.accepted_sequence:
            raise EnvelopeError(
                f"The coordinator expects release {sequence + 1}, but has accepted {state.accepted_sequence} before",
                why="its memory went back in time",
                do="Ask the coordinator to restore its latest backup; nothing was sent",
            )
        self._accepted(sequence, content)

    def _accepted(self, sequence: int, content: str) -> None:
        """Remember an accepted release; the next one follows it."""
        state = load_state(self.home.folder)
        if sequence > state.accepted_sequence:
            update = {"accepted_sequence": sequence, "accepted_digest": content}
            save_state(self.home.folder, state.model_copy(update=update))
            self.ledger.append("accepted", manifest=content, sequence=sequence)

    def _take_in(self, path: Path) -> list[str]:
        try:
            manifest = self._open_result(path)
        except FederationError as error:
            quarantine = self.home.folder / "quarantine"
            quarantine.mkdir(exist_ok=True)
            path.rename(quarantine / path.name)
            self.ledger.append("quarantined", file=path.name, reason=str(error)[:500])
            return [f"Refused a result, kept in {quarantine}: {error}"]
        receipt = Receipt(
            site=self.home.config.site,
            round=manifest.round,
            version=manifest.version,
            manifest_digest=manifest.digest,
            received=datetime.now(UTC),
        )
        self.ledger.append("received", version=manifest.version, manifest=manifest.digest)
        self.exchange.set_status(
            SiteStatus(
                round=manifest.round,
                state="delivered",
                detail=f"Version {manifest.version} arrived and holds",
                sha256=path.stem,
                receipt=sign_message(receipt, self.home.keys).decode(),
            )
        )
        path.unlink()
        return [f"Version {manifest.version} arrived and holds: run site-agent apply"]

    def _open_result(self, path: Path) -> PublishedManifest:
        """Verify, open and unpack one result; the state changes last."""
        home, trust = self.home, self.home.invitation.keys
        state = load_state(home.folder)
        with tempfile.TemporaryDirectory(dir=home.folder) as work:
            plain = Path(work) / "result"
            # The header that was verified with the bytes that were opened: the file lies where Flower writes.
            header = open_sealed(path, plain, keys=home.keys, signer=trust)
            expected = ("result", home.study.id, home.study.digest, home.config.site)
            if (header.kind, header.consortium, header.study_digest, header.site) != expected:
                raise EnvelopeError("The result is for another study or site than ours")
            if header.sequence < state.result_version or (
                header.sequence == state.result_version and header.content != state.result_digest
            ):
                raise EnvelopeError(
                    f"The result has version {header.sequence}, but {state.result_version} has arrived before",
                    why="it is stale, or was replayed",
                )
            target = home.folder / "results" / f"v{header.sequence}"
            manifest = unpack_bundle(plain.read_bytes(), target, trust=trust, content=header.content)
        update = {"result_version": manifest.version, "result_digest": manifest.digest}
        save_state(home.folder, state.model_copy(update=update))
        for summary in manifest.sites:
            if summary.site == home.config.site and summary.state == "received":
                self._accepted(summary.sequence, summary.manifest_digest)
        return manifest
