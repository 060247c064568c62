"""The formats that a release can be written in; what writes them loads pyarrow, and this does not."""

from __future__ import annotations

from typing import Final

COPIED: Final = {
    "sssom": "mappings.sssom.tsv",
    "clusters": "clusters.parquet",
    "embeddings": "embeddings.parquet",
}
"""Format -> the file of a release folder that holds it."""
WITH_CONCEPTS: Final = ("stcm", "crm", "usagi")
"""Formats of concept ids, which need the OMOP vocabularies."""
WRITTEN: Final = ("fhir-r4", "fhir-r5", "csv", "parquet")
"""Formats that need nothing but the release; the vocabularies add names to FHIR, and to all broad and narrow."""
RELATED: Final = ("graphml", "edges-csv")
"""Formats of the graph of related codes, of releases that have one."""
FORMATS: Final = (*COPIED, *WITH_CONCEPTS, *WRITTEN, *RELATED)
