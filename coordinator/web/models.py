"""What the API answers: models of the reading endpoints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from coordinator.exports.table import Entry
from coordinator.library import OpenRelease, Version
from coordinator.mapping import Candidate

CODE = "ICD10CM:E11.9"
_LONGEST_NAME = 500


def plain(text: str) -> str:
    """JSON can say half of a character, which nothing can write down."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("half of a character (a lone surrogate)")
    return text


PlainText = Annotated[str, AfterValidator(plain)]


class ReleaseLine(BaseModel):
    """A published version in a list."""

    version: int = Field(description="Its number.", examples=[2])
    round: str = Field(description="The round that it was fitted from.", examples=["2026-q4"])
    created: datetime = Field(description="UTC.")
    digest: str = Field(description="SHA-256 of its signed manifest, in hex: what a paper should cite.")
    sites: list[str] = Field(
        description="Sites whose releases it was fitted with.", examples=[["lake", "north"]]
    )
    withdrawn: datetime | None = Field(
        description="Since when nobody should use it; null for one that stands."
    )
    erased: bool = Field(description="Its files are gone.")

    @classmethod
    def of(cls, version: Version) -> ReleaseLine:
        """From the library's."""
        return cls(
            version=version.number,
            round=version.round,
            created=version.created.replace(tzinfo=UTC),
            digest=version.digest,
            sites=list(version.sites),
            withdrawn=version.withdrawn.replace(tzinfo=UTC) if version.withdrawn else None,
            erased=version.erased,
        )


class ReleaseList(BaseModel):
    """All published versions."""

    latest: int | None = Field(
        description="The newest version that stands; null if there is none.", examples=[2]
    )
    releases: list[ReleaseLine] = Field(description="The first one first; withdrawn ones too.")


class System(BaseModel):
    """A code system of the study."""

    prefix: str = Field(description="What its codes begin with.", examples=["ICD10CM"])
    category: str = Field(description="What kind of thing its codes are.", examples=["condition"])
    uri: str = Field(description="Its canonical URI.", examples=["http://hl7.org/fhir/sid/icd-10-cm"])
    standard: bool = Field(description="Whether codes are mapped to this system.")


class ReleaseFacts(ReleaseLine):
    """A published version, verified."""

    study: str = Field(description="Name of the study.", examples=["diabetes"])
    title: str = Field(description="What the study calls itself; may be empty.")
    licence: str = Field(description="Licence of the map.", examples=["CC-BY-4.0"])
    codes: int = Field(description="Codes in the release.", examples=[41_200])
    mapped: int = Field(description="Codes outside the standard system that have a standard code.")
    clusters: int = Field(description="Clusters of synonyms.")
    dimension: int = Field(description="Length of the codes' vectors.", examples=[128])
    software: str = Field(description="What wrote it.")
    systems: list[System] = Field(description="Code systems of the study.")

    @classmethod
    def of_open(cls, version: Version, release: OpenRelease, *, mapped: int) -> ReleaseFacts:
        """From the library's.

        Args:
            mapped: codes outside the standard system that have a standard code.
        """
        study, published = release.map.study, release.map
        systems = [
            System(
                prefix=s.prefix,
                category=s.category,
                uri=published.system_uri(s.prefix),
                standard=s.prefix == study.standard,
            )
            for s in study.code_systems
        ]
        return cls(
            **ReleaseLine.of(version).model_dump(),
            study=study.id,
            title=study.title,
            licence=study.licence,
            codes=release.manifest.codes,
            mapped=mapped,
            clusters=release.manifest.clusters,
            dimension=int(release.index.vectors.shape[1]),
            software=release.manifest.software,
            systems=systems,
        )


