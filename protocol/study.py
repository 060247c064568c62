"""StudySpec: the one file that all parties share; its digest binds every message.

Each field documents itself: `coordinator init` writes the example below, and
docs/reference/study.md is made from these descriptions.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from protocol.canonical import digest
from protocol.errors import StudyError, UsageError
from protocol.sections import (
    CodeSystem,
    Counting,
    DifferentialPrivacy,
    Embedding,
    ExtraView,
    Fit,
    Graph,
    Identifier,
    Ontology,
    Prefix,
    Privacy,
    Rounds,
    Section,
    Sharing,
    Text,
)


class StudySpec(Section):
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
    rounds: Rounds = Rounds()
    graph: Graph = Graph()

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
        if self.rounds.quorum and not self.minimum_sites <= self.rounds.quorum <= len(self.sites):
            raise ValueError(
                f"rounds.quorum is {self.rounds.quorum}; it may be 0, or from minimum_sites = {self.minimum_sites} "
                f"to the {len(self.sites)} sites"
            )
        if self.sharing.counts == "summed" and self.sharing.minimum_summed_sites > len(self.sites):
            raise ValueError(
                f"sharing.minimum_summed_sites is {self.sharing.minimum_summed_sites}, "
                f"but there are {len(self.sites)} sites"
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what is `stated`, in hex."""
        return digest(self.stated)

    @property
    def stated(self) -> dict[str, Any]:
        """The study as it is sent and hashed: fields at their defaults left out.

        So a version that adds a field, whose default is what was done before, reads the same study. A default never
        changes within a protocol number; tests/vectors/study holds them.
        """
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def quorum(self) -> int:
        """Accepted releases with which a round is fitted at its deadline."""
        return self.rounds.quorum or self.minimum_sites

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
