"""The simulation protocol of the SMILE paper, section 4: four settings, replications, every method on the same data.

The paper's text lost the values of kappa and K and the shared choices; those here are ours (see `SETTINGS`).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from coordinator.simulation.generate import simulate_paper
from coordinator.simulation.methods import METHODS, Measured, measure
from protocol.errors import FederationError, UsageError

_POSITIVE = 2.5 / 6.0  # of the pairs of each kind: 2.5 % and 3.5 % make the 6 % of the common design


@dataclass(frozen=True, order=True)
class Design:
    """What is simulated, but for the seed.

    Attributes:
        n_sources: S.
        kappa: concentration of codes around their cluster's center.
        n_clusters: K.
        pairs: pairs of each kind, positive and negative, in percent of all pairs.
        n_codes: n.
        dim: d.
        columns: p of each source.
    """

    n_sources: int = 3
    kappa: float = 20.0
    n_clusters: int = 100
    pairs: float = 6.0
    n_codes: int = 1000
    dim: int = 10
    columns: int = 100


SMALL: Final = Design(n_clusters=20, n_codes=200, columns=40)
"""A fifth of the codes and clusters: to try the command, not to report from."""


@dataclass(frozen=True)
class Setting:
    """One of the four: which field of the design varies, in words, and over which values."""

    parameter: str
    title: str
    values: tuple[float, ...]


SETTINGS: Final[Mapping[int, Setting]] = {
    1: Setting("n_sources", "number of sources S", (1, 2, 3, 4)),
    2: Setting("kappa", "concentration κ", (20, 50, 100, 200)),
    3: Setting("n_clusters", "number of clusters K", (25, 50, 100, 200)),
    4: Setting("pairs", "known pairs, % of all", (4, 6, 8)),
}


@dataclass(frozen=True)
class Job:
    """One replication: all methods run on the same simulated data."""

    design: Design
    seed: int


@dataclass(frozen=True)
class Row:
    """One row of the results: where it stands in the experiment, and what one method reached there."""

    setting: int
    parameter: str
    value: float
    seed: int
    method: str
    n_sources: int
    kappa_true: float
    n_clusters: int
    pairs: float
    accuracy_u: float
    accuracy_centers: float
    ami: float
    kappa: float
    seconds: float
    error: str


Results = dict[tuple[Job, str], Measured]
"""What is measured so far, by replication and method."""


def designs(setting: int, base: Design) -> list[tuple[float, Design]]:
    """The values of a setting, each with its design; values of K scale with the codes of the base."""
    chosen = SETTINGS[setting]
    found = []
    for value in chosen.values:
        if chosen.parameter == "n_clusters":
            value = max(2, round(value * base.n_clusters / Design.n_clusters))  # noqa: PLW2901
        number: Any = int(value) if chosen.parameter in {"n_sources", "n_clusters"} else float(value)
        found.append((float(value), replace(base, **{chosen.parameter: number})))
    return found


def jobs(settings: Sequence[int], base: Design, seeds: Sequence[int]) -> list[Job]:
    """All replications, each once, although settings share the common design.

    Seed by seed: an experiment that is stopped early has the same seeds for all.
    """
    chosen = [design for setting in settings for _, design in designs(setting, base)]
    return [Job(design, seed) for seed in seeds for design in dict.fromkeys(chosen)]


def rows(results: Results, settings: Sequence[int], base: Design) -> list[Row]:
    """The results as a table, in the order of setting, value, seed and method."""
    order = {method: place for place, method in enumerate(METHODS)}
    found = []
    for setting in sorted(settings):
        for value, design in designs(setting, base):
            here = [(job.seed, order[m], got) for (job, m), got in results.items() if job.design == design]
            for seed, _, got in sorted(here, key=lambda entry: entry[:2]):
                given = {f.name: getattr(got, f.name) for f in fields(got)}
                found.append(
                    Row(
                        setting=setting,
                        parameter=SETTINGS[setting].parameter,
                        value=value,
                        seed=seed,
                        n_sources=design.n_sources,
                        kappa_true=design.kappa,
                        n_clusters=design.n_clusters,
                        pairs=design.pairs,
                        **given,
                    )
                )
    return found


def replicate(job: Job, methods: tuple[str, ...]) -> list[Measured]:
    """Simulate once and run the methods; equal arguments give equal figures, times aside."""
    design = job.design
    simulation = simulate_paper(
        job.seed,
        n_clusters=design.n_clusters,
        kappa=design.kappa,
        n_codes=design.n_codes,
        dim=design.dim,
        columns=design.columns,
        n_sources=design.n_sources,
        positive=_POSITIVE * design.pairs / 100.0,
        negative=(1.0 - _POSITIVE) * design.pairs / 100.0,
    )
    return list(measure(simulation, methods, job.seed))


def run(
    todo: Sequence[tuple[Job, tuple[str, ...]]],
    *,
    processes: int = 1,
    done: Callable[[Job, list[Measured]], None],
) -> None:
    """Run replications, and hand over each when it ends.

    Args:
        todo: replications with the methods to run on each.
        processes: how many run at a time; 1 runs them in this process.
        done: called in this process with a replication and what came out.

    Raises:
        FederationError: a process was killed.
    """
    if processes <= 1:
        for job, methods in todo:
            done(job, replicate(job, methods))
        return
    # Fresh processes, not forks: a fork of a process whose BLAS has threads may hang. They take the number
    # of threads from the environment, and together no more than there are cores.
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with _environment({"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}):
        pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        try:
            waiting = {pool.submit(replicate, job, methods): job for job, methods in todo}
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    done(waiting.pop(future), future.result())
        except BrokenProcessPool:
            raise FederationError(
                "A process of the experiment was killed",
                why="often the machine has too little memory for so many at a time",
                do="Run the same command with fewer --jobs: what is done is kept",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def chosen_settings(text: str) -> tuple[int, ...]:
    """The settings that "1,3" means.

    Raises:
        UsageError: there is no such setting.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    known = {str(number): number for number in SETTINGS}
    unknown = [word for word in words if word not in known]
    if unknown or not words:
        raise UsageError(
            f"There is no setting {unknown[0] if unknown else 'of no number'}",
            why="; ".join(f"{number} varies the {s.title}" for number, s in SETTINGS.items()),
            do="Write for example --settings 1,3",
        )
    return tuple(sorted({known[word] for word in words}))


def chosen_methods(text: str) -> tuple[str, ...]:
    """The methods that a list of names means; a rival's name alone means it with every clustering.

    Raises:
        UsageError: there is no such method.
    """
    words = [word.strip().casefold() for word in text.split(",") if word.strip()]
    found: set[str] = set()
    for word in words:
        meant = {
            m
            for m in METHODS
            if word == "all" or m.casefold() == word or m.casefold().startswith(f"{word} + ")
        }
        if not meant:
            raise UsageError(f"There is no method {word!r}", do="Take all, or some of: " + ", ".join(METHODS))
        found |= meant
    if not found:
        raise UsageError("No method is named", do="Take all, or some of: " + ", ".join(METHODS))
    return tuple(m for m in METHODS if m in found)
