"""The ServerApp: carries calls, sealed files and results between a round's desk and the sites.

It sees sealed bytes and signed JSON only, and checks lengths and digests; who signed what is
for the round to verify. Every reply is taken for hostile: one that is too long, malformed or of
another digest than announced makes its site `refused`, and the round goes on with the others.

Bulk moves one site at a time, in blocks. What is held of a file survives the run, so a transfer
that broke, or a run that was started again, goes on from there.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.flower.desk import RoundDesk, SiteProgress, State, utc_now
from coordinator.flower.post import (
    Post,
    Request,
    SiteAnswer,
    SiteError,
    Turn,
    fetch,
    printable,
    read_answer,
    read_attached,
    send,
)
from protocol.canonical import file_digest
from protocol.errors import UsageError
from protocol.files import sync_folder, write_atomic

MAX_BLOCK = 32 << 20

SMALL = 256 << 10
"""Bytes of a sum's material that travel with the call."""

LOOK_SECONDS = 10.0
"""One look at all sites waits so long; an answer that comes later is taken at the next look."""

TURN_SECONDS = 600.0
"""Then a transfer lets the other sites have a look and a turn, and goes on afterwards."""

ATTEMPTS = 5
"""Failed transfers after which a site is refused for this run: unread blocks fill the database."""


# --- The phases ----------------------------------------------------------------------------------------


class _Phase:
    """What only some phases do."""

    def enclosed(self, site: str) -> Request:
        """What goes to a site beside the call."""
        del site
        return {}

    def attached(self, site: str, answer: SiteAnswer, data: bytes) -> bool:
        """Whether the bytes that came with an answer were taken, so that none need to move."""
        del site, answer, data
        return False


@dataclass
class Collect(_Phase):
    """Sealed files come in."""

    desk: RoundDesk
    moving: State = "receiving"
    attempts: int = ATTEMPTS

    def settled(self, site: str) -> bool:
        """An earlier run brought the site's file."""
        return self.desk.received(site).exists()

    def heard(self, site: str, answer: SiteAnswer) -> tuple[State, bool]:
        """The state that follows from an answer, and whether bytes are to move."""
        if answer.state == "unknown" or answer.state == "delivered":  # noqa: PLR1714  (mypy narrows this one)
            return "invited", False
        if answer.state == "sealed" and not (answer.sha256 and answer.size):
            raise SiteError("The site names no sealed file", "refused")
        if answer.state == "sealed" and answer.sha256 == self.desk.refused(site)[0]:
            raise SiteError("The file that it offers was refused before", "refused")
        return answer.state, answer.state == "sealed"

    def move(self, site: str, answer: SiteAnswer, turn: Turn) -> State:
        """Fetch the sealed file; the state afterwards."""
        part = self.desk.part(site, answer.sha256)
        if not fetch(turn, part, answer):
            return "sealed"
        part.replace(self.desk.received(site))
        sync_folder(part.parent)
        return "received"


@dataclass
class Deliver(_Phase):
    """Results go out."""

    desk: RoundDesk
    moving: State = "sending"
    attempts: int = 1 << 30
    digests: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)

    def settled(self, site: str) -> bool:
        """There is nothing to bring; whether it was brought before, the site's answer tells."""
        path = self.desk.outgoing(site)
        if path.exists():
            self.digests[site] = file_digest(path)
        return site not in self.digests

    def heard(self, site: str, answer: SiteAnswer) -> tuple[State, bool]:
        """Delivered, or refused, once the site's agent says so of this very result."""
        if answer.state in {"delivered", "refused"} and answer.sha256 == self.digests[site]:
            return answer.state, False
        return "sending", site not in self.held

    def move(self, site: str, answer: SiteAnswer, turn: Turn) -> State:
        """Send the result; the state afterwards."""
        del answer
        if send(turn, self.desk.outgoing(site), self.digests[site]):
            self.held.add(site)
        return "sending"


@dataclass
class Converse(_Phase):
    """A step of a secure sum: its material goes out, then each site's answer comes in.

    What is small travels with the call and with the answer, to and from all sites at once: a message
    costs seconds, and a sum has eight steps. What is large moves one site at a time, as sealed files do.
    """

    desk: RoundDesk
    moving: State = "receiving"
    attempts: int = ATTEMPTS
    held: set[str] = field(default_factory=set)

    @cached_property
    def material(self) -> str:
        """Digest of the step's material."""
        return file_digest(self.desk.material)

    def enclosed(self, site: str) -> Request:
        """A small material, until the site speaks of it."""
        if site in self.held or self.desk.material.stat().st_size > SMALL:
            return {}
        return {"material": self.desk.material.read_bytes()}

    def attached(self, site: str, answer: SiteAnswer, data: bytes) -> bool:
        """Keep a small answer, if it is the one announced; otherwise it is fetched."""
        if hashlib.sha256(data).hexdigest() != answer.sha256:
            return False
        write_atomic(self.desk.received(site), data)
        return True

    def settled(self, site: str) -> bool:
        """An earlier run brought the site's answer."""
        return self.desk.received(site).exists()

    def heard(self, site: str, answer: SiteAnswer) -> tuple[State, bool]:
        """The state that follows from an answer; material goes to a site that does not speak of it yet."""
        if answer.state == "sealed":
            if not (answer.sha256 and answer.size):
                raise SiteError("The site names no file", "refused")
            return "sealed", True
        if answer.sha256 == self.material and answer.state in {"preparing", "awaiting-approval", "refused"}:
            self.held.add(site)
            return ("refused" if answer.state == "refused" else "awaiting-approval"), False
        return "sending", site not in self.held and self.desk.material.stat().st_size > SMALL

    def move(self, site: str, answer: SiteAnswer, turn: Turn) -> State:
        """Send the material, or fetch the answer; the state afterwards."""
        if answer.state == "sealed":
            return Collect(self.desk).move(site, answer, turn)
        if send(turn, self.desk.material, self.material):
            self.held.add(site)
        return "sending"


