"""A question about a cohort: how many patients like this does each site have?

What "like this" means is one rule, the same at every site, and it depends on a patient's own record and on the release
alone. Within the window of days, with n_pj the days on which patient p has code j, T_p the years from the first to the
last event in it (at least one), and u_j the code's unit vector in the release:

    v_p = sum_j log(1 + n_pj / T_p) u_j        q = sum_c w_c u_c

A patient is like the profile if cos(v_p, q) >= least. How rare a code is at a site has no part in it, unlike in the site's
own search: the same record must be in the cohort at all sites or at none. For the same reason there is no list of the k
nearest: who is on it depends on who else is there.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocol.canonical import canonical_json, digest
from protocol.codeindex import CodeIndex
from protocol.errors import UsageError
from protocol.messages import Curie, HexDigest, Message
from protocol.vocabulary import curie

Sex = Literal["female", "male"]
Weight = Annotated[float, Field(allow_inf_nan=False)]
Age = Annotated[int, Field(ge=0, le=150)]

MAX_CODES = 1000


class Profile(BaseModel):
    """Codes with weights, to look for patients with; it holds no patient's data and may be written by hand.

    Attributes:
        name: what it describes.
        codes: CURIE -> weight; negative ones push patients away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field("", max_length=200)
    codes: dict[str, float] = Field(min_length=1, max_length=10_000)

    @classmethod
    def read(cls, path: Path) -> Self:
        """A profile from a JSON file.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except (OSError, ValueError, ValidationError) as error:
            raise UsageError(
                f"The profile {path} cannot be read",
                why=str(error).splitlines()[0][:200],
                do='Write JSON such as {"name": "heart failure", "codes": {"ICD10CM:I50.9": 1}}',
            ) from None


class CohortQuestion(Message):
    """Which patients are counted; all conditions hold together. It names no patient and is made of none.

    There is no way to ask by a vector: the vector of a patient is that patient's record.
    """

    title: str = Field("", max_length=200, description="What it is about, for people.")
    release: int = Field(ge=1, description="The published version whose vectors it is about.")
    space: HexDigest = Field(
        description="Of that version's standard codes and their vectors: `space_digest`."
    )
    window: tuple[date | None, date | None] = Field(
        (None, None),
        description="Days whose events count, both included; a site's build must be over the same.",
    )
    weights: dict[Curie, Weight] = Field(
        {}, max_length=MAX_CODES, description="Standard code -> weight in the profile; empty for no profile."
    )
    least: float | None = Field(None, ge=-1, le=1, description="Smallest cosine with the profile.")
    age: tuple[Age | None, Age | None] = Field(
        (None, None), description="Years on the day of the last event in the window, both included."
    )
    sexes: tuple[Sex, ...] = Field((), max_length=2)
    seen: tuple[date | None, date | None] = Field(
        (None, None),
        description="Days, of which one at least lies between the patient's first and last event.",
    )
    having: tuple[Curie, ...] = Field(
        (), max_length=MAX_CODES, description="Standard codes that a patient must have, all of them."
    )
    lacking: tuple[Curie, ...] = Field(
        (), max_length=MAX_CODES, description="Standard codes of which a patient must have none."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.weights and not self.having:
            raise ValueError("a question needs a profile, or a code that a patient must have")
        if bool(self.weights) != (self.least is not None):
            raise ValueError("a profile needs a smallest cosine, and a smallest cosine a profile")
        if self.weights and not any(self.weights.values()):
            raise ValueError("all weights of the profile are zero")
        if twice := sorted(set(self.having) & set(self.lacking)):
            raise ValueError(f"a patient cannot have {twice[0]} and not have it")
        for name, (low, high) in (("window", self.window), ("age", self.age), ("seen", self.seen)):
            if low is not None and high is not None and low > high:  # type: ignore[operator] # of one kind
                raise ValueError(f"{name} ends before it begins")
        return self

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes that it names, sorted: the vocabulary of its sum."""
        return tuple(sorted({*self.weights, *self.having, *self.lacking}))

    @property
    def meaning(self) -> str:
        """SHA-256 of what decides who is counted; two questions that mean the same have the same."""
        stated = self.model_dump(mode="json", exclude={"title"})
        for name in ("sexes", "having", "lacking"):
            stated[name] = sorted(set(stated[name]))
        return digest(stated)

    @property
    def said(self) -> tuple[tuple[str, str], ...]:
        """The question in words: (what, which), a condition a row; nothing is left out."""
        rows = []
        if self.weights:
            heavy = sorted(self.weights.items(), key=lambda item: (-abs(item[1]), item[0]))
            profile = ", ".join(code if weight == 1 else f"{weight:g} x {code}" for code, weight in heavy)
            rows.append((f"cosine {self.least:g} or more with", profile))
        rows += [("has each of", ", ".join(self.having))] if self.having else []
        rows += [("has none of", ", ".join(self.lacking))] if self.lacking else []
        if self.age != (None, None):
            rows.append(("aged", _range(*self.age)))
        if self.sexes:
            rows.append(("sex", " or ".join(self.sexes)))
        if self.seen != (None, None):
            rows.append(("seen", _range(*self.seen)))
        rows.append(("events", "all" if self.window == (None, None) else _range(*self.window)))
        rows.append(("by release", f"v{self.release}"))
        return tuple(rows)

    def direction(self, index: CodeIndex) -> npt.NDArray[np.float64]:
        """(d,) the profile's unit vector q; float64 sums in order of the codes, so that all parties get the same.

        Raises:
            UsageError: a code is not in the release, or the codes cancel each other out.
        """
        row = {code: i for i, code in enumerate(index.codes)}
        if missing := [code for code in sorted(self.weights) if code not in row]:
            raise UsageError(
                f"{missing[0]} has no vector in release v{self.release}",
                why=f"{len(missing)} of the {len(self.weights)} codes of the profile have none",
                do="Leave such codes out of the profile; coordinator search finds codes of the release",
            )
        total = np.zeros(index.vectors.shape[1])
        for code in sorted(self.weights):
            total += self.weights[code] * index.vectors[row[code]].astype(np.float64)
        length = float(np.linalg.norm(total))
        if not 1e-9 < length < math.inf:
            raise UsageError("The profile has no direction", why="its codes cancel each other out")
        return total / length


def space_digest(index: CodeIndex, standard: str) -> str:
    """SHA-256 of the standard codes of a release and their float32 vectors, in order of the codes.

    The copies of a release that sites get may differ in local codes, never in these.
    """
    rows = sorted((code, i) for i, code in enumerate(index.codes) if code.startswith(f"{standard}:"))
    state = hashlib.sha256(canonical_json([code for code, _ in rows]))
    state.update(np.ascontiguousarray(index.vectors[[i for _, i in rows]], dtype="<f4").tobytes())
    return state.hexdigest()


def standard_code(text: str, standard: str) -> str:
    """The CURIE of a code; without a prefix it is of the standard system.

    Raises:
        UsageError: a code of another system.
        DataError: it is malformed.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix != standard:
        raise UsageError(
            f"{text[:80]} is no code of the standard system {standard}",
            why="a question must mean the same at every site",
            do="Name the standard codes that it is mapped to",
        )
    return curie(standard, rest if colon else text)


def _range(low: object, high: object) -> str:
    if low is None:
        return f"{high} at most" if isinstance(high, int) else f"until {high}"
    if high is None:
        return f"{low} at least" if isinstance(low, int) else f"from {low}"
    return f"{low} to {high}"