class MappingLine(BaseModel):
    """A code and where the fit puts it."""

    code: str = Field(examples=["NORTH:dm2"], description="The CURIE.")
    name: str = Field(
        description="What the code is called; empty where nobody said. Text of others: escape it."
    )
    system: str = Field(description="Prefix of its code system.", examples=["NORTH"])
    category: str = Field(description="Category of its code system.", examples=["condition"])
    standard_code: str = Field(description="Its standard code; empty without one.", examples=[CODE])
    standard_name: str = Field(description="What the standard code is called; empty where nobody said.")
    probability: float = Field(
        description="That the standard code is right: .9 is right nine times in ten; 0 without one, 1 where it was given.",
        examples=[0.93],
    )
    predicate: str | None = Field(
        description="What the standard code is to the code (SKOS); null without one.",
        examples=["skos:exactMatch"],
    )
    given: bool = Field(
        description="A site gave the standard code, or the code is one: the fit found nothing here."
    )
    cluster: int = Field(description="Its cluster of synonyms.", examples=[17])
    posterior: float = Field(description="The fit's own certainty of that cluster.", examples=[0.98])
    sites: list[str] = Field(description="Sites that released the code.", examples=[["north"]])

    @classmethod
    def of(cls, e: Entry) -> MappingLine:
        """From a published row."""
        return cls.model_construct(**line_fields(e))


def short(name: str) -> str:
    """A name as lists give it: a site may have called its codes by 100 kB of text, and a page has a thousand of them."""
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"


def line_fields(e: Entry) -> dict[str, Any]:
    """The fields of a line; they come from a verified release, so nothing is validated again."""
    return {
        "code": e.code,
        "name": short(e.name),
        "system": e.system,
        "category": e.category,
        "standard_code": e.standard_code,
        "standard_name": short(e.standard_name),
        "probability": e.probability,
        "predicate": str(e.predicate) if e.predicate else None,
        "given": e.given,
        "cluster": e.cluster,
        "posterior": e.posterior,
        "sites": list(e.sites),
    }


class MappingPage(BaseModel):
    """A page of codes, sorted by code."""

    version: int = Field(description="The release.")
    total: int = Field(description="Codes that the filters let through, on all pages.")
    items: list[MappingLine]
    next: str | None = Field(description="`cursor` of the next page; null on the last one.")


class Pair(BaseModel):
    """What knowledge says of two codes."""

    left: str
    right: str
    relation: str = Field(description="`similar` or `related:KIND`; `not` before it where it is denied.")
    weight: float
    source: str = Field(description="Who says so.")


class CandidateLine(BaseModel):
    """A standard code that the code may mean."""

    code: str = Field(examples=[CODE], description="The CURIE.")
    name: str = Field(description="What it is called.")
    share: float = Field(
        description="Its softmax share among all candidates: the fit's own belief, not a calibrated one."
    )
    similarity: float = Field(description="Cosine of its vector with the code's.")
    clues: dict[str, float] = Field(
        description="Clue -> log odds that it adds to this candidate against the average candidate."
    )
    pairs: list[Pair] = Field(
        description="Pairs of codes from knowledge sources that speak for or against it."
    )

    @classmethod
    def of(cls, c: Candidate) -> CandidateLine:
        """From a published row."""
        return cls(
            code=c.code,
            name=short(c.name),
            share=c.share,
            similarity=c.similarity,
            clues=dict(c.clues),
            pairs=[
                Pair(left=p.left, right=p.right, relation=p.relation, weight=p.weight, source=p.source)
                for p in c.pairs
            ],
        )


class SiteEvidence(BaseModel):
    """How strongly one site's codes speak for the cluster."""

    site: str
    members: int = Field(description="The cluster's other codes at this site.")
    cosine: float = Field(description="Of the code's vector with the mean of theirs.")


class Found(BaseModel):
    """What the fit found, and from what."""

    candidates: list[CandidateLine] = Field(description="Best first; the first is the standard code.")
    evidence: list[SiteEvidence] = Field(description="By site.")
    similarity: float = Field(description="Cosine with the standard code's vector; 0 without one.")


class Judgement(BaseModel):
    """What one person said."""

    number: int
    by: str = Field(description="Who; `person 1`, `person 2`, ... for analysts.")
    kind: str = Field(description="decide, comment, assign, undo, adjudicate or import.")
    target: str = Field("", description="The standard code that is meant.")
    verdict: str = Field("", description="accept, reject or unsure.")
    comment: str = Field("", description="Text of others: escape it. Empty for who has not signed in.")
    version: int | None = Field(None, description="The release that was looked at.")
    at: datetime = Field(description="UTC.")
    reviewers: list[str] = Field([], description="Of an assignment.")
    undoes: int | None = Field(None, description="The record that is taken back.")