ENDS: frozenset[State] = frozenset({"received", "refused", "delivered"})
Phase = Collect | Deliver | Converse
PHASES: dict[str, type[Phase]] = {"collect": Collect, "deliver": Deliver, "sum": Converse}


@dataclass
class Visit:
    """One phase over all sites: look at every site, let those that are ready move bytes, and again."""

    post: Post
    phase: Phase
    sites: dict[str, int]
    block: int
    poll: float
    deadline: float
    asked: dict[str, str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Go on until every site is at an end, or the deadline (monotonic) has passed."""
        for site in [site for site in self.sites if self.phase.settled(site)]:
            del self.sites[site]
        while self.sites and time.monotonic() < self.deadline:
            for site, answer in self.look().items():
                self.turn(site, answer)
            if self.sites:
                time.sleep(max(0.0, min(self.poll, self.deadline - time.monotonic())))

    def look(self) -> dict[str, SiteAnswer]:
        """Ask every site, and return the answers of those whose bytes are to move."""
        online = self.post.online()
        request: Request = {"round": self.phase.desk.round_id, "call": self.phase.desk.call()}
        ready: dict[str, SiteAnswer] = {}
        for site, node in self.sites.items():
            if site not in self.asked and node not in online:
                self.note(site, "offline", "The site's node is not connected.")
            elif site not in self.asked:
                try:
                    self.asked[site] = self.post.send(node, "call", {**request, **self.phase.enclosed(site)})
                except SiteError as error:
                    self.fail(site, error)
        end = min(time.monotonic() + LOOK_SECONDS, self.deadline)
        while self.asked and time.monotonic() < end:
            for site, message_id in list(self.asked.items()):
                self._hear(site, message_id, ready)
            if self.asked:
                self.post.pause()
        return ready

    def _hear(self, site: str, message_id: str, ready: dict[str, SiteAnswer]) -> None:
        try:
            content = self.post.take(message_id, self.sites[site])
            if content is None:
                return
            answer = read_answer(content, self.phase.desk.round_id)
            state, moves = self.phase.heard(site, answer)
            data = read_attached(content, answer)
            if moves and data is not None and self.phase.attached(site, answer, data):
                state, moves = "received", False
        except SiteError as error:
            del self.asked[site]
            self.fail(site, error)
            return
        del self.asked[site]
        self.note(site, state, printable(answer.detail), receipt=answer.receipt)
        if moves:
            ready[site] = answer

    def turn(self, site: str, answer: SiteAnswer) -> None:
        """Move bytes to or from one site, for at most one turn."""

        def report(done: int, total: int) -> None:
            self.note(site, self.phase.moving, bytes_done=done, bytes_total=total)

        until = min(time.monotonic() + TURN_SECONDS, self.deadline)
        try:
            state = self.phase.move(
                site, answer, Turn(self.post, self.sites[site], self.block, until, report)
            )
        except SiteError as error:
            self.failures[site] += error.state != "offline"
            if self.failures[site] >= self.phase.attempts:
                error.state = "refused"
            self.fail(site, error)
        except OSError as error:
            self.fail(site, SiteError(f"The coordinator's disk failed: {error.strerror}"))
        else:
            self.note(site, state)

    def fail(self, site: str, error: SiteError) -> None:
        """Say what went wrong with a site."""
        last = self.phase.desk.progress(site)
        self.note(site, error.state or last.state, str(error), heard=last.heard)

    def note(self, site: str, state: State, detail: str = "", **fields: int | str) -> None:
        """Write a site's progress, and leave the site alone once it is at an end."""
        desk = self.phase.desk
        last = desk.progress(site)
        kept = {"bytes_done": last.bytes_done, "bytes_total": last.bytes_total, "receipt": last.receipt}
        kept["heard"] = last.heard if state == "offline" else utc_now()
        desk.report(
            SiteProgress.model_validate({**kept, **fields, "site": site, "state": state, "detail": detail})
        )
        if (state, detail) != (last.state, last.detail):
            desk.log(f"{site}: {state} {detail}".rstrip())
        if state in ENDS:
            self.sites.pop(site, None)


# --- Flower --------------------------------------------------------------------------------------------

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One phase of a round, as the run's configuration says.

    Raises:
        UsageError: the configuration names no desk, phase or site that there is.
    """
    config = context.run_config
    desk = RoundDesk(Path(str(config["desk"])))
    phase = PHASES.get(str(config["phase"]))
    sites = desk.sites()
    wanted = {name for name in str(config["sites"]).split(",") if name} or set(sites)
    if phase is None or not wanted <= set(sites):
        raise UsageError(
            "The run's configuration is not valid", why="it names a phase or a site that there is not"
        )
    desk.log(f"run {context.run_id}: {config['phase']}")
    Visit(
        post=Post(grid, "sum" if phase is Converse else "round"),
        phase=phase(desk),
        sites={site: node for site, node in sites.items() if site in wanted},
        block=max(1, min(int(config["block-bytes"]), MAX_BLOCK)),
        poll=float(config["poll-seconds"]),
        deadline=time.monotonic() + float(config["deadline-seconds"]),
    ).run()
    desk.log(f"run {context.run_id}: ended")
