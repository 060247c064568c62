"""The site's side of a round: answers a signed call with an approved, sealed release; takes in results.

The agent holds the keys and reads the site's folders. The Flower processes hold
neither: they and the agent meet in the exchange folder only.

A release goes through these steps; the process may be killed in each and between any two, and the next one
goes on from there. The ledger is always written before the deed, so it may name a step that was not taken and
never leaves one out::

    preview   ledger `prepared` -> prepared.release -> code list
    approve   ledger `approved`, which is the approval itself
    seal      envelope, outside of the exchange folder -> released.promote -> sealed.release -> ledger `sealed`
              -> the envelope moves into the exchange folder -> state.json -> status, which names it
    accepted  ledger `accepted` -> state.json

Before the status names an envelope nobody asks for it. One that no status names is removed at the next start.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.canonical import file_digest, fingerprint
from protocol.errors import EnvelopeError, FederationError, RoundError, UsageError, VersionError
from protocol.keyfile import Passphrase
from protocol.keys import PublicKeys
from protocol.locking import exclusive
from protocol.messages import Receipt, RoundCall
from protocol.signed import open_signed, sign_message
from site_agent.calls import call_round, check_study, release_header
from site_agent.config import Home, stamp
from site_agent.countersigned import check_and_note
from site_agent.exchange import Exchange, SiteStatus
from site_agent.ledger import Ledger
from site_agent.outbox import Outbox, PreparedRelease
from site_agent.resources import Resources
from site_agent.results import open_result
from site_agent.signers import Approval, Signers, approval_facts, standing
from site_agent.sources import Progress, silent
from site_agent.state import SealedFor, load_state, save_state, sweep
from site_agent.sums.sharing import check_sealed_sharing
from site_agent.working import work_lock

if TYPE_CHECKING:
    from site_agent.codelist import Applied
    from site_agent.prepare import Prepared

# What counts, embeds or reads tables is imported where it is used: it takes 100 MB, and an agent waits for months.

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
    def signers(self) -> Signers:
        """The people who may approve."""
        return Signers(self.home.folder / "signers", self.ledger)

    @property
    def exchange(self) -> Exchange:
        """The folder shared with the Flower processes."""
        return Exchange(self.home.exchange)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time changes the site's files; what a killed one left goes first."""
        with exclusive(self.home.folder / ".lock"):
            self.home.reread()
            _ = self._swept
            yield

    @cached_property
    def _swept(self) -> None:
        """Once a process."""
        sweep(self.home.folder, ".", "outbox", "local", "results", "countersigned")
        with suppress(UsageError, OSError), work_lock(self.home):
            sweep(self.home.folder, "released")
        self._envelope.unlink(missing_ok=True)
        with suppress(FederationError):  # a ledger that does not hold is told of where something is sealed
            self._take_back()

    @cached_property
    def _exchange_swept(self) -> None:
        """Once a process, and by the one that runs: other steps of it put files there too."""
        self.exchange.sweep()

    @property
    def _envelope(self) -> Path:
        return self.home.folder / "outbox" / "leaving.sealed"

    def preview(self, progress: Progress = silent, machine: Resources | None = None) -> Prepared:
        """Prepare the next release for review; nothing leaves."""
        from site_agent.codelist import write_code_list  # noqa: PLC0415
        from site_agent.prepare import prepare_release  # noqa: PLC0415

        state = load_state(self.home.folder)
        prepared = prepare_release(
            self.home,
            sequence=state.accepted_sequence + 1,
            previous=state.accepted_digest,
            machine=machine,
            progress=progress,
        )
        manifest = prepared.release.manifest
        with self.locked():
            self.ledger.append("prepared", manifest=manifest.digest, sequence=manifest.sequence)
            self.outbox.prepare(prepared.release)
            write_code_list(self.home, prepared)
        return prepared

    def add_signer(self, name: str, passphrase: Passphrase) -> PublicKeys:
        """Make a key for a person who may approve.

        Raises:
            UsageError: the name is not allowed, or taken.
            KeyFileError: the passphrase is too weak.
        """
        with self.locked():
            return self.signers.add(name, passphrase)

    def remove_signer(self, name: str) -> None:
        """End a signer, the signer's pending approval, and what waits in the exchange folder for want of another.

        Raises:
            UsageError: there is none of this name.
        """
        with self.locked():
            self.signers.remove(name)
            self._take_back()

    def approvals(self, prepared: PreparedRelease) -> dict[str, Approval]:
        """Who has approved these bytes.

        Raises:
            FederationError: the ledger does not hold.
        """
        return standing(self.ledger.verify()).of(prepared.release.manifest.digest, prepared.sha256)

    def approve(self, by: str, manifest_digest: str, passphrase: Passphrase) -> dict[str, Approval]:
        """Sign the prepared release with a signer's key.

        Returns:
            all approvals of it so far; it is sealed once there are as many as the configuration asks for.

        Raises:
            UsageError: there is no such signer, or another release is prepared.
            KeyFileError: a wrong passphrase.
        """
        keys = self.signers.unlock(by, passphrase)
        with self.locked():
            prepared = self.outbox.prepared()
            if prepared.release.manifest.digest != manifest_digest:
                raise UsageError(
                    "The approval names another release than the prepared one",
                    do="Look at site-agent preview again and approve the digest that it prints",
                )
            if standing(self.ledger.verify()).signers.get(by) != keys.public():
                raise UsageError(f"{by} is no signer any more", do="See site-agent signer list")
            approval = Approval(
                manifest_digest=manifest_digest, release_sha256=prepared.sha256, by=by, at=datetime.now(UTC)
            )
            signed = sign_message(approval, keys)
            self.ledger.append("approved", **approval_facts(approval, signed, keys.public()))
            return self.approvals(prepared)

    def revoke(self, by: str) -> list[str]:
        """Take a signer's approval back; no passphrase is asked for what only stops things.

        Returns:
            rounds whose sealed release was taken out of the exchange folder.

        Raises:
            UsageError: there is no such approval.
        """
        with self.locked():
            if by not in standing(self.ledger.verify()).approvals:
                raise UsageError(f"There is no approval by {by}", do="See site-agent signer list")
            self.ledger.append("approval-revoked", by=by)
            return self._take_back()

    def _take_back(self) -> list[str]:
        """Take the prepared release out of the exchange folder if it lacks approvals now."""
        if not self.outbox.has_prepared():
            return []
        prepared = self.outbox.prepared()
        if len(self.approvals(prepared)) >= self.home.config.approval.signers:
            return []
        content, sealed = prepared.release.manifest.digest, load_state(self.home.folder).sealed
        found = [
            status.round
            for status in self.exchange.statuses()
            if status.state == "sealed" and status.round in sealed and sealed[status.round].content == content
        ]
        for name in found:
            self.exchange.set_status(
                SiteStatus(round=name, state="awaiting-approval", detail="An approval was taken back")
            )
        return found

    def apply(self) -> Applied:
        """Join the newest published release to the site's code list.

        Raises:
            UsageError: no release has arrived, or no code list was kept.
            ProtocolError: the release on disk is not what its manifest says.
        """
        from site_agent.codelist import apply_result  # noqa: PLC0415

        with self.locked():
            applied = apply_result(self.home)
            self.ledger.append("applied", version=applied.version)
            return applied

    def step(self) -> list[str]:
        """Answer every waiting call and take in every result; what happened, in words.

        A bad call or result is refused and recorded; it never stops the agent.
        """
        news = []
        with self.locked():
            _ = self._exchange_swept
            for data in self.exchange.calls():
                news += self._answer(data)
            for path in self.exchange.results():
                news += self._take_in(path)
        return news

    def _answer(self, data: bytes) -> list[str]:
        try:
            call = open_signed(data, RoundCall, self.home.invitation.keys)
        except VersionError as error:
            return self._other_version(data, error)
        except FederationError as error:
            self.exchange.drop_call(data)
            return [f"Ignored a call that the coordinator did not sign: {error}"]
        before = self.exchange.status(call.round)
        delivered = before is not None and before.state == "delivered"
        if delivered or call.expires <= datetime.now(UTC):
            # Nothing is left to do for it, and the folder holds few calls.
            self.exchange.drop_call(data)
            return [] if delivered else [f"The call of round {call.round} has expired"]
        mark = self._mark(data)
        if before is not None and (self._answered(call, before) or self._waiting.get(call.round) == mark):
            return []
        try:
            check_and_note(self.home.folder, self.ledger, call, data, self.home.config.site)
            status = self._status(call)
        except FederationError as error:
            status = SiteStatus(round=call.round, state="refused", detail=str(error)[:2000])
        if before is not None and before.state == status.state and before.detail == status.detail:
            if status.state == "awaiting-approval":
                self._waiting[call.round] = mark
            return []
        if status.state != "sealed":
            event = "refused" if status.state == "refused" else "answered"
            self.ledger.append(event, round=call.round, state=status.state, detail=status.detail)
        self.exchange.set_status(status)
        return [f"Round {call.round}: {status.state}. {status.detail}".strip()]

    @cached_property
    def _waiting(self) -> dict[str, object]:
        """Round -> what its state was found from; people take days, and reading a release takes a second."""
        return {}

    def _mark(self, call: bytes) -> object:
        """Differs whenever the answer to a call may differ, in a round that waits for people."""
        folder = self.home.folder
        return call, *(stamp(path) for path in (self.outbox.path, self.ledger.path, folder / "state.json"))

    def _other_version(self, data: bytes, error: VersionError) -> list[str]:
        """Refuse a call of another protocol, of which only the round's name is read; nobody has proved it."""
        self.exchange.drop_call(data)
        name = call_round(data)
        before = self.exchange.status(name) if name else None
        # What was answered stays: the sender of this call is not known.
        if name and (before is None or before.state in {"preparing", "awaiting-approval"}):
            self.ledger.append("refused", round=name, state="refused", detail=str(error))
            self.exchange.set_status(SiteStatus(round=name, state="refused", detail=str(error)))
        elif before is not None and before.detail == str(error):
            return []
        return [f"Refused a call: {error}"]

    def _answered(self, call: RoundCall, before: SiteStatus) -> bool:
        """Whether nothing is left to do for this call."""
        sealed = load_state(self.home.folder).sealed.get(call.round)
        if before.state != "sealed" or sealed is None or sealed.recipient != call.recipient.digest:
            return False
        # A round that was extended after an envelope had expired gets the same release in a new one.
        return sealed.expires > datetime.now(UTC) or sealed.expires >= call.expires

    def _status(self, call: RoundCall) -> SiteStatus:
        """What this site answers; seals the approved release when all conditions hold."""
        check_sealed_sharing(self.home)
        check_study(self.home, call)
        self._note_accepted(call)
        state = load_state(self.home.folder)
        if not self.outbox.has_prepared():
            return SiteStatus(
                round=call.round,
                state="preparing",
                detail="No release is prepared yet: run site-agent preview",
            )
        prepared = self.outbox.prepared()
        manifest = prepared.release.manifest
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
        have, needed = len(self.approvals(prepared)), self.home.config.approval.signers
        if have < needed:
            return SiteStatus(
                round=call.round,
                state="awaiting-approval",
                detail=f"Release {manifest.sequence} ({fingerprint(manifest.digest)}) waits for approval: {have} of {needed}",
            )
        before = state.sealed.get(call.round)
        recipient = call.recipient.digest
        answered = SealedFor(recipient=recipient, content=manifest.digest, expires=call.expires)
        if before is not None and before.recipient == recipient and before.content != answered.content:
            raise RoundError(
                f"Round {call.round} was answered with release {fingerprint(before.content)}",
                why="it may have been fetched, and one round gets one release of a site",
                do="The release that is approved now goes with the next round",
            )
        return self._seal(call, prepared, answered)

    def _seal(self, call: RoundCall, prepared: PreparedRelease, answered: SealedFor) -> SiteStatus:
        """All of the step `seal` but the status."""
        from site_agent.released import promote  # noqa: PLC0415

        keys, manifest, entries = self.home.keys, prepared.release.manifest, self.ledger.verify()
        header = release_header(self.home, call, manifest, entries[-1].head)
        self.outbox.seal(
            prepared,
            header,
            self._envelope,
            to=call.recipient,
            keys=keys,
            ledger=entries,
            needed=self.home.config.approval.signers,
        )
        promote(self.home.folder, manifest.digest)
        self.outbox.keep_sealed(prepared)
        self.ledger.append(
            "sealed",
            round=call.round,
            sequence=manifest.sequence,
            manifest=manifest.digest,
            approved_by=", ".join(self.approvals(prepared)),
            to=call.recipient.digest,
            sha256=file_digest(self._envelope),
            bytes=self._envelope.stat().st_size,
        )
        sha256, size = self.exchange.put_sealed(self._envelope)
        state = load_state(self.home.folder)
        sealed = dict([*state.sealed.items(), (call.round, answered)][-_ROUNDS_REMEMBERED:])
        save_state(self.home.folder, state.model_copy(update={"sealed": sealed}))
        return SiteStatus(
            round=call.round,
            state="sealed",
            detail=f"Release {manifest.sequence} is sealed to {fingerprint(call.recipient.digest)}",
            sha256=sha256,
            size=size,
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
            self.ledger.append("accepted", manifest=content, sequence=sequence)
            update = {"accepted_sequence": sequence, "accepted_digest": content}
            save_state(self.home.folder, state.model_copy(update=update))

    def _take_in(self, path: Path) -> list[str]:
        try:
            manifest = open_result(self.home, path)
        except FederationError as error:
            quarantine = self.home.folder / "quarantine"
            quarantine.mkdir(mode=0o700, exist_ok=True)
            self.ledger.append("quarantined", file=path.name, reason=str(error)[:500])
            # The exchange folder may be a mount of its own.
            shutil.move(path, quarantine / path.name)
            return [f"Refused a result, kept in {quarantine}: {error}"]
        receipt = Receipt(
            site=self.home.config.site,
            round=manifest.round,
            version=manifest.version,
            manifest_digest=manifest.digest,
            received=datetime.now(UTC),
        )
        for summary in manifest.sites:
            if summary.site == self.home.config.site and summary.state == "received":
                self._accepted(summary.sequence, summary.manifest_digest)
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
