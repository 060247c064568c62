"""Four ways to put codes and notes into one vector, by the same patients, head and stopping: areas, gates and pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from site_agent.cohort.fusion import KINDS, Fitting, Fused, Kind, learn_fusion
from site_agent.cohort.pairs import draw_pairs, pair_area
from site_agent.cohort.precision import Interval, average_precision
from site_agent.sources import Progress, silent

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

AGAINST: Kind = "gated"
TERMS_LEFT = ", terms left in"
_REPEATS = 500


@dataclass(frozen=True)
class Representation:
    """What one way came to, means over the seeds.

    Attributes:
        area: under the precision-recall curve of the label, on patients that nothing was learnt from.
        gain: the gated one's area less this one's; None for itself.
        random: area under the ROC curve of pairs: one label against two, at random.
        hard: the same against patients without the label whose codes are nearest.
        spread: standard deviations of the three over the seeds.
        gate: mean share of the codes, of patients with a note; None without a gate.
        epochs: that were run.
    """

    area: Interval
    gain: Interval | None
    random: float
    hard: float
    spread: tuple[float, float, float]
    gate: float | None
    epochs: float


@dataclass(frozen=True)
class Comparison:
    """What `compare_fusions` found.

    Attributes:
        patients: learnt from, kept back to stop, asked about; with each seed others.
        with_label: share of those with the label: what chance would reach.
        seeds: that the figures are means over.
        ways: name -> figures.
    """

    patients: tuple[int, int, int]
    with_label: float
    seeds: int
    ways: Mapping[str, Representation]


def parts(rows: Rows, seed: int) -> tuple[Rows, Rows, Rows]:
    """Six tenths to learn from, two to say when to stop, two to be asked about."""
    order = np.random.default_rng(seed).permutation(rows)
    learn, stop, ask = np.split(order, [int(0.6 * len(rows)), int(0.8 * len(rows))])
    return learn, stop, ask


def parts_of_both(rows: Rows, label: Flags, seed: int) -> tuple[Rows, Rows, Rows]:
    """The same of those with the label and of those without, so that a rare label is in each part."""
    with_, without = (parts(rows[label[rows] == value], seed) for value in (True, False))
    learn, stop, ask = (np.concatenate(pair) for pair in zip(with_, without, strict=True))
    return learn, stop, ask


def compare_fusions(
    codes: Vectors,
    notes: Vectors,
    label: Flags,
    rows: Rows,
    *,
    seeds: Sequence[int] = range(5),
    left_in: Vectors | None = None,
    fitting: Fitting | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Learn and ask about each way with each seed.

    The interval of an area holds what chance does twice: which seed (split and weights) and which patients are asked about; a
    bootstrap sample is a seed drawn at random and its patients drawn with replacement. Splits share patients, so that it is
    rather too narrow than too wide.

    Args:
        codes: (n, p) code vectors without the label's codes.
        notes: (n, q) note vectors without the label's words.
        label: (n,).
        rows: patients of whom the label, and a code or a note, is known.
        seeds: of splits and weights.
        left_in: (n, q) note vectors with the label's words, to be compared with.
        fitting: how; its seed is not used.
        progress: told the share done.
    """
    how = fitting or Fitting()
    runs: dict[str, tuple[Kind, Vectors]] = {kind: (kind, notes) for kind in KINDS}
    if left_in is not None:
        runs |= {f"{kind}{TERMS_LEFT}": (kind, left_in) for kind in ("gated", "text")}
    found: dict[str, list[tuple[float, float, float, float, int]]] = {name: [] for name in runs}
    asked: list[tuple[Flags, dict[str, Floats]]] = []
    sizes = (0, 0, 0)
    for i, seed in enumerate(seeds):
        learn, stop, ask = parts_of_both(rows, label, seed)
        sizes = (len(learn), len(stop), len(ask))
        pairs = draw_pairs(codes, label, ask, seed=seed)
        scores = {}
        for j, (name, (kind, text)) in enumerate(runs.items()):
            progress(f"learning: {name}", (i + j / len(runs)) / len(seeds))
            made = learn_fusion(kind, codes, text, label, learn, stop, with_seed(how, seed))
            scores[name] = made.odds[ask]
            area = average_precision(label[ask], scores[name])
            found[name].append((area, *pair_area(made.vectors, pairs), _gate(made, text, ask), made.epochs))
        asked.append((label[ask], scores))
    drawn = _bootstrap(asked)
    ways = {}
    for name, values in found.items():
        table = np.array(values)
        mean = table.mean(axis=0)
        spread = table[:, :3].std(axis=0, ddof=1) if len(table) > 1 else np.full(3, np.nan)
        gain = None
        if name != AGAINST:
            ahead = np.mean([a[0] - b[0] for a, b in zip(found[AGAINST], values, strict=True)])
            gain = _interval(float(ahead), drawn[AGAINST] - drawn[name])
        ways[name] = Representation(
            area=_interval(float(mean[0]), drawn[name]),
            gain=gain,
            random=float(mean[1]),
            hard=float(mean[2]),
            spread=(float(spread[0]), float(spread[1]), float(spread[2])),
            gate=None if np.isnan(mean[3]) else float(mean[3]),
            epochs=float(mean[4]),
        )
    return Comparison(sizes, float(np.mean([flags.mean() for flags, _ in asked])), len(seeds), ways)


def with_seed(fitting: Fitting, seed: int) -> Fitting:
    """The same fitting with another seed."""
    return Fitting(**{**fitting.__dict__, "seed": seed})


def _gate(made: Fused, notes: Vectors, rows: Rows) -> float:
    told = rows[notes[rows].any(axis=1)]
    return float(made.gate[told].mean()) if len(told) else float("nan")


def _bootstrap(asked: Sequence[tuple[Flags, dict[str, Floats]]]) -> dict[str, Floats]:
    """Method -> areas in the same bootstrap samples."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in asked[0][1]}
    for _ in range(_REPEATS):
        flags, scores = asked[int(rng.integers(len(asked)))]
        rows = rng.integers(len(flags), size=len(flags))
        if flags[rows].any():
            for name, score in scores.items():
                drawn[name].append(average_precision(flags[rows], score[rows]))
    return {name: np.array(values) for name, values in drawn.items()}


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high))
