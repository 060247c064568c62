"""Drugs and the diseases that they treat (PharmacotherapyDB 1.0): are their vectors nearer than chance?

A drug product counts as all of its ingredients, a diagnosis as the disease of the database that it is a case of, by the
tables below. Known pairs are indications, disease-modifying or symptomatic. The database also lists pairs that its curators
turned down: they are judged neither way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from coordinator.linking import Clues
from tests.benchmarks.real.groups import Fitted, Pairs, held_by, matched, meanings, popularity
from tests.benchmarks.real.recoded import DIAGNOSIS, DRUG
from tests.benchmarks.real.regimes import Problem, Row
from tests.cms import shared_file

ICD9 = {
    "type 1 diabetes mellitus": r"250\d[13]$",
    # UCI dropped trailing zeros: 250.6 is 250.60.
    "type 2 diabetes mellitus": r"250(\d[02]?)?$",
    "gestational diabetes": r"6488",
    "metabolic syndrome X": r"2777",
    "polycystic ovary syndrome": r"2564",
    "kidney cancer": r"189",
    "liver cancer": r"155",
    "prostate cancer": r"185",
}
"""Disease -> ICD-9-CM codes without their dot, for the diseases of UCI's drugs."""
SNOMED = {
    "Alzheimer's disease": "Alzheimer",
    "Parkinson's disease": "Parkinson",
    "acquired immunodeficiency syndrome": "Acquired immune deficiency|Human immunodeficiency virus",
    "alcohol dependence": "Alcoholism",
    "allergic rhinitis": "allergic rhinitis",
    "anemia": "^Anemia",
    "asthma": "asthma",
    "atopic dermatitis": "Atopic dermatitis",
    "attention deficit hyperactivity disorder": "attention deficit",
    "bipolar disorder": "Bipolar",
    "breast cancer": "neoplasm of breast",
    "chronic kidney failure": "Chronic kidney disease|End-stage renal disease",
    "chronic obstructive pulmonary disease": "Chronic obstructive bronchitis|Pulmonary emphysema",
    "colon cancer": "neoplasm of colon",
    "coronary artery disease": "Ischemic heart disease|^Myocardial infarction|elevation myocardial infarction",
    "endogenous depression": "Major depress",
    "epilepsy syndrome": "Epilepsy|Seizure disorder",
    "glaucoma": "glaucoma",
    "gout": "Gout|increased blood urate",
    "hepatitis B": "type B viral hepatitis",
    "hypertension": "Essential hypertension",
    "hypothyroidism": "hypothyroidism",
    "lung cancer": "carcinoma of lung|lung cancer|neoplasm of lung",
    "metabolic syndrome X": "Metabolic syndrome",
    "migraine": "migraine",
    "multiple sclerosis": "Multiple sclerosis",
    "obesity": "obesity",
    "osteoarthritis": "osteoarthritis",
    "osteoporosis": "Osteoporosis",
    "panic disorder": r"\(panic\)",
    "prostate cancer": "(tumor|Neoplasm) of prostate|Carcinoma in situ of prostate",
    "psoriasis": "^Psoriasis",
    "psoriatic arthritis": "Psoriatic arthritis",
    "rheumatoid arthritis": "Rheumatoid arthritis",
    "type 2 diabetes mellitus": r"type (2|II) diabetes|Diabetes mellitus type 2",
    "ulcerative colitis": "Ulcerative colitis",
}
"""Disease -> display of SNOMED CT conditions."""
ALSO = {
    "acetylsalicylic acid": "aspirin",
    "alendronate": "alendronic acid",
    "calcipotriol": "calcipotriene",
    "l-dopa": "levodopa",
    "mesalazine": "mesalamine",
    "salbutamol": "albuterol",
}
"""The database's name of an ingredient -> RxNorm's, where they differ."""


@cache
def database() -> pd.DataFrame:
    """disease, drug (lower case) and category: DM, SYM or NOT."""
    table = pd.read_csv(shared_file("pharmacotherapydb/pharmacotherapydb_indications.tsv"), sep="\t")
    return table.assign(drug=table["drug"].str.lower())[["disease", "drug", "category"]]


