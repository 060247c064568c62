"""Drug names as typed at 19 hospitals (eICU demo): does a name find other names of its ingredient?

Queries and candidates are the distinct names; right are those of the same ingredient (HICL) that another hospital typed.
Brand and generic names apart: right candidates that share the first letters of a word with the query are taken
out, and what is left must be found among all names of other ingredients.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordinator.evaluation import auc
from coordinator.ranking import csls
from protocol.text import LexicalEncoder, TextEncoder
from tests.cms import shared_file

_STEM = 4
_UNITS = frozenset(
    ["tabs", "caps", "inj", "soln", "susp", "syrup", "oral", "cream", "oint", "drops", "neb", "unit", "units"]
)


def names() -> pd.DataFrame:
    """One row a hospital and name: hospital, name, ingredient."""
    table = pd.read_csv(shared_file("eicu_drug_strings_west/drug_strings.csv"))
    table = table.dropna(subset=["drughiclseqno"]).rename(
        columns={"hospitalid": "hospital", "drugname": "name", "drughiclseqno": "ingredient"}
    )
    return table.drop_duplicates(["hospital", "name"])[["hospital", "name", "ingredient"]].reset_index(
        drop=True
    )


def stems(name: str) -> set[str]:
    """First letters of the words of a name that may tell an ingredient."""
    words = re.findall(rf"[a-z]{{{_STEM},}}", name.casefold())
    return {w[:_STEM] for w in words if w not in _UNITS}


def measure(encoder: TextEncoder | None = None) -> dict[str, dict[str, float]]:
    """hits@1, hits@5 and MRR by cosine and by CSLS, of all names and of brand-generic pairs; and the pairs' AUC."""
    table = names()
    typed = table.groupby("name")["hospital"].agg(set)
    ingredient = table.groupby("name")["ingredient"].first().to_numpy()
    texts = typed.index.tolist()
    same = ingredient[:, None] == ingredient[None]
    elsewhere = np.array([[len(a | b) > 1 for b in typed] for a in typed])
    right = same & elsewhere & ~np.eye(len(texts), dtype=bool)
    stem = [stems(t) for t in texts]
    apart = np.array([[not (a & b) for b in stem] for a in stem])
    vectors = (encoder or LexicalEncoder(dim=1024)).encode(texts).astype(np.float64)
    cosine = vectors @ vectors.T
    upper = np.triu(np.ones_like(right), 1)
    found: dict[str, dict[str, float]] = {
        "pairs that share no stem": {
            "pairs": float((right & apart & upper).sum()),
            "AUC": auc(cosine[right & apart & upper], cosine[~same & apart & upper]),
        }
    }
    for score, matrix in (("cosine", cosine), ("CSLS", csls(cosine))):
        for which, wanted in (("all", right), ("brand-generic", right & apart)):
            asked = wanted.any(axis=1)
            place = _ranks(np.where(same & ~wanted, -np.inf, matrix), wanted)[asked]
            found[f"{score}, {which}"] = {
                "queries": float(len(place)),
                "hits@1": float(np.mean(place <= 1)),
                "hits@5": float(np.mean(place <= 5)),
                "MRR": float(np.mean(1 / place)),
            }
    return found


def _ranks(score: NDArray[np.float64], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Rank of the best right candidate; a wrong one with the same score ranks before it."""
    best = np.where(right, score, -np.inf).max(axis=1)
    return np.asarray(
        1 + ((score >= best[:, None]) & ~right & np.isfinite(score)).sum(axis=1), dtype=np.int64
    )
