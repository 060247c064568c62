"""A release as a pandas table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd  # type: ignore[import-untyped]

from coordinator.exports.table import Entry
from coordinator.reviewed import Reviewed


def frame(entries: Sequence[Entry], reviews: Mapping[str, Sequence[Reviewed]]) -> pd.DataFrame:
    """One row an entry, with the columns that `MapRelease.to_pandas` names."""
    states = [reviews[e.code][0].state if reviews.get(e.code) else "" for e in entries]
    return pd.DataFrame(
        {
            "code": [e.code for e in entries],
            "system": pd.Categorical([e.system for e in entries]),
            "name": [e.name for e in entries],
            "category": pd.Categorical([e.category for e in entries]),
            "standard_code": [e.standard_code for e in entries],
            "standard_name": [e.standard_name for e in entries],
            "probability": pd.array([e.probability for e in entries], dtype="float64"),
            "predicate": pd.Categorical([str(e.predicate or "") for e in entries]),
            "given": pd.array([e.given for e in entries], dtype="bool"),
            "anchored": pd.array([e.anchored for e in entries], dtype="bool"),
            "cluster": pd.array([e.cluster for e in entries], dtype="int64"),
            "posterior": pd.array([e.posterior for e in entries], dtype="float64"),
            "similarity": pd.array([e.similarity for e in entries], dtype="float64"),
            "review": pd.Categorical(states),
            "sites": [e.sites for e in entries],
            "alternatives": [e.alternatives for e in entries],
        }
    )
