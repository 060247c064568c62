"""The number of the protocol that two parties must share, and the software that says it.

The number changes when a message, an envelope or a step of the Flower conversation changes so that the other side must
know. It stands in the clear beside everything that parties exchange, and is looked at before anything else is parsed: a
peer of another version is told which versions met, instead of which field is unknown to it.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

from protocol.errors import VersionError

PROTOCOL = 1
NAME = "smile-federation"
VERSION = importlib.metadata.version(NAME)
SOFTWARE = f"{NAME} {VERSION}"

_MAX_SOFTWARE = 80


def check_protocol(stated: Mapping[str, Any], who: str, *, here: str = "this machine") -> None:
    """Return only if the other party speaks our protocol; nothing that it says is used otherwise.

    Args:
        stated: fields in the clear: `protocol`, a whole number, and `software`, words for people. Without a number the
            other party is older than the numbers: 0.
        who: said it, at the beginning of a sentence.
        here: what we call ourselves.

    Raises:
        VersionError: it speaks another one; both versions are named, and who must upgrade.
    """
    number = stated.get("protocol", 0)
    if number == PROTOCOL and type(number) is int:
        return
    if type(number) is not int:
        number = 0
    software = stated.get("software")
    named = _printable(software) if isinstance(software, str) else "an unnamed version"
    older = who[0].lower() + who[1:] if number < PROTOCOL else here
    raise VersionError(
        f"{who} speaks protocol {number} ({named}), {here} speaks protocol {PROTOCOL} ({SOFTWARE})",
        why=f"the older of the two is {older}",
        do=f"Upgrade {NAME} there, and try again; nothing was taken in",
    )


def check_json(data: bytes, who: str) -> None:
    """`check_protocol` of a JSON object's bytes; bytes that are none are left for the parser to refuse.

    Raises:
        VersionError: as `check_protocol`.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        check_protocol(found, who)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_SOFTWARE])
