"""StudySpec: the one file that all parties share; its digest binds every message.

Each field documents itself: `coordinator init` writes the example below, and
docs/reference/study.md is made from these descriptions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from protocol.canonical import digest
from protocol.errors import StudyError, UsageError
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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CodeSystem(_Section):
    """A code system that may occur in the study's releases."""

    prefix: Prefix = Field(description="The part before the colon: ICD10CM in ICD10CM:E11.9.")
    category: Category = Field("condition", description="What kind of thing its codes are; shown in reports.")
    local_to: Identifier | None = Field(
        None, description="The site whose own codes these are; none for public systems."
    )
    uri: str = Field("", description="The system's canonical URI, used by SSSOM and FHIR.", max_length=300)


class Counting(_Section):
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


class Embedding(_Section):
    """How each site embeds its codes."""

    dim: int = Field(128, ge=2, le=1024, description="Largest dimension of a site's embedding.")
    codes_per_dim: int = Field(
        20, ge=2, le=1000, description="A site releases at most one dimension for this many released codes."
    )
    ppmi_shift: float = Field(1.0, ge=1.0, le=100.0, description="The k of shifted PPMI; 1 means no shift.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the start vector of the eigenvectors.")


class Sharing(_Section):
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


class Privacy(_Section):
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


class DifferentialPrivacy(_Section):
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


class Ontology(_Section):
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


class ExtraView(_Section):
    """A view of the consortium's own making, which a site releases only if its site.toml names the file."""

    name: ViewName = Field(description="The view's name in releases.")
    digest: str = Field(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the Python file that makes it, so that all sites run the same.",
    )
    dim: int = Field(ge=2, le=1024, description="Largest dimension of the view.")


class Text(_Section):
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


class Fit(_Section):
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


