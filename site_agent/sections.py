"""The sections of `site.toml`: their descriptions are the reference."""

from __future__ import annotations

from datetime import date
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.messages import HexDigest
from protocol.sections import Identifier, Prefix


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Columns(_Section):
    """Names of the columns in the event file."""

    patient: str = Field("patient", description="A number or text for each patient; never leaves the site.")
    date: str = Field("date", description="A date, or a text that begins with YYYY-MM-DD.")
    code: str = Field("code", description="The code, as text.")
    system: str = Field("system", description="Optional: a code system for each row.")
    description: str = Field(
        "description", description="Optional: a text for each code; never leaves the site."
    )


Kind = Literal["triplets", "omop", "meds", "fhir", "i2b2", "pcornet"]
Domain = Literal["condition", "drug", "measurement", "procedure", "observation"]


class RollUp(_Section):
    """Codes counted as coarser ones: ICD as PheCode, packages as ingredients, laboratory codes as LOINC."""

    file: str = Field(
        "", description="CSV of code, target (CURIEs): each event of the code counts as one of each target."
    )
    concept_ancestor: bool = Field(
        False, description="OMOP only: use the ancestors of concept_ancestor that have one of `classes`."
    )
    classes: tuple[str, ...] = Field(
        ("Ingredient",), description="OMOP only: the concept_class_id of the concepts to count instead."
    )
    unmapped: Literal["keep", "skip"] = Field(
        "keep",
        description="Codes without a target count as themselves, or are skipped and their rows counted.",
    )


class Data(_Section):
    """Where the site's events are."""

    kind: Kind = Field(
        "triplets",
        description="What the data are: a file of triplets, a common data model, or a FHIR bulk export.",
    )
    events: str = Field(
        "",
        description="triplets: CSV or Parquet file of patient, date, code; meds, fhir: the folder. Relative to the home folder.",
    )
    database: str = Field(
        "",
        description="omop, i2b2, pcornet: duckdb:///absolute/path, postgresql://user@host:port/name, or spark://host:port "
        "(spark://local for this machine). A password belongs in SMILE_DATABASE_PASSWORD or ~/.pgpass, not here.",
    )
    schema_: str = Field("", alias="schema", description="omop, i2b2, pcornet: the schema of the tables.")
    vocabulary_schema: str = Field(
        "", description="omop: the schema of concept and concept_ancestor, if another."
    )
    domains: tuple[Domain, ...] = Field(
        ("condition", "drug", "measurement", "procedure", "observation"),
        description="Which kinds of tables or resources are read.",
    )
    anchors: str = Field("", description="CSV of local_code, standard_code; may be empty.")
    terminology: str = Field(
        "",
        description="Terms of public terminologies, whose words a released description may have: CSV or TSV with a column "
        "description, or text with a term a line. Used only where names or text vectors are released.",
    )
    text_model: str = Field(
        "", description='Folder of the text encoder where the study says text.encoder = "directory".'
    )
    system: Prefix = Field(description="Code system of rows that name none.")
    systems: dict[str, Prefix] = Field(
        {},
        description="A vocabulary, URI or code prefix as the data write it -> the study's prefix for it, "
        'as in { "http://loinc.org" = "LOINC" }.',
    )
    bad_rows: Literal["stop", "skip"] = Field(
        "stop", description="Stop at rows that cannot be used, or skip them and count each reason."
    )
    latest_date: date | None = Field(
        None,
        description="Events after this day are refused; today if left out. De-identified data whose dates were shifted "
        "may need a day of a later century.",
    )
    columns: Columns = Columns()
    rollup: RollUp = RollUp()

    @model_validator(mode="after")
    def _place(self) -> Self:
        needs_database = self.kind in {"omop", "i2b2", "pcornet"}
        if needs_database and not self.database:
            raise ValueError(f"kind {self.kind} reads a database: set data.database")
        if not needs_database and not self.events:
            raise ValueError(f"kind {self.kind} reads files: set data.events")
        if self.rollup.concept_ancestor and self.kind != "omop":
            raise ValueError("rollup.concept_ancestor needs kind omop")
        return self


class SitePolicy(_Section):
    """Floors of this site's own; they can only raise the study's. 0 means: as the study says."""

    min_code_patients: int = Field(0, ge=0, description="Distinct patients that a code needs to be released.")
    min_pair_patients: int = Field(0, ge=0, description="Distinct patients that a pair needs to be counted.")
    small_site_patients: int = Field(
        0, ge=0, description="With fewer patients than this, this site has the pair floor of a small site."
    )
    small_site_pair_patients: int = Field(
        0, ge=0, description="Distinct patients that a pair needs at a small site."
    )
    margin_rounding: int = Field(0, ge=0, description="Released patient counts are rounded to this.")
    max_dim: int = Field(0, ge=0, description="Largest embedding dimension that may leave.")
    sticky_patients: int = Field(
        0, ge=0, description="A count stays as it was released until it has moved by this many patients."
    )
    min_changed_patients: int = Field(
        0, ge=0, description="The next release needs this many patients whose events have changed."
    )
    names: bool = Field(
        False,
        description="Whether descriptions may leave where the study releases them; off unless set here.",
    )
    ontology: bool = Field(
        True,
        description="Whether the ontology view leaves where the study has one: a second function of the counts that passed "
        "the floors.",
    )
    text: bool = Field(
        False,
        description="Whether vectors of descriptions may leave where the study releases them (text.sites); whoever guesses a "
        "text can tell from its vector that the guess is right. Off unless set here.",
    )


