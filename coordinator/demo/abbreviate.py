"""Titles as a local dictionary writes them: abbreviated by one clerk's habits, not by a standard."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PHRASES = {
    "type 2 diabetes mellitus": ("T2DM", "DM II"),
    "type 1 diabetes mellitus": ("T1DM", "DM I"),
    "diabetes mellitus": ("DM", "DIAB"),
    "chronic obstructive pulmonary disease": ("COPD", "CHR OBST LUNG DIS"),
    "chronic kidney disease": ("CKD", "CHR REN DIS"),
    "atherosclerotic heart disease": ("ASHD", "COR ATH"),
    "heart failure": ("HF", "CARD INSUFF"),
    "myocardial infarction": ("MI", "INFARCT"),
    "atrial fibrillation": ("A fib", "AF"),
    "respiratory failure": ("resp fail", "RESP INSUFF"),
    "urinary tract infection": ("UTI", "INF URIN TR"),
    "gastro-esophageal reflux disease": ("GERD", "REFLUX"),
    "long term (current) use": ("LT use", "CURR USE"),
    "personal history": ("PHx", "ANAMN"),
    "family history": ("FHx", "FAM ANAMN"),
    "malignant neoplasm": ("Ca", "MAL NEO"),
    "benign neoplasm": ("ben neo", "BEN TU"),
    "carcinoma in situ": ("CIS", "CA IS"),
    "not elsewhere classified": ("NEC", "ELSEW"),
    "initial encounter": ("init", "1ST"),
    "for closed fracture": ("clsd", "CL"),
    "due to": ("d/t", "BY"),
    "lower extremity": ("LE", "LEG"),
    "upper extremity": ("UE", "ARM"),
    "lower limb": ("LE", "LEG"),
    "upper limb": ("UE", "ARM"),
}
_WORDS = {
    "with": ("w", "+"),
    "without": ("w/o", "NO"),
    "unspecified": ("NOS", "UNS"),
    "other": ("oth", "OTH"),
    "and": ("&", "/"),
    "acute": ("ac", "AC"),
    "chronic": ("chr", "CHR"),
    "bilateral": ("bilat", "BOTH"),
    "left": ("L", "LT"),
    "right": ("R", "RT"),
    "hypertension": ("HTN", "HYPERT"),
    "hypertensive": ("HTN", "HYPERT"),
    "disease": ("dz", "DIS"),
    "diseases": ("dz", "DIS"),
    "disorder": ("d/o", "DISTURB"),
    "disorders": ("d/o", "DISTURB"),
    "syndrome": ("synd", "SY"),
    "complication": ("compl", "COMPLIC"),
    "complications": ("compl", "COMPLIC"),
    "infection": ("inf", "INFCT"),
    "fracture": ("fx", "FRACT"),
    "hemorrhage": ("hem", "BLEED"),
    "obstruction": ("obst", "OBSTR"),
    "respiratory": ("resp", "RESP"),
    "failure": ("fail", "INSUFF"),
    "kidney": ("kid", "REN"),
    "hepatic": ("hep", "LIVER"),
    "pulmonary": ("pulm", "LUNG"),
    "cardiac": ("card", "HEART"),
    "cerebral": ("cereb", "BRAIN"),
    "secondary": ("sec", "2ND"),
    "abnormal": ("abn", "ABN"),
    "major": ("maj", "MAJ"),
    "depressive": ("depr", "DEPRESS"),
}
_FILLERS = frozenset(
    {"of", "the", "in", "to", "a", "an", "site", "by", "as", "or", "for", "from", "at", "on"}
)


@dataclass(frozen=True)
class Habit:
    """How one dictionary shortens titles.

    Attributes:
        column: which of the two customs of the tables it follows: clinical shorthand (0) or a coder's stems (1).
        whole: longest word that is written out.
        keep: letters that a longer word keeps.
        drop_vowels: whether a longer word first loses its inner vowels.
        width: characters that the field holds.
        upper: whether everything is in capitals.
    """

    column: int
    whole: int
    keep: int
    drop_vowels: bool
    width: int
    upper: bool


HABITS = (
    Habit(column=0, whole=7, keep=4, drop_vowels=True, width=30, upper=False),
    Habit(column=1, whole=5, keep=5, drop_vowels=True, width=28, upper=True),
    Habit(column=1, whole=6, keep=5, drop_vowels=False, width=24, upper=False),
    Habit(column=0, whole=4, keep=4, drop_vowels=True, width=24, upper=True),
)


def abbreviate(title: str, habit: Habit) -> str:
    """Shorten a title; never empty, at most `habit.width` characters.

    `abbreviate("Type 2 diabetes mellitus without complications", HABITS[0])` is "T2DM w/o compl".
    """
    text = title.lower()
    # A placeholder keeps a phrase in one piece, and out of reach of the rules for words.
    for number, phrase in enumerate(_PHRASES):
        if phrase in text:
            text = text.replace(phrase, f"\0{number}\0")
    words = []
    for word in re.findall(r"\0\d+\0|[^\s,;:()\[\]\0]+", text):
        if word[0] == "\0":
            words.append(list(_PHRASES.values())[int(word.strip("\0"))][habit.column])
        elif word not in _FILLERS:
            words.append(_shorten(word, habit))
    short = " ".join(words)[: habit.width].rstrip() or title[: habit.width]
    return short.upper() if habit.upper else short[0].upper() + short[1:]


def _shorten(word: str, habit: Habit) -> str:
    if word in _WORDS:
        return _WORDS[word][habit.column]
    if len(word) <= habit.whole:
        return word
    if habit.drop_vowels:
        word = word[0] + re.sub(r"[aeiou]", "", word[1:])
    return word[: habit.keep]
