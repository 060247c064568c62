"""Configuration, keys, signers, views, data, floors and connection of a site, looked at before the long run."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from protocol.errors import FederationError
from protocol.keep import NAME as ONTOLOGY
from protocol.release import TEXT
from site_agent.config import Home
from site_agent.doctor.estimate import Estimate, estimate
from site_agent.doctor.findings import Check, Result, findings
from site_agent.doctor.numbers import EXACT, Numbers
from site_agent.doctor.profiling import Profile, profile
from site_agent.doctor.trust import signers, site_key
from site_agent.gate import allowed_dim, pair_floor, suppress
from site_agent.prepare import count_events, site_anchors, stage_events
from site_agent.resources import Resources, resources
from site_agent.sections import Machine
from site_agent.sources import Progress, silent
from site_agent.staging import Staged
from site_agent.viewing import open_views
from site_agent.working import work_lock

SMALL = 2_000_000
"""Rows; so few are counted without being asked for."""

_Looked = tuple[Result, str]


@dataclass
class Examination:
    """What `site-agent doctor` found out.

    Attributes:
        home: the site.
        before: checks of the configuration, before the data.
        after: checks that follow those of the data: floors and connection.
        profile: of the events; None where they could not be read.
        estimate: of the counting; None where it was done, or the events could not be read.
    """

    home: Home
    before: list[Check] = field(default_factory=list)
    after: list[Check] = field(default_factory=list)
    profile: Profile | None = None
    estimate: Estimate | None = None

    def checks(self, numbers: Numbers = EXACT) -> list[Check]:
        """All checks in order, with the data's numbers as `numbers` writes them."""
        data = findings(self.profile, self.home.study, numbers) if self.profile else []
        return [*self.before, *data, *self.after]


def examine(
    home: Home,
    progress: Progress = silent,
    *,
    memory: str = "",
    threads: int = 0,
    count: bool = False,
) -> Examination:
    """Configuration, keys, signers, anchors, views, data, floors, connection, in this order; a failure ends what depends on it.

    Coded events stay in the site's work folder, where `preview` finds them.

    Args:
        home: the site.
        progress: told each step.
        memory: to count in, such as "6G"; the configured one if empty.
        threads: cores to count on; the configured ones if 0.
        count: count pairs however many rows there are, not only of `SMALL` data.

    Raises:
        UsageError: `memory` is no size.
    """
    if memory:
        resources(Machine(), memory=memory)  # a wrong option is the caller's mistake, and no finding
    found = Examination(home)
    if not _run(found.before, "configuration", lambda: _configuration(home), progress):
        return found
    now = datetime.now(UTC)
    _run(found.before, "keys", lambda: site_key(home, now), progress)
    _run(found.before, "signers", lambda: signers(home, now), progress)
    _run(found.before, "anchors", lambda: _anchors(home), progress)
    _run(found.before, "views", lambda: _views(home), progress)

    def data() -> _Looked:
        return _data(found, resources(home.config.machine, memory=memory, threads=threads), count, progress)

    _run(found.after, "data", data, progress)
    if found.profile is not None:
        found.after[-1] = found.after[-1]._replace(
            name="floors"
        )  # the profile has the findings about the data
    _run(found.after, "connection", lambda: _connection(home), progress)
    return found


def _run(checks: list[Check], name: str, look: Callable[[], _Looked], progress: Progress) -> bool:
    progress(name, 0.0)
    try:
        checks.append(Check(name, *look()))
    except FederationError as error:
        checks.append(Check(name, "failed", str(error)))
    except (
        Exception
    ) as error:  # what no reader foresaw is a finding about the data, not the end of the examination
        why = (str(error).strip() or "no more is known").splitlines()[0][:300]
        text = f"{type(error).__name__}: {why}. The agent did not expect this: please report it"
        checks.append(Check(name, "failed", text))
    return checks[-1].result != "failed"


