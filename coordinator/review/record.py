"""One record of the review log: what a person said of a code, signed by the coordinator and chained to the record before."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from protocol.errors import UsageError
from protocol.messages import Curie, HexDigest, Message, Text
from protocol.sections import Identifier

Verdict = Literal["accept", "reject", "unsure"]
Kind = Literal["decide", "comment", "assign", "undo", "adjudicate", "import"]
Relation = Literal["", "exact", "broad", "narrow", "close"]
"""What the target is to the code; "" where nobody said more than that the code maps to it."""

MAX_COMMENT: Final = 2000
MAX_NAME: Final = 100
MAX_REVIEWERS: Final = 10

PersonName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME)]
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Decision(Message):
    """A record of the log; it is never changed, and taken back by a further record only.

    `target` is "" where a person says that no standard code is the right one. `version`, `manifest_digest`, `model_target`
    and `model_probability` are what the person saw: later fits can be held against it.
    """

    schema_version: Literal[1] = 1
    study: Identifier
    number: int = Field(ge=1)
    previous: str = Field(pattern="^([0-9a-f]{64})?$", description="Digest of the record before.")
    at: AwareDatetime
    actor: PersonName = Field(description="Who says so, as the service or the operator's account knows them.")
    kind: Kind
    code: Curie
    target: Curie | Literal[""] = ""
    verdict: Verdict | Literal[""] = ""
    relation: Relation = ""
    comment: Text = ""
    reviewers: tuple[PersonName, ...] = Field((), max_length=MAX_REVIEWERS, description="Of an assignment.")
    undoes: int = Field(0, ge=0, description="Number of the record that is taken back.")
    version: int = Field(0, ge=0, description="Of the release that was looked at; 0 for none.")
    manifest_digest: str = Field("", pattern="^([0-9a-f]{64})?$", description="Of that release.")
    model_target: Curie | Literal[""] = Field("", description="The release's own standard code.")
    model_probability: float | None = Field(None, ge=0, le=1, description="That it is right.")
    source: str = Field("", max_length=120, description="Of an import: format and digest of the file.")
    line: int = Field(0, ge=0, description="Of an import: the line in the file.")
    signer: HexDigest = Field(description="Digest of the coordinator's keys that signed.")

    @property
    def decides(self) -> bool:
        """It holds a verdict of a reviewer."""
        return self.kind in {"decide", "import"} and bool(self.verdict)


def person(name: str) -> str:
    """A person's name as it is recorded: one line, without marks that nobody sees.

    Raises:
        UsageError: empty, too long, or with such marks.
    """
    clean = unicodedata.normalize("NFC", name).strip()
    if not clean or len(clean) > MAX_NAME or any(unicodedata.category(c) in _INVISIBLE for c in clean):
        raise UsageError(
            f"{name[:40]!r} cannot name a person", why=f"a name is 1 to {MAX_NAME} visible characters"
        )
    return clean


def remark(text: str) -> str:
    """A comment as it is recorded: marks that steer a terminal or turn the direction of text are taken out.

    Raises:
        UsageError: too long.
    """
    clean = unicodedata.normalize("NFC", text).replace("\r\n", "\n").strip()
    clean = "".join(c for c in clean if c == "\n" or unicodedata.category(c) not in _INVISIBLE)
    if len(clean) > MAX_COMMENT:
        raise UsageError(
            f"A comment of {len(clean):,} characters is too long", why=f"the limit is {MAX_COMMENT:,}"
        )
    return clean
