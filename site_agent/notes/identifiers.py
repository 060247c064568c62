"""Identifiers in a note, found by rules and taken out: those of HIPAA's Safe Harbor list that have a form or a word before them.

Rules lower the risk and do not end it: a name without a title, a nickname, or a rare job stays. What is found is replaced by
a space, so that the text does not tell what was there. Years alone stay, and ages up to 89. What repeats is bounded in every
rule, so that the time grows with the text's length and no faster.

Source: 45 CFR 164.514(b)(2); the kinds as in Neamatullah et al. 2008 (PhysioNet's deid).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY: Final = r"(?:0?[1-9]|[12][0-9]|3[01])(?:st|nd|rd|th)?"
_YEAR: Final = r"(?:19|20)[0-9]{2}"
_NAME: Final = r"[A-Z](?:[a-zà-ÿ'’]{1,30}|['’][A-Z][a-zà-ÿ]{1,30}|[A-Z'’]{1,30}|\.)(?:-[A-Z][a-zà-ÿ]{1,30}|[A-Z][a-zà-ÿ]{1,30})?"
_NAMES: Final = rf"{_NAME}(?:,?[ ]+{_NAME}){{0,2}}"
_STREET: Final = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Way|Parkway|Pkwy"
    r"|Highway|Hwy|Circle|Cir|Close|Crescent)\b\.?"
)
_NUMBER_WORDS: Final = (
    r"(?i:MRN|MR|SSN|DEA|NPI|IMEI|VIN|medical record|record|chart|acct|account|case|visit|encounter|policy|member|beneficiary"
    r"|insurance|medicare|medicaid|licen[cs]e|certificate|serial|device|accession|specimen|order|room|bed|pager|beeper|badge"
    r"|plate|hospital|patient|NHS|ID)"
)

_RULES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("e-mail", r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
        (
            "url",
            r"(?i:https?://|ftp://|www\.)\S+|(?<![\w.-])[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.(?:com|org|net|edu|gov)\b(?:/\S*)?",
        ),
        ("number", r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b"),
        ("date", r"\b[12][0-9]{3}[-/.](?:0?[1-9]|1[0-2])[-/.](?:[0-2]?[0-9]|3[01])(?:[T ][0-9:.]+Z?)?\b"),
        ("date", r"\b[0-9]{1,2}(?P<sep>[-/.])[0-9]{1,2}(?P=sep)(?:[12][0-9]{3}|'?[0-9]{2})\b"),
        (
            "date",
            rf"(?i)\b{_DAY}(?:[ ]+of)?[ -]*{_MONTH}(?:,?[ -]*(?:{_YEAR}|'[0-9]{{2}}|[0-9]{{2}}\b))?(?!\w)",
        ),
        ("date", rf"(?i)\b{_MONTH}[ ]*{_DAY}(?:,?[ ]*{_YEAR})?\b"),
        ("date", rf"(?i)\b{_MONTH}(?:[ ]+of)?,?[ ]*{_YEAR}\b"),
        ("date", r"\b(?i:on|since|from|until|till|dated|by|of|before|after|due)[ ]+[0-9]{1,2}/[0-9]{1,2}\b"),
        # 5/5 is a strength, 2/6 a murmur and 7/10 a pain: a day up to the tenth needs a word before it.
        ("date", r"(?<![\w/.])(?:0?[1-9]|1[0-2])/(?:1[1-9]|2[0-9]|3[01])\b(?![/.]?[0-9])"),
        ("date", r"(?<![\w/.])(?:0?[1-9]|1[0-2])/(?:3[2-9]|[4-9][0-9])\b(?![/.]?[0-9])"),  # month and year
        ("date", r"(?i)\b(?:January|February|April|June|July|August|September|October|November|December)\b"),
        ("date", r"\b(?i:in|since|until|last|early|late|mid|of|by)[ ]+(?:March|May)\b"),
        ("date", r"(?i)\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b"),
        ("number", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b"),
        (
            "phone",
            r"(?<![\w.])(?:\+?[0-9]{1,3}[ .-]?)?(?:\([0-9]{2,5}\)[ ]?|[0-9]{2,5}[ .-])[0-9]{3,4}[ .-][0-9]{3,4}"
            r"(?:[ ]*(?i:x|ext\.?)[ ]*[0-9]{1,6})?(?![\w.]?[0-9])",
        ),
        ("phone", r"\b[0-9]{3}-[0-9]{4}\b"),
        (
            "number",
            rf"\b{_NUMBER_WORDS}(?:[ ]*(?i:number|num|no|nr|id|code)\b\.?)?[ ]*(?:[:#=]|[ ]is[ ]|[ ])[ ]*#?"
            r"(?=[A-Za-z-]{0,30}[0-9])[A-Za-z0-9][\w/-]{2,}",
        ),
        (
            "number",
            r"#[ ]?[A-Z0-9-]{4,}\b|\b[A-Z]{1,4}-?[0-9]{5,}\b|\b[0-9]{7,}\b|\b[0-9]{2,}(?:-[0-9]+){2,}\b"
            r"|\b[A-Z]{1,4}[0-9]+/[0-9]{4,}\b",
        ),
        (
            "age",
            r"(?i)\b(?:9[0-9]|1[0-4][0-9])[ -]*(?:y(?:ea)?rs?\b|y/?o\b|yo\b)(?:[ -]*old|[ -]*of[ -]*age)?",
        ),
        ("age", r"(?i)\bage[sd]?(?:[ ]+of)?[ :]*(?:9[0-9]|1[0-4][0-9])\b"),
        (
            "age",
            r"(?i)\b(?:ninety|one hundred|a hundred)(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?[- ]year",
        ),
        (
            "address",
            rf"\b[0-9]{{1,6}}[A-Za-z]?[ ]+(?:[NSEW]\.?[ ]+)?(?:[A-Z0-9][\w'’.-]{{0,30}}[ ]+){{1,4}}?{_STREET}"
            r"(?:,?[ ]*(?i:apt|apartment|unit|suite|floor|fl|#)\.?[ ]*#?[\w-]+)?",
        ),
        ("address", r"(?i)\bP\.?[ ]?O\.?[ ]*Box[ ]*[0-9]+"),
        ("address", r"(?:\b(?:[A-Z][a-z'’-]{1,30}[ ]?){1,3},[ ]*)?\b[A-Z]{2}[ ]+[0-9]{5}(?:-[0-9]{4})?\b"),
        ("address", r"\b[0-9]{5}-[0-9]{4}\b|\b(?i:zip(?:[ -]?code)?|postcode)[ :]*[0-9]{5}\b"),
        ("address", r"\b[A-Z]{1,2}[0-9][0-9A-Z]?[ ][0-9][ABD-HJLNP-UW-Z]{2}\b"),
        (
            "address",
            r"\b(?i:lives|living|resides|residing|resident)[ ]+(?:in|at|of)[ ]+[A-Z][\w'’-]+(?:[ ]+[A-Z][\w'’-]+)*",
        ),
        (
            "place",
            r"\b(?:(?:St\.?|Mt\.?|[A-Z][a-z'’]{1,30})[ ]+){1,4}"
            r"(?:Hospital|Medical Cent(?:er|re)|Clinic|Infirmary|Nursing Home|Health System|Rehabilitation Cent(?:er|re))\b",
        ),
        (
            "name",
            rf"\b(?:Dr|Drs|Mr|Mrs|Ms|Mx|Miss|Prof|Professor|Doctor|Nurse|Sister|Rev|Reverend|Fr|Hon|Sgt|Capt)\b\.?[ ]+{_NAMES}",
        ),
        (
            "name",
            rf"\b{_NAMES}(?=,?[ ]+(?:M\.?D|D\.?O|R\.?N|N\.?P|P\.?A(?:-C)?|Ph\.?D|MBBS|FACS|FACC|LCSW|CRNA|PharmD)\b)",
        ),
        (
            "name",
            r"\b(?i:patient|pt|patient name|name|first name|last name|surname|attending|surgeon|provider|physician|pcp|author"
            r"|resident|consultant|nurse|contact|next of kin|emergency contact|spouse|guardian|proxy|cc|referring physician"
            rf"|primary care)(?:[ ]*\([\w ]+\))?[ ]*:[ ]*{_NAMES}",
        ),
        (
            "name",
            r"\b(?i:(?:electronically[ ]+)?(?:signed|dictated|authored|reviewed|referred|seen|examined|transcribed|verified"
            r"|called|performed|admitted|operated|discussed|spoke)[ ]+(?:on|by|with|to)|named|known as|goes by|contact)"
            rf"[ ]+{_NAMES}",
        ),
        (
            "name",
            rf"\b(?i:drs?|mr|mrs|ms|mx|prof)\.[ ]+(?:{_NAMES}|[^\W\d_]{{2,30}}(?:[ ]+[^\W\d_]{{2,30}})?)",
        ),
        # The initials of who dictated and who typed, on a line of their own.
        ("name", r"(?m)^[A-Z]{2,4}[:/][A-Za-z]{2,}$"),
        (
            "name",
            r"\b(?i:wife|husband|daughter|son|mother|father|brother|sister|partner|spouse|friend|neighbou?r|caretaker|niece|nephew"
            rf"|aunt|uncle|cousin|grandson|granddaughter)(?:[ ]*,[ ]*|[ ]*\([ ]*|[ ]+){_NAMES}",
        ),
    )
)
_WORD: Final = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_COMMON_WORDS: Final = (
    "and the of for street st avenue ave road rd drive dr lane ln court ct place pl north south east west apt unit suite box "
    "po county city town new old upper lower mr mrs ms miss jr sr md no not"
)
_COMMON: Final = frozenset(_COMMON_WORDS.split())
_SHORT, _DIGITS = 3, 5


def remove_identifiers(
    text: str, known: Collection[str] = frozenset(), found: Counter[str] | None = None
) -> str:
    """The text with a space in place of everything that a rule takes for an identifier.

    Args:
        text: of a note, after `normalised`.
        known: words of this patient's own record, as `known_words` makes them.
        found: kind -> number of places; counted into.
    """
    counts = Counter[str]() if found is None else found
    if known:
        text = _WORD.sub(lambda m: _unless_known(m, known, counts), text)
    for kind, pattern in _RULES:
        text, times = pattern.subn(" ", text)
        if times:
            counts[kind] += times
    return text


def known_words(values: Iterable[str]) -> frozenset[str]:
    """Words by which a record's own fields (name, street, numbers) are found in a note: without case and accents.

    Words of one letter, numbers of fewer than five digits (a dose has as many) and words such as "street" stand for nobody.
    """
    found = set()
    for value in values:
        for word in _WORD.findall(unicodedata.normalize("NFKC", value)):
            plain = _plain(word)
            least = _DIGITS if plain.isdigit() else 2
            if len(plain) >= least and plain not in _COMMON:
                found.add(plain)
    return frozenset(found)


def _unless_known(match: re.Match[str], known: Collection[str], counts: Counter[str]) -> str:
    word = match[0]
    plain = _plain(word)
    # "li" is a name only where it is written as one.
    if plain not in known or (len(plain) <= _SHORT and not word[0].isupper() and not plain.isdigit()):
        return word
    counts["known"] += 1
    return " "


def _plain(word: str) -> str:
    folded = word.casefold()
    for ending in ("'s", "’s"):
        folded = folded.removesuffix(ending)
    if folded.isascii():
        return folded
    return "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
