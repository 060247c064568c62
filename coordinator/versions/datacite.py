"""`datacite.json`: what a version says of itself to a DOI registry, but for the DOI, which is minted elsewhere."""

from __future__ import annotations

from typing import Any, Final

from coordinator.edition import Edition
from coordinator.exports.table import base_uri
from coordinator.report.text import safe_text

SCHEMA: Final = "http://datacite.org/schema/kernel-4"
_LICENCES: Final = {
    "https://creativecommons.org/licenses/by/4.0/": (
        "Creative Commons Attribution 4.0 International",
        "CC-BY-4.0",
    ),
    "https://creativecommons.org/publicdomain/zero/1.0/": (
        "Creative Commons Zero 1.0 Universal",
        "CC0-1.0",
    ),
}
"""Licence's URL -> name and SPDX identifier."""
_LIMIT: Final = 500


def creators(edition: Edition) -> tuple[str, ...]:
    """Who is to be cited."""
    named = (safe_text(name, _LIMIT) for name in edition.citation.creators)
    return tuple(name for name in named if name) or (consortium(edition),)


def publisher(edition: Edition) -> str:
    """Who makes the map available."""
    return safe_text(edition.citation.publisher, _LIMIT) or consortium(edition)


def consortium(edition: Edition) -> str:
    """The study's sites together."""
    return f"Consortium of study {edition.study.id}"


def title(edition: Edition) -> str:
    """Of the version."""
    return f"Harmonised codes of study {edition.study.id}, version {edition.version}"


def version_uri(edition: Edition, number: int) -> str:
    """The URI of a version of this study; that of its mapping set too."""
    return f"{base_uri(edition.study)}releases/v{number}"


def metadata(edition: Edition, abstract: str, method: str) -> dict[str, Any]:
    """DataCite metadata, JSON form of schema 4.5: all mandatory properties but the identifier.

    Args:
        edition: the version.
        abstract: what the data are.
        method: how they were made.
    """
    study = edition.study
    name, identifier = _LICENCES.get(study.licence, ("", ""))
    rights = {"rightsUri": study.licence}
    if name:
        rights |= {"rights": name, "rightsIdentifier": identifier, "rightsIdentifierScheme": "SPDX"}
    related = (
        [
            {
                "relatedIdentifier": version_uri(edition, edition.version - 1),
                "relatedIdentifierType": "URL",
                "relationType": "IsNewVersionOf",
                "resourceTypeGeneral": "Dataset",
            }
        ]
        if edition.version > 1
        else []
    )
    subtitle = safe_text(study.title, _LIMIT)
    return {
        "schemaVersion": SCHEMA,
        "types": {"resourceTypeGeneral": "Dataset", "resourceType": "Code mapping set"},
        "creators": [_name(who) for who in creators(edition)],
        "titles": [{"title": title(edition)}]
        + ([{"title": subtitle, "titleType": "Subtitle"}] if subtitle else []),
        "publisher": {"name": publisher(edition)},
        "publicationYear": f"{edition.created:%Y}",
        "version": str(edition.version),
        "language": "en",
        "dates": [{"date": f"{edition.created:%Y-%m-%d}", "dateType": "Issued"}],
        "subjects": [{"subject": s} for s in ("medical vocabularies", "code mapping", "federated learning")],
        "contributors": [
            {"name": s.site, "nameType": "Organizational", "contributorType": "DataCollector"}
            for s in edition.sites
            if s.state == "received"
        ],
        "alternateIdentifiers": [
            {"alternateIdentifier": version_uri(edition, edition.version), "alternateIdentifierType": "URL"}
        ],
        "relatedIdentifiers": related,
        "formats": [
            "application/vnd.apache.parquet",
            "text/tab-separated-values",
            "text/html",
            "text/markdown",
        ],
        "rightsList": [rights],
        "descriptions": [
            {"description": abstract, "descriptionType": "Abstract"},
            {"description": method, "descriptionType": "Methods"},
        ],
    }


def _name(who: str) -> dict[str, str]:
    """A person is written as Family, Given."""
    family, comma, given = who.partition(", ")
    if not comma:
        return {"name": who, "nameType": "Organizational"}
    return {"name": who, "nameType": "Personal", "familyName": family, "givenName": given}