class Review(BaseModel):
    """What people said, kept apart from what the fit found."""

    state: str = Field(description="open, accepted, rejected, unsure or conflict.")
    target: str = Field(description="The standard code that people settled on; empty if none.")
    history: list[Judgement] = Field(
        description="The first one first; while reviewers decide blindly, only what you may see."
    )
    hidden: bool = Field(description="Whether something is hidden from you, as blind review is under way.")


class MappingDetail(MappingLine):
    """A code, what the fit found for it, and what people said: two things that are never mixed."""

    version: int = Field(description="The release.")
    found: Found
    review: Review


class ClusterLine(BaseModel):
    """A cluster of synonyms."""

    cluster: int
    size: int = Field(description="Codes in it.")
    codes: list[str] = Field(description="Its first codes, at most ten.")
    standard_codes: list[str] = Field(description="Standard codes in it, at most ten.")


class ClusterPage(BaseModel):
    """A page of clusters, by number."""

    version: int
    total: int = Field(description="Clusters that the filters let through.")
    items: list[ClusterLine]
    next: str | None = Field(description="`cursor` of the next page; null on the last one.")


class ClusterDetail(BaseModel):
    """A cluster and its codes."""

    version: int
    cluster: int
    size: int
    items: list[MappingLine] = Field(description="At most 1,000; the rest by mappings?cluster=.")


class Near(BaseModel):
    """A code near the query."""

    code: str = Field(examples=[CODE])
    name: str
    category: str
    similarity: float = Field(description="Cosine.", examples=[0.91])


class Neighbours(BaseModel):
    """The nearest codes."""

    version: int
    items: list[Near] = Field(description="Best first; the code itself is left out.")


class VectorQuery(BaseModel):
    """A vector whose nearest codes are asked for."""

    vector: list[float] = Field(
        min_length=1,
        max_length=4096,
        description="As long as the release's vectors; its length does not matter, its direction does.",
        json_schema_extra={"example": [0.1, 0.2]},
    )
    k: int = Field(10, ge=1, le=200, description="How many.")
    systems: list[PlainText] = Field([], max_length=200, description="Prefixes to which hits are limited.")
    categories: list[PlainText] = Field(
        [], max_length=200, description="Categories to which hits are limited."
    )


class TextHit(BaseModel):
    """A code whose code, name or synonym fits the text."""

    code: str = Field(examples=[CODE])
    name: str
    score: float = Field(description="The larger, the better it fits; comparable within one answer only.")
    where: str = Field(description="What fitted.")


class TextHits(BaseModel):
    """Codes that fit a text."""

    version: int
    items: list[TextHit] = Field(description="Best first.")


class Translation(BaseModel):
    """Where one code goes, or, reversed, what comes to it."""

    code: str
    known: bool = Field(description="Whether the release has the code.")
    items: list[MappingLine] = Field(
        description="The code's own row if it has a standard code; reversed: the row of every code that is mapped to it, "
        "most probable first, all of them."
    )


class Translations(BaseModel):
    """Answers in the order of the questions."""

    version: int
    reverse: bool
    results: list[Translation]


class TranslateQuery(BaseModel):
    """Codes to translate."""

    codes: list[PlainText] = Field(min_length=1, max_length=1000, examples=[["NORTH:dm2"]])
    reverse: bool = Field(
        False, description="From standard codes back to all the codes that are mapped to them."
    )
    at_least: float = Field(0.0, ge=0, le=1, description="Leave out what was found and is less probable.")


class FileLine(BaseModel):
    """A file to download."""

    name: str = Field(examples=["mappings.sssom.tsv"])
    bytes: int
    sha256: str = Field(description="In hex; the ETag of the download.")
    path: str = Field(description="Where it is.", examples=["/api/v1/releases/2/files/mappings.sssom.tsv"])


class FileList(BaseModel):
    """The files of a release."""

    version: int
    files: list[FileLine]


class ExportLine(BaseModel):
    """A format that can be downloaded."""

    format: str = Field(examples=["fhir-r4"])
    available: bool
    why: str = Field("", description="Why it cannot be had.")
    path: str


class ExportList(BaseModel):
    """The formats of a release."""

    version: int
    formats: list[ExportLine]
