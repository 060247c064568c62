"""Clinical notes that are generated, and say so: which conditions they mention, and which identifiers were planted where.

They have what makes real notes hard: other words than the titles, negations, the family's conditions, a form that all share,
paragraphs copied forward, and identifiers with and without a word before them. They are no real notes: what is measured on
them shows that the machinery works, and says nothing of a hospital.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np

_FIRST = (
    "Maria James Aisha Robert Linda Wei Carlos Fatima John Susan Olga Pedro Hannah Ahmed Grace Tomasz Ingrid Samuel Rose Mark "
    "Joy Yusuf Elena Patrick Nadia Hugo April Dawn Ivan Keiko"
)
_LAST = (
    "Okafor Smith Kowalski Nguyen Garcia Johnson Haddad Müller O'Brien Rossi Yamamoto Patel Johansson Long Young Green Baker "
    "Dubois Novak Cohen Fernandez Brown Castillo Ivanov Becker Wood Andersson Banerjee Lindqvist Moreau Petrov Silva Tanaka "
    "Walker Ziegler Abbas Chen Li Fraser McDonald Stone"
)
_STREETS = "Oak Maple Hill Washington Church Lake Mill River Park Cedar"
FIRST, LAST, STREETS = _FIRST.split(), _LAST.split(), _STREETS.split()
CITIES = ("Springfield", "Fairview", "Riverside", "Franklin", "Ashland", "Salem", "Georgetown")
FORM = (
    "DISCHARGE SUMMARY",
    "This document is confidential and intended for treatment purposes only.",
    "Review of systems: all other systems reviewed and negative.",
    "Medications were reconciled with the patient before discharge.",
    "Return to the emergency department for fever, chest pain or shortness of breath.",
)
MENTION = (
    "Assessment: {c}.",
    "Known {c}, stable on current treatment.",
    "Admitted with {c}.",
    "Past medical history is significant for {c}.",
    "{c}: continue present management, follow up with clinic.",
    "Patient has a long history of {c}.",
    "Worsening {c} over the past weeks.",
)
ELSE = (
    "No evidence of {c}.",
    "Denies {c}.",
    "{c} was ruled out.",
    "Family history: mother with {c}.",
    "Her brother had {c} at a young age.",
    "Low suspicion for {c}.",
)
CHATTER = (
    "Tolerated diet, ambulating in the hallway.",
    "Vital signs within normal limits, afebrile overnight.",
    "Blood pressure 128/76, pulse 72, oxygen saturation 97 % on room air.",
    "Labs reviewed: sodium 138, potassium 4.1, creatinine 1.0.",
    "Plan discussed, questions answered.",
    "Physical therapy to evaluate for gait and strength 5/5.",
    "Slept poorly, appetite fair.",
)


@dataclass
class Note:
    """A note, and what was planted in it.

    Attributes:
        patient: as in the events.
        day: of the note.
        text: with the identifiers.
        planted: (kind, the words that must not be there afterwards).
    """

    patient: str
    day: date
    text: str
    planted: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Person:
    """What the patients table knows."""

    first: str
    last: str
    street: str
    mrn: str


def person(rng: np.random.Generator) -> Person:
    return Person(
        str(rng.choice(FIRST)),
        str(rng.choice(LAST)),
        f"{rng.integers(1, 999)} {rng.choice(STREETS)} Street",
        f"{rng.integers(10**6, 10**8)}",
    )


def free(title: str, rng: np.random.Generator) -> str:
    """A title as somebody may write it: fewer words, another order, shorter words."""
    text = re.sub(
        r"(?i)\b(unspecified|not elsewhere classified|nos|other|without mention of[^,]*|not stated as[^,]*)\b",
        "",
        title,
    )
    text = re.sub(r"[\[(][^\])]*[\])]|\s+,", " ", text).strip(" ,;")
    parts = [p.strip() for p in text.split(",") if p.strip()] or [title]
    if len(parts) > 1 and rng.random() < 0.5:
        parts = parts[:1] if rng.random() < 0.5 else [parts[1], parts[0]]
    words = " ".join(parts).split()
    if len(words) > 4 and rng.random() < 0.4:
        words.pop(int(rng.integers(1, len(words))))
    return " ".join(words).lower()


def identifiers(who: Person, day: date, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(sentence, kind, what must go) of one note, a few of all kinds."""
    # Each stands in one sentence alone, so that what is left of one is not taken for another.
    given = [str(f) for f in rng.permutation([f for f in FIRST if f != who.first])]
    family = [str(f) for f in rng.permutation([f for f in LAST if f != who.last])]
    first, last = given[0], family[0]
    phone = f"{rng.integers(200, 999)}-{rng.integers(200, 999)}-{rng.integers(1000, 9999)}"
    dotted, local = phone.replace("-", "."), f"({phone[:3]}) {phone[4:]}"
    number = f"{rng.integers(10**6, 10**8)}"
    mail = f"{first}.{last}@{rng.choice(['mail', 'clinic', 'health'])}.{rng.choice(['org', 'com', 'net'])}".lower()
    mail = mail.replace("'", "").replace("ü", "u")
    street = (
        f"{rng.integers(1, 9999)} {rng.choice(STREETS)} {rng.choice(['St', 'Avenue', 'Road', 'Lane', 'Dr.'])}"
    )
    city, town, seat, place, home = (str(c) for c in rng.permutation(CITIES)[:5])
    when = day - timedelta(days=int(rng.integers(0, 400)))
    old = int(rng.integers(90, 104))
    month = when.strftime("%B")
    every = [
        (f"Admission date: {when:%m/%d/%Y}.", "date", f"{when:%m/%d/%Y}"),
        (f"Symptoms began on {when.day} {when:%b} {when.year}.", "date", f"{when.day} {when:%b}"),
        (f"Last echocardiogram {month} {when.day}, {when.year}.", "date", f"{month} {when.day}"),
        (f"Colonoscopy in {month} {when.year} was normal.", "date", f"{month} {when.year}"),
        (f"Seen again {when.month}/{when.day} in clinic.", "date", f"{when.month}/{when.day}"),
        (f"Follow-up is due {when.isoformat()}.", "date", when.isoformat()),
        (f"Call {phone} with questions.", "phone", phone),
        (f"Daughter may be reached at {local}.", "phone", local),
        (f"Fax {dotted}.", "phone", dotted),
        (f"Cell: +1 {phone}.", "phone", phone),
        (f"E-mail {mail} for the results.", "e-mail", mail),
        (f"Images at https://pacs.{home.lower()}.org/study/{number}.", "url", number),
        (f"MRN: {number}.", "number", number),
        (f"Account no. {number[:3]}-{number[3:]}.", "number", f"{number[:3]}-{number[3:]}"),
        (f"Medicare ID {number[:4]}A{number[4:]}.", "number", f"{number[:4]}A{number[4:]}"),
        (f"SSN 5{number[:2]}-{number[2:4]}-{number[-4:]}.", "number", f"{number[2:4]}-{number[-4:]}"),
        (f"Device serial number SN{number}.", "number", number),
        (f"This is a {old} year old patient.", "age over 89", f"{old} year"),
        (f"Patient, {old} y/o, lives alone.", "age over 89", f"{old} y"),
        (
            f"Home address {street}, {city}, MA 0{rng.integers(1000, 2799)}.",
            "address",
            street.split(" ", 1)[0] + " " + street.split(" ")[1],
        ),
        (f"Lives in {town} with family.", "address", town),
        (f"Mail to PO Box {number[:4]}.", "address", number[:4]),
        (f"Transferred from {place} General Hospital.", "place", place),
        (f"Seen by Dr. {first} {last}.", "name with a title or a cue", last),
        (f"Attending: {family[1]}, {given[1]}.", "name with a title or a cue", family[1]),
        (f"Electronically signed by {given[2]} {family[2]}, MD.", "name with a title or a cue", family[2]),
        (f"Her husband {given[3]} was at the bedside.", "name with a title or a cue", given[3]),
        (f"Patient name: {who.last.upper()}, {who.first}.", "name in the patients table", who.last.upper()),
        (f"{who.first} tolerated the procedure well.", "name in the patients table", who.first),
        (f"We thank {who.last}'s family for their patience.", "name in the patients table", who.last),
        (
            f"Returned to {who.street} after discharge.",
            "address in the patients table",
            who.street.split()[1],
        ),
        (f"Chart {who.mrn} was reviewed.", "number in the patients table", who.mrn),
        (f"{given[4]} from the ward called about transport.", "other name without a cue", given[4]),
        (f"Case reviewed, {family[3]} agrees with the plan.", "other name without a cue", family[3]),
        (f"Works as the mayor of {seat}.", "what the patient is", "mayor"),
    ]
    chosen = rng.choice(len(every), int(rng.integers(2, 6)), replace=False)
    return [every[i] for i in chosen]


