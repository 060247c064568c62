"""Every version, and the files and formats of one."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from coordinator.exports.formats import FORMATS
from coordinator.graph.structure import STRUCTURE
from coordinator.graph.tables import EDGES
from coordinator.versions import CARD, DATACITE
from coordinator.web.access import PersonDependency
from coordinator.web.exported import Exports
from coordinator.web.pages.rendering import render
from coordinator.web.reading import Opened
from protocol.published import MANIFEST

router = APIRouter(include_in_schema=False)
FORMAT: Final = {
    "sssom": ("SSSOM TSV 1.0", "mapping sets; tools of ontologies"),
    "csv": ("CSV", "a plain table of all codes, for spreadsheets"),
    "parquet": ("Parquet", "the same table with types, for programs"),
    "fhir-r4": ("FHIR R4 ConceptMap", "terminology servers"),
    "fhir-r5": ("FHIR R5 ConceptMap", "terminology servers"),
    "stcm": ("OMOP SOURCE_TO_CONCEPT_MAP", "an ETL into the OMOP CDM"),
    "crm": ("OMOP CONCEPT_RELATIONSHIP_METADATA", "OMOP CDM 5.5, with confidence"),
    "usagi": ("Usagi", "reviewing in Usagi"),
    "clusters": ("clusters.parquet", "clusters, candidates and evidence, as released"),
    "embeddings": ("embeddings.parquet", "the vectors, as released"),
    "graphml": ("GraphML", "related codes, for networkx, Gephi and Cytoscape"),
    "edges-csv": ("CSV of edges", "related codes, a row a pair"),
}
"""Format -> its name, and whom it is for."""
FILES: Final = {
    MANIFEST: "what was signed: sites, study and the digests below",
    CARD: "the model card: data, method, measures and limits",
    DATACITE: "metadata for a DOI",
    "mappings.sssom.tsv": "the map as SSSOM",
    "clusters.parquet": "the map with clusters and candidates",
    "evidence.parquet": "what speaks for each candidate",
    "reviews.parquet": "what people had said by then",
    "embeddings.parquet": "the vectors",
    EDGES: "related codes, a row a pair",
    STRUCTURE: "where codes stand in the smoothed relations",
    "index/vectors.safetensors": "the vectors for search",
    "index/labels.json": "their codes",
    "index/hnsw.bin": "the search graph",
    "report.html": "the report: one page without scripts",
}


@router.get("/versions")
def versions(request: Request, person: PersonDependency) -> Response:
    """All versions, the newest first; those that were withdrawn are marked."""
    del person
    known = request.app.state.known_versions.now()
    left = request.app.state.library.store.withdrawals()
    why = {n: [w for w in left if n in w.versions] for n in (v.number for v in known)}
    return render(request, "versions.html.j2", known=list(reversed(known)), why=why)


@router.get("/v/{version}/downloads")
def downloads(reading: Opened, request: Request) -> Response:
    """Files and formats of a version."""
    kept: Exports = request.app.state.exports
    manifest = reading.release.manifest
    return render(
        request,
        "downloads.html.j2",
        reading=reading,
        formats=[(form, *FORMAT.get(form, (form, "")), kept.why_not(form, manifest)) for form in FORMATS],
        files=manifest.files,
        about=FILES,
        manifest=MANIFEST,
    )
