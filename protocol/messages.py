"""Frozen types of what the parties tell each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from protocol.canonical import digest
from protocol.keys import PublicKeys
from protocol.sections import (
    DEFAULT_MIN_CHANGED_PATIENTS,
    DEFAULT_SMALL_SITE_PAIR_PATIENTS,
    DEFAULT_SMALL_SITE_PATIENTS,
    DEFAULT_STICKY_PATIENTS,
    Identifier,
)
from protocol.version import PROTOCOL, SOFTWARE
from protocol.vocabulary import MAX_CODE_LENGTH

MAX_NAME_LENGTH = 300
"""Characters of a released description."""

HexDigest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Curie = Annotated[str, StringConstraints(min_length=3, max_length=MAX_CODE_LENGTH + 33)]
Text = Annotated[str, StringConstraints(max_length=2000)]
Name = Annotated[str, StringConstraints(max_length=MAX_NAME_LENGTH)]


class Message(BaseModel):
    """Frozen, closed to unknown fields; its digest is that of its canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return digest(self)


# --- Enrolment -----------------------------------------------------------------------------------------


class Invitation(Message):
    """What a site needs to find and check the coordinator; handed over by people."""

    protocol: int = Field(PROTOCOL, description="That the coordinator speaks; looked at before all else.")
    software: str = Field(SOFTWARE, max_length=80, description="What wrote it, for people.")
    study_digest: HexDigest
    address: str = Field(max_length=300, description="host:port of the fleet proxy.")
    certificate: str = Field(
        max_length=16_384, description="PEM of the CA that signed the coordinator's certificate."
    )
    keys: PublicKeys
    bundle_digest: HexDigest = Field(
        description="SHA-256 of the Flower bundle that the coordinator will name."
    )


class Enrolment(Message):
    """What the coordinator needs of a site; signed by the keys that it names."""

    study_digest: HexDigest
    site: Identifier
    keys: PublicKeys
    node_key: str = Field(
        max_length=1024, description="The Flower node's public key, EC P-384 in OpenSSH form."
    )
    contact: str = Field("", max_length=200)


# --- Rounds --------------------------------------------------------------------------------------------


class RoundCall(Message):
    """The coordinator's signed call for releases; its key opens this round's releases only."""

    round: Identifier
    study_digest: HexDigest
    study: dict[str, Any] = Field(description="The whole study, so that a site can say which field differs.")
    recipient: PublicKeys
    expected: dict[Identifier, tuple[int, str]] = Field(
        description="Site -> sequence and content digest of its last accepted release; (0, '') for none."
    )
    ledger_heads: dict[Identifier, HexDigest] = Field(
        default_factory=dict,
        description="Site -> head of its ledger in the last accepted release: countersigned by this call.",
    )
    expires: AwareDatetime


class Receipt(Message):
    """A site's signed word that a published release arrived and holds."""

    site: Identifier
    round: Identifier
    version: int = Field(ge=1)
    manifest_digest: HexDigest
    received: AwareDatetime


# --- Releases ------------------------------------------------------------------------------------------