def write_notes(
    patient: str,
    who: Person,
    has: Sequence[str],
    others: Sequence[str],
    first: date,
    last: date,
    rng: np.random.Generator,
    *,
    planted: bool = True,
) -> list[Note]:
    """One to three notes that mention what is in `has`, and speak of `others` as what the patient does not have."""
    notes: list[Note] = []
    copied: list[str] = []
    span = max((last - first).days, 0)
    n = int(rng.integers(1, 4))
    part = [list(p) for p in np.array_split(rng.permutation(len(has)), n)]
    for i in range(n):
        day = first + timedelta(days=int(rng.integers(0, span + 1)))
        new = [str(rng.choice(MENTION)).format(c=free(has[j], rng)) for j in part[i]]
        body = [
            *new,
            *(
                str(rng.choice(ELSE)).format(c=free(str(c), rng))
                for c in rng.choice(others, min(2, len(others)))
            ),
            *(str(c) for c in rng.choice(CHATTER, 2, replace=False)),
        ]
        found = identifiers(who, day, rng) if planted else []
        body += [sentence for sentence, _, _ in found]
        rng.shuffle(body)
        text = "\n".join([FORM[0], *copied, " ".join(body), *FORM[1:]])
        notes.append(Note(patient, day, text, [(kind, secret) for _, kind, secret in found]))
        copied = [*copied, *new] if rng.random() < 0.7 else copied
    return notes


def recall(notes: Iterable[Note], cleaned: Iterable[str]) -> Mapping[str, tuple[int, int]]:
    """Kind -> (planted and gone, planted)."""
    table: dict[str, list[int]] = {}
    for note, text in zip(notes, cleaned, strict=True):
        for kind, secret in note.planted:
            row = table.setdefault(kind, [0, 0])
            row[0] += re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text) is None
            row[1] += 1
    return {kind: (a, b) for kind, (a, b) in sorted(table.items())}
