"""Reconstruction: what do released bytes tell of the cells that were withheld?

    python -m pytest tests/battery/test_reconstruction.py -s                       sites of 1,000
    SMILE_BATTERY=full python -m pytest tests/battery/test_reconstruction.py -s    sites of 1,000 and 10,000, more seeds

Small against zero, among pairs below the floor: AUC by what the attacker uses. "Elsewhere" adds to the counts the vectors
of another site of the same population: what they add is medicine. What the site's own vectors add beyond is of this site.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

from site_agent.gate import sticky_counts
from tests.battery.attacks.membership import Seen, see_release
from tests.battery.attacks.population import (
    DEFAULT,
    Population,
    Rules,
    Site,
    draw_population,
    make_site,
    release_bytes,
)
from tests.battery.attacks.reconstruction import Reconstruction, reconstruct, stir
from tests.inprocess import policy

FULL = os.environ.get("SMILE_BATTERY") == "full"
SIZES = (1_000, 10_000) if FULL else (1_000,)
SEEDS = range(6) if FULL else range(3)
BAR = 0.01
NO_PAIR_FLOOR = Rules(pair_floor=1, code_floor=1, small_site=0)


@cache
def people(size: int) -> Population:
    return draw_population(3 * size + 6_000, seed=2)


def sites(size: int, rules: Rules, seed: int) -> list[tuple[Site, Seen]]:
    """The attacked site, one that the attacker knows, and one of which it has the release; no patient in two."""
    own, rng = people(size), np.random.default_rng([seed, size])
    groups = rng.permutation(own.size)[: 3 * size].reshape(3, size)
    found = []
    for group in groups:
        site = make_site(own, group, rules)
        seen = see_release(site.released, own.codes)
        # The same codes with and without floors, so that figures compare.
        seen.margins[site.counts.code_patients < DEFAULT.code_floor] = np.nan
        found.append((site, seen))
    return found


@cache
def attack(size: int, rules: Rules) -> list[Reconstruction]:
    found = []
    for seed in SEEDS:
        (target, seen), (shadow, known), (_, other) = sites(size, rules, seed)
        sides = ((target.counts, seen), (shadow.counts, known))
        found.append(reconstruct(*sides, other, floor=DEFAULT.pair_floor_at(size), seed=seed))
    return found


def show(title: str, found: list[Reconstruction]) -> tuple[float, float]:
    """Print a table; return the mean of what the site's own vectors add, and its standard error."""
    own = np.array([r.own for r in found])
    error = float(own.std(ddof=1) / np.sqrt(len(own)))
    means = [float(np.mean([getattr(r, n) for r in found])) for n in ("margins", "elsewhere", "vectors")]
    print(
        f"\n{title}: AUC counts {means[0]:.3f}, with vectors from elsewhere {means[1]:.3f}, with its own {means[2]:.3f}"
        f"\n  its vectors add {means[2] - means[0]:.3f} to counts, {own.mean():.4f} +- {error:.4f} to those from elsewhere"
    )
    return float(own.mean()), error


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", SIZES)
def test_vectors_tell_no_more_of_small_cells_than_those_of_another_site(size: int) -> None:
    own, error = show(f"released, {size:,} patients", attack(size, DEFAULT))
    print(f"  bar: at most {BAR} of the site's own")
    assert own <= BAR + 3 * error


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", SIZES)
def test_without_a_floor_the_attack_finds_small_cells(size: int) -> None:
    """The control, which is never released: the same vectors made without a floor."""
    own, error = show(f"control without floors, {size:,} patients", attack(size, NO_PAIR_FLOOR))
    ours = np.mean([r.own for r in attack(size, DEFAULT)])
    assert own - 3 * error > ours
    assert own > (0.02 if size < 10_000 else 0.008)


def test_no_released_byte_depends_on_a_small_cell() -> None:
    """Small cells dealt out anew, margins and totals as they were: the same bytes."""
    own = people(SIZES[0])
    counts = own.count(np.arange(SIZES[0]))
    other = stir(counts, DEFAULT.pair_floor_at(SIZES[0]), seed=1)
    assert abs(counts.pair_patients - other.pair_patients).count_nonzero() > 10_000
    made = [
        release_bytes(sticky_counts(c, own.codes, None, policy(DEFAULT.study)), DEFAULT)
        for c in (counts, other)
    ]
    print(
        "\nsmall cells dealt out anew: the released bytes are", "the same" if made[0] == made[1] else "OTHERS"
    )
    assert made[0] == made[1]
    bare = [
        release_bytes(sticky_counts(c, own.codes, None, policy(NO_PAIR_FLOOR.study)), NO_PAIR_FLOOR)
        for c in (counts, other)
    ]
    assert bare[0] != bare[1]
