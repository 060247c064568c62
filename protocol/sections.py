"""The sections of a study file; `protocol.study` puts them together.

Each field documents itself: docs/reference/study.md is made from these descriptions.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from protocol.vocabulary import IDENTIFIER, PREFIX, Category

Identifier = Annotated[str, StringConstraints(pattern=rf"^{IDENTIFIER.pattern}$")]
Prefix = Annotated[str, StringConstraints(pattern=rf"^{PREFIX.pattern}$")]
ViewName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]

DEFAULT_MIN_CODE_PATIENTS = 20
DEFAULT_MIN_PAIR_PATIENTS = 11
DEFAULT_STICKY_PATIENTS = 11
DEFAULT_MIN_CHANGED_PATIENTS = 1000
DEFAULT_SMALL_SITE_PATIENTS = 6000
DEFAULT_SMALL_SITE_PAIR_PATIENTS = 25


class Section(BaseModel):
    """A part of the study: frozen, closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CodeSystem(Section):
    """A code system that may occur in the study's releases."""

    prefix: Prefix = Field(description="The part before the colon: ICD10CM in ICD10CM:E11.9.")
    category: Category = Field("condition", description="What kind of thing its codes are; shown in reports.")
    local_to: Identifier | None = Field(
        None, description="The site whose own codes these are; none for public systems."
    )
    uri: str = Field("", description="The system's canonical URI, used by SSSOM and FHIR.", max_length=300)


class Counting(Section):
    """Which pairs of events count."""

    rule: Literal["window", "whole-history"] = Field(
        "window",
        description="Event pairs at most window_days apart, or one per patient over the whole history.",
    )
    window_days: int = Field(30, ge=0, le=36_525, description="Largest distance of two events in days.")
    max_events_per_patient: int = Field(
        20_000, ge=2, le=90_000, description="Only a patient's most recent events up to this number count."
    )

    @property
    def window(self) -> int | None:
        """Days of the window; None for the whole history."""
        return self.window_days if self.rule == "window" else None


class Embedding(Section):
    """How each site embeds its codes."""

    dim: int = Field(128, ge=2, le=1024, description="Largest dimension of a site's embedding.")
    codes_per_dim: int = Field(
        20, ge=2, le=1000, description="A site releases at most one dimension for this many released codes."
    )
    ppmi_shift: float = Field(1.0, ge=1.0, le=100.0, description="The k of shifted PPMI; 1 means no shift.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the start vector of the eigenvectors.")


class Sharing(Section):
    """How each statistic travels: sealed to the coordinator, or summed so that it learns the total only."""

    embeddings: Literal["sealed", "none"] = Field(
        "sealed", description="Each site's embedding, sealed to the coordinator; or sites release none."
    )
    counts: Literal["none", "summed"] = Field(
        "none", description="Counts over the standard codes: not pooled, or added up by secure sums."
    )
    minimum_summed_sites: int = Field(
        5, ge=3, le=500, description="A secure sum needs this many sites; it exposes none of them alone."
    )
    minimum_expected: int = Field(
        10,
        ge=1,
        le=1_000_000,
        description="Pairs of codes are summed whose count, expected from the pooled margins, is at least this.",
    )
    small_cells: Literal["zero", "include"] = Field(
        "zero",
        description="A site's cells below its floors enter a sum as zero, which biases rare pairs towards zero; or as they are.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.embeddings == "none" and self.counts == "none":
            raise ValueError('nothing is shared: embeddings = "none" and counts = "none"')
        return self


class Privacy(Section):
    """Floors that hold at every site; a site's own policy may raise them, never lower them."""

    min_code_patients: int = Field(
        DEFAULT_MIN_CODE_PATIENTS, ge=1, description="Distinct patients that a code needs to be released."
    )
    min_pair_patients: int = Field(
        DEFAULT_MIN_PAIR_PATIENTS, ge=1, description="Distinct patients that a pair needs to be counted."
    )
    small_site_patients: int = Field(
        DEFAULT_SMALL_SITE_PATIENTS,
        ge=0,
        description="A site is small if it may have fewer patients than this, by the rounded number that it releases; "
        "0: none is.",
    )
    small_site_pair_patients: int = Field(
        DEFAULT_SMALL_SITE_PAIR_PATIENTS,
        ge=1,
        description="Distinct patients that a pair needs at a small site, if that is more than min_pair_patients.",
    )
    margin_rounding: int = Field(
        100, ge=1, le=1000, description="Released patient counts are rounded to this."
    )
    sticky_patients: int = Field(
        DEFAULT_STICKY_PATIENTS,
        ge=0,
        description="From release to release a count stays as it was until it has moved by this many patients.",
    )
    min_changed_patients: int = Field(
        DEFAULT_MIN_CHANGED_PATIENTS,
        ge=0,
        description="A site's next release needs this many patients whose events have changed, or none at all.",
    )
    names: bool = Field(
        False,
        description="Whether sites may release descriptions of codes, each word known to a public terminology or the whole "
        "approved by a person; a site must allow it too (off: none ever leaves).",
    )
    public_data: bool = Field(
        False, description="Set only where patients cannot be harmed: allows lower floors than the defaults."
    )

    @model_validator(mode="after")
    def _floors(self) -> Self:
        low = (
            self.min_code_patients < DEFAULT_MIN_CODE_PATIENTS
            or self.min_pair_patients < DEFAULT_MIN_PAIR_PATIENTS
            or self.small_site_patients < DEFAULT_SMALL_SITE_PATIENTS
            or self.small_site_pair_patients < DEFAULT_SMALL_SITE_PAIR_PATIENTS
            or self.sticky_patients < DEFAULT_STICKY_PATIENTS
            or self.min_changed_patients < DEFAULT_MIN_CHANGED_PATIENTS
        )
        if low and not self.public_data:
            raise ValueError(
                f"floors below {DEFAULT_MIN_CODE_PATIENTS} patients a code, {DEFAULT_MIN_PAIR_PATIENTS} a pair "
                f"({DEFAULT_SMALL_SITE_PAIR_PATIENTS} at a site of fewer than {DEFAULT_SMALL_SITE_PATIENTS:,}), "
                f"{DEFAULT_STICKY_PATIENTS} a change of a count and {DEFAULT_MIN_CHANGED_PATIENTS:,} a new release "
                "need public_data = true"
            )
        return self


class DifferentialPrivacy(Section):
    """Noise on summed counts; off by default, and nothing is called differentially private while it is off."""

    enabled: bool = Field(False, description="Whether sites add noise to counts before they are summed.")
    epsilon: float = Field(
        3.0, gt=0, le=20, description="What a site's patients may lose over all sums together."
    )
    delta: float = Field(1e-6, gt=0, le=1e-3, description="The delta at which epsilon is counted.")
    release_epsilon: float = Field(1.0, gt=0, le=20, description="What one sum costs by itself.")
    codes_per_patient: int = Field(
        20, ge=1, le=1000, description="Codes that a patient contributes at most, drawn at random."
    )

    @property
    def promise(self) -> str:
        """What one sum promises a patient, in words; empty while this is off."""
        if not self.enabled:
            return ""
        return f"epsilon {self.release_epsilon:g} at delta {self.delta:g}, {self.codes_per_patient} codes a patient"

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.release_epsilon > self.epsilon:
            raise ValueError("release_epsilon is more than the whole epsilon")
        return self


class Ontology(Section):
    """The is-a graph beside the study file, `ontology.csv`, and the view that is made of it; off by default."""

    digest: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="SHA-256 of ontology.csv, so that all parties use one graph; empty: there is no ontology view.",
    )
    dim: int = Field(100, ge=2, le=1024, description="Largest dimension of the ontology view.")
    depth: int = Field(
        5,
        ge=1,
        le=50,
        description="Codes deeper below a root stand where their nearest ancestor within does.",
    )
    penalty: float = Field(
        30.0, gt=0, le=1e6, description="How firmly counts are held to the ontology, for each code."
    )