def _configuration(home: Home) -> _Looked:
    study = home.study
    if not home.config.network.allow_bundles:
        return "look", "network.allow_bundles is empty: every message will be denied"
    return "ok", f"site {home.config.site} of study {study.id}, digest {study.digest[:12]}"


def _anchors(home: Home) -> _Looked:
    n = len(site_anchors(home))
    if n == 0 and home.config.data.system != home.study.standard:
        return "look", "no anchors: only codes shared with other sites can align this site's codes"
    return "ok", f"{n:,} anchors"


def _views(home: Home) -> _Looked:
    """Opens what the views beside co-occurrence need, so that a missing file is found before the long run."""
    tools, study = open_views(home), home.study
    wanted = {TEXT: study.text.sites, ONTOLOGY: bool(study.ontology.digest)} | {
        v.name: True for v in study.views
    }
    have = {TEXT: tools.encoder is not None, ONTOLOGY: tools.links is not None} | dict.fromkeys(
        tools.makers, True
    )
    made = [name for name, there in have.items() if there]
    said = ", ".join(["cooccurrence", *made])
    off = [name for name, asked in wanted.items() if asked and not have.get(name)]
    if off:
        return "ok", f"{said}; the study has {', '.join(off)} too, which site.toml does not let leave"
    return "ok", said


def _data(found: Examination, machine: Resources, count: bool, progress: Progress) -> _Looked:
    """Stage and profile the events, then count them or say how long that will take."""
    home = found.home
    with work_lock(home):
        staged = stage_events(home, machine, progress)
        found.profile = profile(
            staged,
            home.policy(),
            home.study,
            _anchors_or_none(home),
            threads=machine.threads,
            memory=machine.memory // 2,
            progress=progress,
        )
        if count or staged.n_rows < SMALL:
            return _floors(home, staged, machine, progress)
        progress("counting a sample", 0.0)
        found.estimate = estimate(staged, found.profile, home.study.counting, home.work / "sample", machine)
    pairs, seconds = found.estimate.pairs, found.estimate.seconds
    return "ok", (
        f"not counted: {pairs:,} pairs of events, about {_duration(seconds)} on {machine.threads} "
        f"core{'' if machine.threads == 1 else 's'}. With --count they are counted now"
    )


def _anchors_or_none(home: Home) -> dict[str, str]:
    """The anchors, or none where the check of the anchors has failed already."""
    try:
        return dict(site_anchors(home))
    except FederationError:
        return {}


def _floors(home: Home, staged: Staged, machine: Resources, progress: Progress) -> _Looked:
    policy = home.policy()
    runs = count_events(home, staged, machine, progress)
    counts = runs.total(floor=policy.min_pair_patients, memory=machine.memory // 2, threads=machine.threads)
    s = suppress(counts, policy, shift=home.study.embedding.ppmi_shift).statistics
    enough = s.codes_released >= 2 * home.study.embedding.codes_per_dim
    return ("ok" if enough else "look"), (
        f"{s.codes_released:,} of {s.codes_seen:,} codes and {s.mass_kept:.0%} of co-occurrences pass the floors "
        f"(a code needs {policy.min_code_patients} patients, a pair {pair_floor(policy, s.patients)}); "
        f"at most {allowed_dim(s.codes_released, policy, home.study)} dimensions may leave"
    )


def _connection(home: Home) -> _Looked:
    host, _, port = home.invitation.address.rpartition(":")
    try:
        context = ssl.create_default_context(cadata=home.invitation.certificate)
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return "ok", f"{home.invitation.address} answers with the invited certificate, {secure.version()}"
    except (OSError, ValueError) as error:
        return "look", f"{home.invitation.address} cannot be reached now: {error}"


def _duration(seconds: float) -> str:
    for limit, size, unit in ((100, 1, "seconds"), (6000, 60, "minutes")):
        if seconds < limit:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{seconds / 3600:.1f} hours"
