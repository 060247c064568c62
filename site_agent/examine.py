"""`site-agent doctor`: what would go wrong, before it does."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Literal, NamedTuple

from protocol.errors import FederationError
from site_agent.config import Home
from site_agent.gate import suppress
from site_agent.prepare import count_events, site_anchors, stage_events, work_lock
from site_agent.resources import resources
from site_agent.sources import Progress, silent


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    result: Literal["ok", "look", "failed"]
    finding: str


def examine(home: Home, progress: Progress = silent) -> list[Check]:
    """Configuration, keys, data, floors and connection, in this order; a failure ends what depends on it."""
    checks: list[Check] = []

    def run(name: str, look: Callable[[], tuple[Literal["ok", "look"], str]]) -> bool:
        progress(name, len(checks) / 6)
        try:
            checks.append(Check(name, *look()))
        except FederationError as error:
            checks.append(Check(name, "failed", str(error)))
            return False
        return True

    if run("configuration", lambda: _configuration(home)):
        run("keys", lambda: ("ok", f"fingerprint {home.keys.public().fingerprint}"))
        run("anchors", lambda: _anchors(home))
        run("data and floors", lambda: _data(home))
        run("connection", lambda: _connection(home))
    return checks


def _configuration(home: Home) -> tuple[Literal["ok", "look"], str]:
    study = home.study
    if not home.config.network.allow_bundles:
        return "look", "network.allow_bundles is empty: every message will be denied"
    return "ok", f"site {home.config.site} of study {study.id}, digest {study.digest[:12]}"


def _anchors(home: Home) -> tuple[Literal["ok", "look"], str]:
    n = len(site_anchors(home))
    if n == 0 and home.config.data.system != home.study.standard:
        return "look", "no anchors: only codes shared with other sites can align this site's codes"
    return "ok", f"{n:,} anchors"


def _data(home: Home) -> tuple[Literal["ok", "look"], str]:
    machine = resources(home.config.machine)
    with work_lock(home):
        staged = stage_events(home, machine)
        runs = count_events(home, staged, machine)
        policy = home.policy()
        counts = runs.total(
            floor=policy.min_pair_patients, memory=machine.memory // 2, threads=machine.threads
        )
    kept = suppress(counts, policy, shift=home.study.embedding.ppmi_shift)
    s = kept.statistics
    finding = (
        f"{staged.n_rows:,} rows, {s.patients:,} patients, {s.codes_seen:,} codes; "
        f"{s.codes_released:,} codes and {s.mass_kept:.0%} of co-occurrences pass the floors"
    )
    skipped = sum(staged.skipped.values())
    if skipped:
        finding += f"; {skipped:,} rows skipped"
    enough = s.codes_released >= 2 * home.study.embedding.codes_per_dim
    return ("ok" if enough else "look"), finding


def _connection(home: Home) -> tuple[Literal["ok", "look"], str]:
    host, _, port = home.invitation.address.rpartition(":")
    context = ssl.create_default_context(cadata=home.invitation.certificate)
    try:
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return "ok", f"{home.invitation.address} answers with the invited certificate, {secure.version()}"
    except (OSError, ValueError) as error:
        return "look", f"{home.invitation.address} cannot be reached now: {error}"