@cache
def displays() -> Mapping[str, str]:
    """Code of the Synthea events, with the letter of its kind -> its display."""
    table = pq.read_table(
        shared_file("synthea/events.parquet"), columns=["kind", "code", "display"]
    ).to_pandas()
    letter = table["kind"].astype(str).map({"condition": DIAGNOSIS, "medication": DRUG})
    table = table[letter.notna()].assign(code=letter + table["code"].astype(str)).drop_duplicates("code")
    return dict(zip(table["code"], table["display"].astype(str), strict=True))


@cache
def _drug_words() -> Mapping[str, re.Pattern[str]]:
    names = set(database()["drug"])
    return {d: re.compile(rf"\b{re.escape(ALSO.get(d, d))}\b") for d in names}


def diseases(code: str, shown: Mapping[str, str]) -> set[str]:
    """Diseases of the database that a diagnosis is a case of: by its display, or by its ICD-9-CM code."""
    if code in shown:
        return {d for d, words in SNOMED.items() if re.search(words, shown[code], re.IGNORECASE)}
    return {d for d, pattern in ICD9.items() if re.match(pattern, code[1:])}


def ingredients(code: str, shown: Mapping[str, str]) -> set[str]:
    """Drugs of the database in a product: by its display, or by its code, which is a name."""
    words = shown.get(code, code[1:]).lower()
    return {d for d, pattern in _drug_words().items() if pattern.search(words)}


def indicated(task: Problem, known: Clues, shown: Mapping[str, str], seed: int) -> Pairs:
    """Pairs of a drug and a disease that it treats, beside pairs with another diagnosis as frequent."""
    meaning = meanings(task)
    drugs = [i for i, m in enumerate(meaning) if m.startswith(DRUG)]
    conditions = [i for i, m in enumerate(meaning) if m.startswith(DIAGNOSIS)]
    rows = set(zip(database()["drug"], database()["disease"], strict=True))
    turned_down = database()[database()["category"] == "NOT"]
    right = rows - set(zip(turned_down["drug"], turned_down["disease"], strict=True))
    of_drug = {i: ingredients(meaning[i], shown) for i in drugs}
    of_condition = {j: diseases(meaning[j], shown) for j in conditions}
    pairs, unrelated = [], np.zeros((len(meaning), len(meaning)), dtype=bool)
    for i in drugs:
        for j in conditions:
            said = {(a, b) for a in of_drug[i] for b in of_condition[j]}
            if said & right:
                pairs.append((i, j))
            unrelated[i, j] = not said & rows
    pool = np.array(conditions, dtype=np.intp)
    found = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return matched(found, unrelated, pool, popularity(task, known), held_by(task), seed)


def indication_scores(
    task: Problem, methods: Mapping[str, Fitted], known: Clues, shown: Mapping[str, str], seed: int
) -> dict[str, Row]:
    """AUC of each method, of all pairs and of those whose codes no site holds both.

    Args:
        task: with diagnoses and drugs in it.
        methods: from `groups.fitted`.
        known: the task's clues.
        shown: code -> display; codes without one are ICD-9-CM codes and names of drugs.
        seed: of the draw of pairs.
    """
    pairs = indicated(task, known, shown, seed)
    together = np.zeros((task.union.n_rows, task.union.n_rows), dtype=bool)
    for source in task.data:
        together[np.ix_(source.codes, source.codes)] = True
    parts = {"indicated": pairs}
    far = Pairs(*(p[~together[p[:, 0], p[:, 1]]] for p in (pairs.known, pairs.free)))
    if len(far.known) and len(far.free):
        parts["indicated, of two sites"] = far
    table: dict[str, Row] = {
        name: {part: p.auc(method.likeness) for part, p in parts.items()} for name, method in methods.items()
    }
    table["facts"] = {part: float(len(p.known)) for part, p in parts.items()}
    table["facts"] |= {
        "drugs": float(len(np.unique(pairs.known[:, 0]))),
        "diagnoses": float(len(np.unique(pairs.known[:, 1]))),
    }
    return table
