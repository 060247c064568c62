"""Made-up embeddings and names of the size of a large map, for benchmarks of search."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


def unit(matrix: npt.NDArray[np.floating]) -> Array:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def published_like(n: int, dim: int, seed: int = 0) -> Array:
    """Unit rows shaped like a published map's.

    Families of fifty codes, clusters of four in them, a spectrum that falls by i^-.3, and a common part; every fifth row
    repeats the one before, as codes do that an anchor joins. So the cosines of a code with its neighbours fall from 1 to about
    .75 over the nearest twenty, like those of the demo's map.
    """
    rng = np.random.default_rng(seed)

    def draw(rows: int) -> npt.NDArray[np.float64]:
        return rng.standard_normal((rows, dim)) * np.arange(1, dim + 1) ** -0.3

    cluster = rng.integers(max(n // 4, 1), size=n)
    family = rng.integers(max(n // 50, 1), size=max(n // 4, 1))
    rows = 0.5 * draw(1) + 0.8 * draw(max(n // 50, 1))[family[cluster]]
    rows += 0.55 * draw(max(n // 4, 1))[cluster] + 0.4 * draw(n)
    again = np.arange(5, n, 5)
    rows[again] = rows[again - 1]
    return unit(rows[rng.permutation(n)])


def isotropic(n: int, dim: int, seed: int = 0) -> Array:
    """Unit rows in all directions alike: no neighbour is much nearer than any other row, the hardest case of a search."""
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def titles(most: int | None = None) -> list[tuple[str, str]]:
    """Codes of ICD-10-CM and ICD-9-CM with their long titles; none where the files are not at hand."""
    folder = Path(__file__).parents[2] / "shared" / "data" / "icd_titles"
    found = []
    for prefix, name in (("ICD10CM", "icd10cm2019"), ("ICD9CM", "icd9cm_hierarchy")):
        path = folder / f"{name}.csv.gz"
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    code = row["code"]
                    dotted = code if len(code) < 4 else f"{code[:3]}.{code[3:]}"
                    found.append((f"{prefix}:{dotted}", row["long_desc"] or row["short_desc"]))
    step = max(len(found) // most, 1) if most else 1
    return found[::step]