class ExtraView(Section):
    """A view of the consortium's own making, which a site releases only if its site.toml names the file."""

    name: ViewName = Field(description="The view's name in releases.")
    digest: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the Python file that makes it, so that all sites run the same.",
    )
    dim: int = Field(ge=2, le=1024, description="Largest dimension of the view.")


class Text(Section):
    """Names of codes as a view of their own, in one space for all parties; off by default."""

    encoder: Literal["none", "lexical", "minilm", "directory"] = Field(
        "none",
        description="No text; n-grams of letters, which need nothing; MiniLM, of the extra `text`; or a model in a folder.",
    )
    digest: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="The encoder's digest; a party where another is installed is refused.",
    )
    dim: int = Field(128, ge=8, le=1024, description="Columns of the text view, the same at all parties.")
    sites: bool = Field(
        False,
        description="Whether sites may release vectors of their own descriptions, which tell nearly as much as the texts; a site "
        "must allow it too.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.encoder != "none" and not self.digest:
            raise ValueError(f"text.encoder {self.encoder} needs text.digest")
        if self.encoder == "none" and (self.digest or self.sites):
            raise ValueError("text.digest or text.sites is set, and text.encoder is none")
        return self


class Fit(Section):
    """How the coordinator fits SMILE."""

    method: Literal["two-stage", "variational"] = Field(
        "two-stage", description="Factors first and clusters after, or both in one variational fit."
    )
    weak_pairs: bool = Field(
        True,
        description="Two-stage: whether matches that look sure align the sites once more; without it sites need links.",
    )
    dim: int = Field(
        0, ge=0, le=1024, description="Latent dimension; 0 takes three fifths of the smallest site dimension."
    )
    clusters: int = Field(
        0,
        ge=0,
        description="Number of synonym clusters; 0: one for each standard code, or, where codes are not ranked, chosen "
        "for each category.",
    )
    iterations: int = Field(
        40,
        ge=1,
        le=10_000,
        description="Most iterations of the variational fit before its search, and after it.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the fit.")


class Rounds(Section):
    """How long a round waits, and for how many."""

    days: int = Field(
        30, ge=1, le=365, description="Days until a call expires: time for sites to prepare and approve."
    )
    quorum: int = Field(
        0,
        ge=0,
        le=500,
        description="A round that has this many accepted releases at its deadline is fitted; with fewer it lapses. 0: "
        "minimum_sites. With all sites in, it is closed before.",
    )


class Graph(Section):
    """How relations of codes are tested: see [Related codes](../explanation/knowledge-graph.md)."""

    minimum_expected: float = Field(
        10.0,
        ge=5.0,
        le=1e6,
        description="Pairs are tested whose count, expected from the margins without a relation, is at least this.",
    )
    delta: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Least excess over the expected count that is looked for: 0.1 asks for relations of more than 10 %.",
    )
    fdr: float = Field(
        0.05,
        gt=0.0,
        lt=1.0,
        description="Share of false discoveries among the pairs that are called related.",
    )
    method: Literal["bh", "by"] = Field(
        "bh",
        description="Benjamini and Hochberg's q-values; or those of Benjamini and Yekutieli, which hold however tests depend and "
        "find less.",
    )
