"""Abbreviations: what is written out, what is left alone, and that units and sizes stay."""

from __future__ import annotations

import pytest

from protocol.text import expand
from protocol.text.abbreviations import _OF
from protocol.vocabulary import Category


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("DMII wo cmp uncntrld", "type 2 diabetes mellitus without cmp uncontrolled"),
        ("DM II w/ ren manif", "type 2 diabetes mellitus with renal manif"),
        ("CHR ISCHEMIC HRT DIS NEC", "chronic ISCHEMIC heart disease not elsewhere classified"),
        ("Fx ankle NOS-clsd", "fracture ankle unspecified-closed"),
        ("Fx ankle, unspec", "fracture ankle, unspecified"),
        ("hx of HTN d/t CKD", "history of hypertension due to chronic kidney disease"),
        ("Malig neo up/arm/shlder", "malignant neoplasm up/arm/shoulder"),
        ("A fib", "atrial fibrillation"),
        ("Ｆx of l femur", "fracture of left femur"),
    ],
)
def test_conditions(short: str, long: str) -> None:
    assert expand(short, "condition") == long


@pytest.mark.parametrize(
    ("category", "short", "long"),
    [
        ("drug", "Furosemide 10 mg/mL inj soln", "Furosemide 10 mg/mL injection solution"),
        ("drug", "ASA EC 81 mg tab", "aspirin enteric coated 81 mg tablet"),
        ("drug", "Na bicarb 50 mEq/50mL", "sodium bicarbonate 50 mEq/50mL"),
        ("lab", "Hgb A1c %", "hemoglobin A1c %"),
        ("lab", "Gluc, ser mg/dL", "glucose, serum mg/dL"),
        ("condition", "Inj lt hip", "injury left hip"),
    ],
)
def test_the_kind_of_code_chooses_the_table(category: Category, short: str, long: str) -> None:
    assert expand(short, category) == long


@pytest.mark.parametrize("text", ["MS", "RA", "PT", "CA 125", "PE", "OD", "L spine", "L5", "U/S"])
def test_what_means_two_things_is_left_alone(text: str) -> None:
    assert {expand(text, category) for category in _OF} == {text}


@pytest.mark.parametrize("unit", ["mg/mL", "mEq/L", "mg", "mL", "mcg/h", "10^3/uL", "U/L", "IU", "500 mg"])
def test_units_stay(unit: str) -> None:
    assert {expand(unit, category) for category in _OF} == {unit}


def test_no_expansion_holds_an_abbreviation() -> None:
    for category, table in _OF.items():
        for short, long in table.items():
            assert expand(long, category) == long, (category, short)