class StudySpec(_Section):
    """What the parties agreed on. Equal files, and only equal files, have equal digests."""

    id: Identifier = Field(description="The consortium's name for this study.")
    title: str = Field("", max_length=200, description="One line for people.")
    sites: tuple[Identifier, ...] = Field(
        min_length=1, max_length=500, description="The sites that take part."
    )
    standard: Prefix = Field(description="The code system whose codes name the clusters.")
    code_systems: tuple[CodeSystem, ...] = Field(min_length=1, description="All code systems that may occur.")
    minimum_sites: int = Field(3, ge=2, description="Fewer releases than this are not fitted.")
    publish_local_codes: Literal["consortium", "own-site"] = Field(
        "consortium",
        description="Whether a site's local codes appear in the release to all, or in its own copy only.",
    )
    licence: str = Field(
        "https://creativecommons.org/licenses/by/4.0/",
        pattern=r"^https?://[^\s]+$",
        max_length=200,
        description="URL of the licence of the published maps.",
    )
    base_uri: str = Field(
        "https://smile-federation.invalid",
        pattern=r"^https?://[^\s]+$",
        max_length=200,
        description="Where releases and local code systems get their URIs; name one that the consortium owns.",
    )
    counting: Counting = Counting()
    embedding: Embedding = Embedding()
    sharing: Sharing = Sharing()
    privacy: Privacy = Privacy()
    differential_privacy: DifferentialPrivacy = DifferentialPrivacy()
    ontology: Ontology = Ontology()
    text: Text = Text()
    views: tuple[ExtraView, ...] = ()
    fit: Fit = Fit()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("a site is listed twice")
        prefixes = [s.prefix for s in self.code_systems]
        if len(set(prefixes)) != len(prefixes):
            raise ValueError("a code system is listed twice")
        if self.standard not in prefixes:
            raise ValueError(f"the standard system {self.standard} is not among the code systems")
        for system in self.code_systems:
            if system.local_to is not None and system.local_to not in self.sites:
                raise ValueError(
                    f"code system {system.prefix} is local to {system.local_to}, which is no site"
                )
        if self.system(self.standard).local_to is not None:
            raise ValueError("the standard system is local to one site")
        if self.text.sites and self.text.dim > self.embedding.dim:
            raise ValueError(
                f"text.dim is {self.text.dim}, and sites release at most embedding.dim = {self.embedding.dim} dimensions"
            )
        names = ["cooccurrence", "ontology", "text", *(v.name for v in self.views)]
        if len(set(names)) != len(names):
            raise ValueError(f"a view is listed twice; {', '.join(names[:3])} are there already")
        if self.sharing.counts == "summed" and self.sharing.minimum_summed_sites > len(self.sites):
            raise ValueError(
                f"sharing.minimum_summed_sites is {self.sharing.minimum_summed_sites}, "
                f"but there are {len(self.sites)} sites"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return digest(self)

    def prefixes(self, systems: Collection[str] = (), categories: Collection[str] = ()) -> frozenset[str]:
        """The code systems that are of `systems` and of `categories`; none, for no limit, where both are empty.

        Raises:
            UsageError: the study has no such system or category, or none is both.
        """
        known = {s.prefix: s.category for s in self.code_systems}
        for given, have, what in (
            (systems, set(known), "code system"),
            (categories, set(known.values()), "category"),
        ):
            unknown = sorted(set(given) - have)
            if unknown:
                raise UsageError(
                    f"The study has no {what} {unknown[0]!r}", do=f"Take one of {', '.join(sorted(have))}"
                )
        found = {p for p, c in known.items() if p in (systems or known) and c in (categories or {c})}
        if not found:
            raise UsageError(
                f"No code system is of {', '.join(sorted(systems))} and of {', '.join(sorted(categories))}"
            )
        return frozenset(found) if systems or categories else frozenset()

    @property
    def view_dims(self) -> dict[str, int]:
        """The views that a release may hold, and the largest dimension of each."""
        found = {"cooccurrence": self.embedding.dim}
        if self.ontology.digest:
            found["ontology"] = self.ontology.dim
        if self.text.sites:
            found["text"] = self.text.dim
        found |= {view.name: view.dim for view in self.views}
        return {name: min(dim, self.embedding.dim) for name, dim in found.items()}

    def system(self, prefix: str) -> CodeSystem:
        """The code system of a prefix.

        Raises:
            StudyError: the study does not list it.
        """
        for system in self.code_systems:
            if system.prefix == prefix:
                return system
        raise StudyError(
            f"Code system {prefix!r} is not in study {self.id!r}",
            why=f"it lists {', '.join(s.prefix for s in self.code_systems)}",
            do="Correct the data's system column, or add the system to the study file at every party",
        )


def load_study(path: Path) -> StudySpec:
    """Read a study file.

    Raises:
        StudyError: the file is missing, not TOML, or breaks a rule; every broken rule is named.
    """
    try:
        with path.open("rb") as stream:
            table = tomllib.load(stream)
    except FileNotFoundError:
        raise StudyError(
            f"There is no study file {path}", do="Ask the coordinator for the study's TOML file"
        ) from None
    except (OSError, ValueError) as error:
        raise StudyError(f"The study file {path} cannot be read", why=str(error)) from None
    return parse_study(table, str(path))


def parse_study(table: object, where: str) -> StudySpec:
    """Validate a study's table; `where` names it in errors.

    Raises:
        StudyError: the table breaks a rule.
    """
    try:
        return StudySpec.model_validate(table)
    except ValidationError as error:
        raise StudyError(f"The study {where} is not valid", why=validation_reasons(error)) from None


def validation_reasons(error: ValidationError) -> str:
    """Every broken rule of a pydantic error, as `field: reason; field: reason`."""
    return "; ".join(
        (".".join(str(part) for part in e["loc"]) + ": " if e["loc"] else "")
        + e["msg"].removeprefix("Value error, ")
        for e in error.errors()
    )


def study_differences(ours: StudySpec, theirs: StudySpec) -> list[str]:
    """Each field in which two studies differ, as `privacy.min_pair_patients: 11 here, 12 there`."""
    left, right = _flat(ours.model_dump(mode="json")), _flat(theirs.model_dump(mode="json"))
    return [
        f"{key}: {left.get(key, 'absent')} here, {right.get(key, 'absent')} there"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        pairs = [(f"{prefix}.{k}" if prefix else str(k), v) for k, v in value.items()]
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        pairs = [(f"{prefix}[{i}]", v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    return {k: v for name, item in pairs for k, v in _flat(item, name).items()}
