"""Patients of the CMS claims with notes that are generated: half of what a patient has is said in codes, the other half in words.

The codes are real. The notes are not: each patient's codes are divided by a coin; one half stays among the codes, of the other
half the notes mention most, in other words than the titles, beside conditions the patient does not have, a form, paragraphs
copied forward and identifiers. So text holds what codes do not, by construction. What is measured shows that the machinery
finds it, and is no clinical gain.

There are two kinds of label:

outcome     generated: its log odds rise by 1.6 with each of four conditions that the patient has, wherever that is said. Here
            text must help; if fusion did not find that, it would be broken.
a flag      a patient has it who has one of its ICD-9-CM families among the claims; these codes are in no feature. That depends on
            the other conditions as it does in these claims, weakly. `leak` says whether the notes speak of the label itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import expit

from protocol.text import TextEncoder
from protocol.tfidf import inverse_frequency, patient_vectors
from site_agent.cohort.gathering import follow_up
from site_agent.cohort.labels import label_terms
from site_agent.cohort.own import own_vectors
from site_agent.notes import NoteVectors, note_vectors
from site_agent.notes.cache import chunk_cache
from site_agent.notes.identifiers import known_words
from site_agent.notes.reading import NoteFile
from site_agent.notes.staging import staged_notes
from site_agent.notes.vectors import line_shares
from site_agent.sections import NoteColumns
from site_agent.sources.columns import EPOCH, patient_number
from tests.benchmarks.real import data
from tests.benchmarks.real.cohort import FAMILIES
from tests.generated_notes import Note, person, write_notes

OUTCOME = "outcome"
CONDITIONS = (("428",), ("491", "496"), ("585", "403"), ("250",))
RISE, BASE = 1.6, -3.0
Leak = Literal["not mentioned", "mentioned"]
WITHHELD, MENTIONED, MENTIONED_TOO, LEAKED = 0.5, 0.8, 0.2, 0.8
"""Chance that a code is in words alone; that the notes mention one of these; or one that is among the codes; or the label's."""
OWN_WORDS = {
    "chf": ("CHF", "HFrEF", "cardiac failure"),
    "chrnkidn": ("CKD", "ESRD", "renal insufficiency"),
    "copd": ("COPD", "emphysema", "bronchitis"),
}
"""What the generated notes, and doctors, call it besides."""


@dataclass(frozen=True, eq=False)
class Generated:
    """Patients with codes and generated notes.

    Attributes:
        label: (n,) whether the patient has a code of the label's families.
        codes: (n, d) unit vectors of the codes that were not withheld.
        every: (n, d) the same of all codes but the label's: what codes alone would give if nothing were said in words only.
        notes: generated.
        titles: of the label's codes.
    """

    patients: tuple[str, ...]
    label: NDArray[np.bool_]
    codes: NDArray[np.float32]
    every: NDArray[np.float32]
    notes: tuple[Note, ...]
    known: Mapping[int, frozenset[str]]
    titles: tuple[str, ...]


