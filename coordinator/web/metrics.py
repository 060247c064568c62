"""/metrics: how the federation and this process are, in Prometheus's text format.

Who may read it: a token of the role `monitor`, which is good for nothing else, or the coordinator's. An address lets nobody in:
behind a proxy every request comes from this machine. Labels hold names of rounds, sites and routes, and words of this software.

A number is there only where something is known. A site that has not answered has no time and no bytes, which is not the same as
zero; what a query finds missing, `absent()` tells. Times are seconds since 1970, so that an age is `time() - metric`
and goes on growing when nobody measures it any more.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator import rounds
from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.roundstates import STATES
from coordinator.store import Store
from coordinator.tables import Round
from coordinator.version import VERSION
from coordinator.web.access import current_person, not_signed_in
from coordinator.web.gate import Log
from coordinator.web.problems import ServiceError
from coordinator.web.rounds import moment

router = APIRouter(tags=["health"])

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OVER: Final = frozenset({"delivered", "aborted"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.3, 1, 3, 10, 30)


class Federation(Collector):
    """Rounds, sites and versions, read from the store and the desks whenever somebody asks.

    Args:
        home: of the coordinator.
        store: of the same.
    """

    def __init__(self, home: Home, store: Store) -> None:
        self._home, self._store = home, store

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the registry would read the store to find the names out."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now."""
        yield InfoMetricFamily("smile_coordinator", "This software and its study.", value=self._about())
        found = self._store.rounds()
        yield self._by_state(found)
        yield from self._versions()
        yield from self._rounds([r for r in found if r.state not in _OVER])

    def _about(self) -> dict[str, str]:
        return {"version": VERSION, "study": self._home.study.id}

    def _by_state(self, found: list[Round]) -> Metric:
        tally = Tally(r.state for r in found)
        made = GaugeMetricFamily("smile_rounds", "Rounds by state.", labels=["state"])
        for state in STATES:
            made.add_metric([state], tally[state])
        return made

    def _versions(self) -> Iterator[Metric]:
        standing = [v for v in self._store.versions() if v.withdrawn is None]
        yield GaugeMetricFamily("smile_versions", "Published versions that stand.", value=len(standing))
        if standing:
            last = standing[-1]
            number, created = "smile_newest_version", "smile_newest_version_created_timestamp_seconds"
            yield GaugeMetricFamily(number, "Number of the newest version that stands.", value=last.version)
            yield GaugeMetricFamily(created, "When it was published.", value=_seconds(last.created))

    def _rounds(self, current: list[Round]) -> Iterator[Metric]:
        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"smile_{name}", text, labels=["round", *labels])

        state = gauge("round_state", "1 for the state of each round that is not over.", "state")
        deadline = gauge("round_deadline_timestamp_seconds", "When a called round's deadline is.")
        quorum = gauge("round_quorum_sites", "Accepted releases without which a round is not fitted.")
        sites = gauge(
            "round_sites", "Sites of a round by state; a state that none is in is left out.", "state"
        )
        heard = gauge("site_heard_timestamp_seconds", "When a site last answered in a round.", "site")
        done = gauge("site_transfer_bytes", "Bytes of a site's release or result that have crossed.", "site")
        total = gauge("site_transfer_size_bytes", "Of how many, where that is known.", "site")
        verdicts = gauge("round_releases", "Releases of a round by what was found.", "verdict")
        readable = True
        for found in current:
            state.add_metric([found.name, found.state], 1)
            quorum.add_metric([found.name], self._home.study.quorum)
            if found.state == "planned":
                continue
            deadline.add_metric([found.name], _seconds(found.expires))
            for verdict, n in Tally(s.state for s in self._store.submissions(found.name)).items():
                verdicts.add_metric([found.name, verdict], n)
            try:
                self._sites(found.name, sites, heard, (done, total))
            except PermissionError:
                readable = False
        yield from (state, deadline, quorum, sites, heard, done, total, verdicts)
        text = "0 if this process is kept out of the rounds' folder: then there are no figures of sites."
        yield GaugeMetricFamily("smile_sites_readable", text, value=int(readable))

    def _sites(
        self,
        name: str,
        sites: GaugeMetricFamily,
        heard: GaugeMetricFamily,
        transfer: tuple[GaugeMetricFamily, GaugeMetricFamily],
    ) -> None:
        desk, states = (
            RoundDesk(self._home.round_folder(name)),
            rounds.site_states(self._home, self._store, name),
        )
        for word, n in Tally(s.state for s in states).items():
            sites.add_metric([name, word], n)
        for site in states:
            when = moment(desk.progress(site.site).heard)
            if when is not None:
                heard.add_metric([name, site.site], when.timestamp())
            if site.bytes_total:
                transfer[0].add_metric([name, site.site], site.bytes_done)
                transfer[1].add_metric([name, site.site], site.bytes_total)


class Metrics:
    """What one application measures; each has a registry of its own.

    Args:
        home: of the coordinator.
        store: of the same.
    """

    def __init__(self, home: Home, store: Store) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "smile_web_requests",
            "Requests that the web service has answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "smile_web_request_duration_seconds",
            "Seconds from a request's first byte to its answer's last.",
            ["route"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(Federation(home, store))

    def counting(self, log: Log | None) -> Log:
        """A log of answers that counts each one, and hands it on."""

        def count(record: dict[str, Any]) -> None:
            # Anybody may send any method, and ask for any path: a series for each would fill the memory.
            method = record["method"] if record["method"] in _METHODS else "other"
            route = record["route"] or "none"
            self._requests.labels(method, route, str(record["status"])).inc()
            self._seconds.labels(route).observe(record["ms"] / 1000)
            if log is not None:
                log(record)

        return count

    def text(self) -> bytes:
        """Prometheus's text format 0.0.4; blocks on the database."""
        return generate_latest(self.registry)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request) -> Response:
    """Figures for Prometheus: a token of the role `monitor`, or the coordinator's, reads them."""
    person = current_person(request)
    if person is None:
        raise not_signed_in()
    if person.role not in {"monitor", "coordinator"}:
        raise ServiceError(
            403,
            "This needs the role monitor",
            why=f"{person.name} has the role {person.role}",
            do="Ask the coordinator: coordinator token add prometheus --role monitor",
        )
    measured: Metrics = request.app.state.metrics
    return Response(measured.text(), headers={"content-type": CONTENT_TYPE})


def _seconds(when: datetime) -> float:
    """Of a time of the store, which is UTC without a zone."""
    return when.replace(tzinfo=UTC).timestamp()
