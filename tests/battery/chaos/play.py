"""Playing rounds with faults in them, and the table of what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.battery.chaos.faults import Scene
from tests.battery.chaos.invariants import Watch
from tests.battery.chaos.stack import CommandError, Federation
from tests.battery.chaos.steps import Step

LONGEST = 600.0
"""Seconds that a round may take after its last fault is over; more is a hang."""


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    fault: str
    faults: int
    recovery: float
    said: tuple[str, ...]
    outcome: str


@dataclass
class Play:
    """A federation that runs, and all that has been done to it."""

    federation: Federation
    watch: Watch
    lines: list[Line] = field(default_factory=list)
    rounds: int = 0
    length: float = 0.0
    """Seconds of the last undisturbed round."""

    def round(
        self, fault: str, act: Callable[[Scene], None], *, steps: Sequence[Step] = (), fresh: str = ""
    ) -> Line:
        """One round with a fault, driven to its end; then everything must hold.

        Args:
            fault: its name in the table.
            act: puts it in.
            steps: at which processes kill themselves on the way.
            fresh: a site that has new data for this round.

        Raises:
            AssertionError, TimeoutError: what did not hold or did not happen.
        """
        fed, self.rounds = self.federation, self.rounds + 1
        scene = Scene(fed, f"r{self.rounds}")
        for step in steps:
            (fed.folder / "fuses" / step.id).touch()
        for site in {s.role.removesuffix("-command") for s in steps if s.fresh} | ({fresh} - {""}):
            self._release(site)
        self._insist(lambda: fed.command("hub", "round", "open", scene.name), unless=scene.name)
        begin = time.monotonic()
        fed.drive(scene.name)
        act(scene)
        driver = fed.services[f"round-{scene.name}"]  # a fault may have put another in its place
        fed.until(f"the end of round {scene.name} ({fault})", lambda: driver.done, LONGEST)
        ended = driver.ended[-1].at
        burnt = [fed.folder / "burnt" / step.id for step in steps]
        missing = [str(s) for s, p in zip(steps, burnt, strict=True) if not p.exists()]
        no_function = [p.name for p in (fed.folder / "missing").iterdir()]
        assert not missing, f"not come to: {missing}; without such a function: {no_function}"
        seen = [name for name, service in fed.services.items() if "Traceback" in service.text()]
        assert not seen, f"{scene.name}: a person sees a traceback of {seen}"
        self.watch.check(scene.name, disturbed=bool(steps) or fault != "undisturbed")
        healed = max([scene.healed, *(time.monotonic() - (time.time() - p.stat().st_ctime) for p in burnt)])
        count = scene.faults + len(steps) or int(fault != "undisturbed")
        line = Line(fault, count, max(0.0, ended - healed), tuple(scene.said), "right release")
        self.lines.append(line)
        if fault == "undisturbed":
            self.length = ended - begin
        del fed.services[f"round-{scene.name}"]
        driver.stop()
        return line

    def _release(self, site: str) -> None:
        """New data, previewed and approved, however often a command is killed on the way."""
        fed = self.federation
        fed.new_data(site)
        self._insist(lambda: fed.approve(site))

    def _insist(self, command: Callable[[], object], *, unless: str = "") -> None:
        """A person runs a command that was killed again; one that says that it is done was done."""
        for _ in range(5):
            try:
                command()
            except CommandError as error:
                if error.code == -9:
                    continue
                if unless and f"Round {unless!r} exists" in str(error):
                    return
                raise
            else:
                return
        raise AssertionError("the command was killed again and again")


def table(lines: Sequence[Line]) -> str:
    """The figures, for people: a row for each kind of fault."""
    kinds = dict.fromkeys(line.fault for line in lines)
    rows = [f"{'fault':<60} {'faults':>6} {'rounds':>6} {'right':>6} {'recovery s (median, most)':>26}"]
    for kind in kinds:
        own = [line for line in lines if line.fault == kind]
        times = sorted(line.recovery for line in own)
        right = sum(line.outcome == "right release" for line in own)
        spread = f"{times[len(times) // 2]:.0f}, {times[-1]:.0f}"
        rows.append(f"{kind:<60} {sum(o.faults for o in own):>6} {len(own):>6} {right:>6} {spread:>26}")
    return "\n".join(rows)


def write(lines: Sequence[Line], path: Path) -> None:
    """Everything that was said, for a person to read."""
    path.write_text(
        "\n".join(f"{x.fault} | {x.outcome} | {x.recovery:.1f} s | {'; '.join(x.said)}" for x in lines)
    )