class Policy(Message):
    """The floors in force at a site: the study's, or higher ones of its own."""

    min_code_patients: int = Field(ge=1)
    min_pair_patients: int = Field(ge=1)
    margin_rounding: int = Field(ge=1)
    max_dim: int = Field(ge=2)
    sticky_patients: int = Field(DEFAULT_STICKY_PATIENTS, ge=0)
    min_changed_patients: int = Field(DEFAULT_MIN_CHANGED_PATIENTS, ge=0)
    small_site_patients: int = Field(DEFAULT_SMALL_SITE_PATIENTS, ge=0)
    small_site_pair_patients: int = Field(DEFAULT_SMALL_SITE_PAIR_PATIENTS, ge=1)

    def small(self, patients: int) -> bool:
        """Whether a site may have fewer than `small_site_patients`, by the number that it releases.

        Rounding to a step s adds at most s / 2: a site of fewer is always a small one, one of up to s more can be.
        """
        return max(0, patients - self.margin_rounding // 2) < self.small_site_patients

    def at(self, patients: int) -> Policy:
        """The same with the pair floor in force at a site that releases this number of patients.

        Law: p.at(n).at(n) = p.at(n).
        """
        if not self.small(patients):
            return self
        floor = max(self.min_pair_patients, self.small_site_pair_patients)
        return self.model_copy(update={"min_pair_patients": floor})


class ReleaseStatistics(Message):
    """Summary numbers; suppressed counts stand apart from zeros.

    Like the counts that they sum up they stay as they were released until these
    move. All but `codes_released`, the two smallest counts and the numbers of
    names are rounded to the policy's step, `pairs_suppressed` to two digits, so
    they need not add up exactly.
    """

    patients: int = Field(ge=0)
    codes_seen: int = Field(ge=0)
    codes_suppressed: int = Field(ge=0, description="Seen by fewer patients than the floor: withheld.")
    codes_without_pairs: int = Field(ge=0, description="Over the floor, but no pair of theirs is: withheld.")
    codes_released: int = Field(ge=0)
    pairs_released: int = Field(ge=0, description="Pairs that entered the embedding.")
    pairs_suppressed: int = Field(
        ge=0,
        description="Seen by 1 to floor - 1 patients, or by too few more since an earlier release: withheld.",
    )
    mass_kept: float = Field(ge=0, le=1, description="Share of all co-occurrences that the kept pairs hold.")
    smallest_code_patients: int = Field(ge=0, description="Least released patient count of a code, rounded.")
    smallest_pair_patients: int = Field(
        ge=0, description="Fewest distinct patients behind any pair that was used."
    )
    capped_patients: int = Field(ge=0, description="Patients with more events than the study's cap, rounded.")
    names_released: int = Field(0, ge=0, description="Released codes whose description is released too.")
    names_withheld: int = Field(0, ge=0, description="Released codes whose description is withheld.")


class ArraySpec(Message):
    """One released array."""

    name: str = Field(pattern=r"^[a-z][a-z0-9/_-]{0,63}$")
    dtype: Literal["float32", "float64", "int32", "int64"]
    shape: tuple[int, ...] = Field(max_length=2)
    sha256: HexDigest = Field(description="Of the raw little-endian values in row order.")


class Anchor(Message):
    """A site's word that one of its released codes means a code of the standard system."""

    row: int = Field(ge=0, description="Row of the release's codes.")
    standard: Curie


class ReleaseManifest(Message):
    """Everything that leaves a site, in words; its digest is what a person approves."""

    schema_version: Literal[1] = 1
    study_digest: HexDigest
    site: Identifier
    sequence: int = Field(ge=1)
    previous: str = Field(pattern="^([0-9a-f]{64})?$")
    agent_version: str = Field(max_length=40)
    agent_digest: HexDigest
    policy: Policy
    statistics: ReleaseStatistics
    codes: tuple[Curie, ...]
    descriptions: tuple[Name, ...] = Field(
        (), description="Nothing, or a text for each code, empty where none is released."
    )
    anchors: tuple[Anchor, ...]
    arrays: tuple[ArraySpec, ...]


# --- Published releases --------------------------------------------------------------------------------


class FileSpec(Message):
    """A file of a published release."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=120)
    bytes: int = Field(ge=0)
    sha256: HexDigest


class SiteSummary(Message):
    """A site's part in a published release."""

    site: Identifier
    state: Literal["received", "refused", "missing", "excluded", "withdrawn"]
    detail: Text = ""
    sequence: int = Field(0, ge=0)
    manifest_digest: str = ""
    statistics: ReleaseStatistics | None = None


class Tombstone(Message):
    """A site has left the study: nothing of it is in this version or in any later one."""

    site: Identifier
    at: AwareDatetime = Field(description="When its keys were revoked.")
    reason: Text
    versions: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        max_length=100_000, description="Earlier versions that were fitted with its release: do not use them."
    )


class BackgroundSource(Message):
    """Something beside the releases that a fit was given."""

    kind: Literal["knowledge", "titles", "encoder", "reviews"]
    detail: Text = Field(description="A sentence for people.")
    content: HexDigest = Field(description="Digest of what was given.")


class PublishedManifest(Message):
    """`manifest.json` of a published release; signed by the coordinator."""

    schema_version: Literal[1] = 1
    study: dict[str, Any]
    study_digest: HexDigest
    round: Identifier
    version: int = Field(ge=1)
    previous: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="Digest of the consortium's manifest of version - 1; empty for the first.",
    )
    audience: str = Field(
        "consortium", description="`consortium`, or the one site whose local codes it holds."
    )
    created: AwareDatetime
    software: str = Field(max_length=80)
    codes: int = Field(ge=0)
    clusters: int = Field(ge=0)
    sites: tuple[SiteSummary, ...]
    withdrawn: tuple[Tombstone, ...] = Field((), description="Every withdrawal so far, the first one first.")
    background: tuple[BackgroundSource, ...] = Field(
        (), description="What the fit was given beside the releases."
    )
    files: tuple[FileSpec, ...]