class Machine(_Section):
    """What the agent may take of the machine while it reads and counts."""

    memory: str = Field(
        "",
        pattern=r"^([0-9]+(\.[0-9]+)?[KMGT])?$",
        description='A number with K, M, G or T, such as "6G"; half of what is free if left out. Results do not depend on it.',
    )
    threads: int = Field(0, ge=0, le=1024, description="Cores that count; 0 means all of them.")
    work: str = Field(
        "work",
        description="Folder for coded events and counts while they are made, 16 bytes a row and 12 a pair of codes; they are "
        "removed once a release is prepared. Relative to the home folder.",
    )


class CohortData(_Section):
    """What cohort search at this site knows of patients beside their events."""

    patients: str = Field(
        "",
        description="CSV or Parquet file with the column patient and any of birth, sex, death, dates as YYYY-MM-DD; never "
        "leaves the site. Relative to the home folder.",
    )
    own_codes: bool = Field(
        True,
        description="Patients like a patient are found by the site's own vectors of its codes too, made without floors; it takes "
        "a count of all pairs at each build.",
    )
    sexes: dict[str, Literal["female", "male"]] = Field(
        {},
        description='What the table\'s values of sex mean to a question of the consortium, as in { "2" = "female" }; f, female, '
        "m, male and OMOP's 8532 and 8507 are known.",
    )
    questions: int = Field(
        12,
        ge=0,
        description="So many questions of the consortium are answered within `question_days`; 0: none ever.",
    )
    question_days: int = Field(30, ge=1, le=3650, description="Days that `questions` is about.")


class NoteColumns(_Section):
    """Names of the columns of the notes."""

    patient: str = Field("patient", description="The patient, written as in the events.")
    date: str = Field("date", description="A date, or a text that begins with YYYY-MM-DD.")
    text: str = Field("text", description="The note.")


class Notes(_Section):
    """Clinical notes for `cohort fuse`; nothing made of them leaves the site."""

    file: str = Field(
        "",
        description="CSV or Parquet file with a patient, a date and a text in each row. Relative to the home folder.",
    )
    table: str = Field(
        "",
        description="Instead of `file`: a table of `data.database`, such as OMOP's note, with `columns` naming its columns.",
    )
    columns: NoteColumns = NoteColumns()
    encoder: Literal["lexical", "minilm", "directory"] = Field(
        "lexical", description="What makes vectors of texts; the last two need the extra `text`."
    )
    model: str = Field("", description="The model's folder, for `directory`. Relative to the home folder.")
    dim: int = Field(384, ge=16, le=4096, description="Columns of the lexical encoder; a model has its own.")
    identifiers: tuple[str, ...] = Field(
        (),
        description="Columns of `cohort.patients` whose words are taken out of the patient's notes; if none is named, those "
        "that are called name, first_name, last_name, address, street, city, zip, phone, email, mrn or the like.",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.file and self.table:
            raise ValueError("set notes.file or notes.table, not both")
        if self.encoder == "directory" and not self.model:
            raise ValueError("notes.encoder is a model in a directory: set notes.model")
        return self


class Network(_Section):
    """What the Flower process may do."""

    allow_bundles: tuple[HexDigest, ...] = Field(
        (), description="SHA-256 of Flower bundles whose messages are answered; none means deny all."
    )


class ApprovalRule(_Section):
    """What the agent needs before it seals a release."""

    signers: int = Field(
        1, ge=1, le=5, description="Distinct signers who must have approved exactly these bytes."
    )


class SiteSharing(_Section):
    """What this site shares at all; it can only share less than the study says."""

    sealed: bool = Field(
        True,
        description="Whether sealed embeddings may leave; false: such calls are refused, and the site takes part in sums only.",
    )
    minimum_summed_sites: int = Field(
        0, ge=0, le=500, description="A secure sum needs this many sites; 0: as many as the study says."
    )


class SiteConfig(_Section):
    """The content of `site.toml`."""

    site: Identifier = Field(description="The site's name in the study.")
    data: Data
    policy: SitePolicy = SitePolicy()
    sharing: SiteSharing = SiteSharing()
    approval: ApprovalRule = ApprovalRule()
    machine: Machine = Machine()
    cohort: CohortData = CohortData()
    notes: Notes = Notes()
    network: Network = Network()
    views: dict[str, str] = Field(
        {},
        description="A view of the study's own (`[[views]]`) -> the Python file that makes it, relative to the home folder. It "
        "runs with the agent's rights, only if it is named here, and only if it has the study's digest.",
    )