def generated(label: str, leak: Leak, seed: int, most: int = 0) -> Generated:
    """The patients of two samples, or the first `most` of them."""
    rng = np.random.default_rng([seed, len(label), leak == "mentioned"])
    events = data._events()
    events = events[events["sample"].isin(list(data.split(seed)[0]))]
    key = events["sample"].astype(str) + ":" + events["patient"]
    if most:
        chosen = np.sort(np.random.default_rng(seed).permutation(np.unique(key))[:most])
        events, key = events[key.isin(chosen)], key[key.isin(chosen)]
    patient, names = pd.factorize(key, sort=True)
    code, codes = pd.factorize(events["code"].to_numpy(), sort=True)
    day = pd.to_datetime(events["date"]).to_numpy().astype("datetime64[D]").astype(np.int64)
    cells = np.unique(np.stack([patient, day, code]), axis=1)
    days = sp.csr_array((np.ones(cells.shape[1]), (cells[0], cells[2])))
    days.sum_duplicates()
    span = pd.Series(day).groupby(patient).agg(["min", "max"])
    first, last = span["min"].to_numpy(), span["max"].to_numpy()
    if label == OUTCOME:
        own = np.zeros(len(codes), dtype=bool)
        parts = [np.array([str(c).startswith(f) for c in codes]) for f in CONDITIONS]
        count = sum(np.asarray((days[:, f] > 0).sum(axis=1)).ravel() > 0 for f in parts)
        has = rng.random(len(names)) < expit(BASE + RISE * count)
    else:
        own = np.array([str(c).startswith(FAMILIES[label]) for c in codes])
        has = np.asarray((days[:, own] > 0).sum(axis=1)).ravel() > 0

    everything = days.tocoo()
    hidden = rng.random(everything.nnz) < WITHHELD
    ours = own[everything.col]
    shape = days.shape
    structured, every = (
        sp.csr_array((everything.data[m], (everything.row[m], everything.col[m])), shape=shape)
        for m in (~hidden & ~ours, ~ours)
    )
    study = data.study_of(floors=False)
    # Vectors of codes from the codes that a site would have, without those that are in words alone.
    kept = (~hidden & ~ours).astype(bool)
    pairs = set(zip(everything.row[kept].tolist(), everything.col[kept].tolist(), strict=True))
    there = np.array([(p, c) in pairs for p, c in zip(cells[0], cells[2], strict=True)])
    left = [f"ICD9CM:{codes[c]}" for c in cells[2][there]]
    counts, named = data.count(
        pd.Series(cells[0][there].astype(str)), cells[1][there], pd.Series(left), study
    )
    vectors = np.zeros((len(codes), study.embedding.dim))
    place = {f"ICD9CM:{c}": i for i, c in enumerate(codes)}
    found = own_vectors(counts, dim=study.embedding.dim, seed=study.embedding.seed)
    vectors[[place[n] for n in named], : found.shape[1]] = found
    years = follow_up(first, last)

    def patients_of(counts_of: sp.csr_array) -> NDArray[np.float32]:
        weight = inverse_frequency((counts_of > 0).sum(axis=0), len(names))
        rates = sp.csr_array(sp.diags_array(1.0 / years) @ counts_of)
        return patient_vectors(rates, weight, vectors).astype(np.float32)

    title = {c: t for (system, c), t in data._titles("long_desc").items() if system == "9"}
    told = [title.get(str(c), "") for c in codes]
    common = [
        told[c]
        for c in np.argsort(-np.asarray((days > 0).sum(axis=0)).ravel())[:300]
        if told[c] and not own[c]
    ]
    chance = np.where(hidden, MENTIONED, MENTIONED_TOO)
    chance[ours] = LEAKED if leak == "mentioned" else 0.0
    mentioned = rng.random(everything.nnz) < chance
    notes: list[Note] = []
    known = {}
    said: dict[int, list[str]] = {}
    for row, column in zip(everything.row[mentioned], everything.col[mentioned], strict=True):
        text = told[column]
        if own[column] and rng.random() < 0.3:
            text = str(rng.choice(OWN_WORDS[label]))
        if text:
            said.setdefault(int(row), []).append(text)
    for row, name in enumerate(names):
        who = person(rng)
        known[patient_number(str(name))] = known_words((who.first, who.last, who.street, who.mrn))
        when = (EPOCH + timedelta(days=int(first[row])), EPOCH + timedelta(days=int(last[row])))
        notes += write_notes(str(name), who, said.get(row, []), common, *when, rng)
    return Generated(
        patients=tuple(map(str, names)),
        label=has,
        codes=patients_of(structured),
        every=patients_of(every),
        notes=tuple(notes),
        known=known,
        titles=tuple(told[i] for i in np.flatnonzero(own) if told[i]),
    )


def vectors_of(
    made: Generated, encoder: TextEncoder, folder: Path, *, terms: tuple[str, ...] | None = None
) -> NoteVectors:
    """By the product's way: a file of notes, staged without identifiers, cleaned, encoded."""
    path = folder / "notes.parquet"
    columns = {"patient": [n.patient for n in made.notes], "date": [n.day for n in made.notes]}
    pq.write_table(pa.table(columns | {"text": [n.text for n in made.notes]}), path)
    rows = {patient_number(p): i for i, p in enumerate(made.patients)}
    days = ((date(2000, 1, 1) - EPOCH).days, (date(2020, 1, 1) - EPOCH).days)
    pattern = label_terms(made.titles, terms) if terms is not None else None
    with ExitStack() as stack:
        staged = stack.enter_context(
            staged_notes(
                NoteFile(path, NoteColumns()), folder / "staged.sqlite", rows, days, lambda p: made.known[p]
            )
        )
        cache = stack.enter_context(chunk_cache(folder / "cache", encoder))
        return note_vectors(
            staged, line_shares(staged), cache, len(made.patients), encoder.dim, terms=pattern
        )
