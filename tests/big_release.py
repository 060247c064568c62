"""A coordinator's home with one published version of any size, in seconds where a fit would take hours.

Only the fit is left out: the release is written, indexed and signed by the product's own functions.

    python -m tests.big_release FOLDER [CODES]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator import setup
from coordinator.config import Home
from coordinator.edition import Edition
from coordinator.exports.sssom import write_sssom
from coordinator.exports.tables import CLUSTERS, EVIDENCE, clusters_table, evidence_table
from coordinator.graph.building import build_edges
from coordinator.graph.tables import EDGES, edges_table
from coordinator.index import write_index
from coordinator.mapping import Candidate, Evidence, KnownPair, Mapping, MappingSet
from coordinator.store import Store
from coordinator.tables import Round, utc_now
from coordinator.version import SOFTWARE
from protocol.messages import PublishedManifest, SiteSummary
from protocol.published import list_files, sign_manifest

SITES = ("lake", "north", "south")
STUDY = """\
id = "big"
title = "A map of many codes"
sites = ["lake", "north", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
uri = "http://hl7.org/fhir/sid/icd-10-cm"
[[code_systems]]
prefix = "LOINC"
category = "lab"
uri = "http://loinc.org"
[[code_systems]]
prefix = "NORTH"
local_to = "north"
[[code_systems]]
prefix = "SOUTH"
local_to = "south"
"""
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '=HYPERLINK("http://evil.example","click")',
    "+1+cmd|' /C calc'!A0",
    "\u202egnp.exe\u202c right to left",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "javascript:alert(1)//",
    "line\u2028break",
    "x" * 100_000,
)
"""What a site may call its codes."""
_TEXT = (
    "acute chronic type unspecified diabetes mellitus kidney heart failure of the left right lower upper limb with "
    "without complication infection neoplasm benign malignant fracture sequela initial encounter pain syndrome "
    "hypertension anaemia deficiency vitamin glucose serum plasma blood urine culture mass volume"
)
_WORDS = _TEXT.split()


def big_home(
    folder: Path,
    codes: int = 100_000,
    *,
    dim: int = 128,
    versions: int = 1,
    seed: int = 0,
    names: Sequence[str] = HOSTILE_NAMES,
    web: str = "",
    graph: bool = False,
) -> Home:
    """A home whose versions hold `codes` codes; the first local ones have `names`.

    Args:
        folder: new.
        codes: of which every other one is a standard code.
        dim: of their vectors.
        versions: numbered from 1; each is drawn anew.
        seed: of everything that is drawn.
        names: of the first codes of NORTH.
        web: lines of the table [web] of coordinator.toml.
        graph: with the graph of related codes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY)
    home = setup.init_home(
        folder / "hub", study=folder / "study.toml", address="localhost:9443", listen="127.0.0.1"
    )
    if web:
        with (home.folder / "coordinator.toml").open("a") as config:
            config.write(f"\n[web]\n{web}\n")
    store, previous = Store(home.database_url), ""
    for version in range(1, versions + 1):
        drawn = draw(codes, dim, np.random.default_rng([seed, version]), names)
        previous = write_version(home, store, version, drawn, previous, graph=graph)
    return Home(home.folder)


def draw(codes: int, dim: int, rng: np.random.Generator, names: Sequence[str]) -> MappingSet:
    """Standard codes, and for each about one local code near it."""
    n_standard = codes // 2
    standard = [f"ICD10CM:{chr(65 + i % 26)}{i // 26:05d}" for i in range(n_standard)]
    # As of real code embeddings, a few directions say most; among rows that point anywhere no index finds its way.
    spectrum = (1.0 + np.arange(dim)) ** -0.7
    meaning = _unit(rng.standard_normal((n_standard, dim)) * spectrum)
    of = rng.integers(0, n_standard, codes - n_standard)
    near = _unit(meaning[of] + 0.3 * rng.standard_normal((len(of), dim)) * spectrum)
    systems = ("NORTH", "SOUTH", "LOINC")
    local = [f"{systems[i % 3]}:{i:06d}" for i in range(len(of))]
    cosine = np.einsum("ij,ij->i", near, meaning[of])
    title = [" ".join(_WORDS[j] for j in rng.integers(0, len(_WORDS), 5)) for _ in range(codes)]
    title[n_standard : n_standard + len(names)] = names[: codes - n_standard]
    rows = [_standard(c, i, title[i]) for i, c in enumerate(standard)]
    rows += [
        _local(c, title[n_standard + i], int(of[i]), standard, title, float(cosine[i]), rng)
        for i, c in enumerate(local)
    ]
    order = sorted(range(codes), key=lambda i: rows[i].code)
    vectors = np.vstack([meaning, near]).astype(np.float32)
    return MappingSet(tuple(rows[i] for i in order), vectors[order])


def write_version(
    home: Home, store: Store, version: int, drawn: MappingSet, previous: str = "", *, graph: bool = False
) -> str:
    """Write, sign and record a version; its manifest's digest."""
    study, target = home.study, home.release_folder(version)
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=version)
    target.mkdir(parents=True)
    unfitted: Any = None
    edition = Edition(study, f"r{version}", version, created, unfitted, releases=(), sites=())
    write_sssom(target / "mappings.sssom.tsv", drawn, edition)
    pq.write_table(clusters_table(drawn), target / CLUSTERS)
    pq.write_table(evidence_table(drawn), target / EVIDENCE)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(drawn.embedding.ravel(), pa.float32()), drawn.embedding.shape[1]
    )
    codes = [row.code for row in drawn.rows]
    pq.write_table(pa.table({"code": codes, "vector": vectors}), target / "embeddings.parquet")
    write_index(target, codes, drawn.embedding)
    if graph:
        (target / EDGES).parent.mkdir()
        pq.write_table(edges_table(build_edges(drawn)), target / EDGES)
    (target / "report.html").write_text("<!doctype html><title>Report</title><script>alert(1)</script>")
    name = f"r{version}"
    manifest = PublishedManifest(
        study=study.stated,
        study_digest=study.digest,
        round=name,
        version=version,
        previous=previous,
        created=created,
        software=SOFTWARE,
        codes=len(codes),
        clusters=len({row.cluster for row in drawn.rows}),
        sites=tuple(SiteSummary(site=s, state="received", sequence=version) for s in SITES),
        files=list_files(target),
    )
    sign_manifest(target, manifest, home.keys)
    with store.begin() as session:
        session.add(Round(name=name, state="publishing", call=b"", expires=utc_now()))
    store.record_published(version, name, manifest.digest, SITES)
    return manifest.digest


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _standard(code: str, number: int, name: str) -> Mapping:
    own = Candidate(code, name, 0.0, 1.0, {}, (), sources={})
    return _row(code, name, number, own, (), given=True, probability=1.0, sites=SITES)


def _local(
    code: str,
    name: str,
    of: int,
    standard: Sequence[str],
    title: Sequence[str],
    cosine: float,
    rng: np.random.Generator,
) -> Mapping:
    clues = {"latent": float(rng.normal(4, 1)), "text": float(rng.normal(1, 1))}
    pair = KnownPair(*sorted((code, standard[of])), "similar", 0.5, "synonyms.csv")  # type: ignore[misc]
    first = Candidate(standard[of], title[of], 0.9, cosine, clues, (pair,), sources={"north/latent": 3.0})
    others = tuple(
        Candidate(standard[j], title[j], 0.02, cosine / 2, {"latent": float(rng.normal())}, (), sources={})
        for j in (int(k) for k in rng.integers(0, len(standard), 3))
        if j != of
    )
    system = code.partition(":")[0]
    return _row(
        code,
        name,
        of,
        first,
        others,
        given=False,
        probability=float(rng.beta(8, 2)),
        sites=("lake",) if system == "LOINC" else (system.lower(),),
    )


def _row(
    code: str,
    name: str,
    cluster: int,
    first: Candidate,
    others: tuple[Candidate, ...],
    *,
    given: bool,
    probability: float,
    sites: tuple[str, ...],
) -> Mapping:
    return Mapping(
        code=code,
        sites=sites,
        cluster=cluster,
        posterior=0.95,
        probability=probability,
        anchored=False,
        given=given,
        standard_code=first.code,
        similarity=first.similarity,
        candidates=(first, *others),
        evidence=tuple(Evidence(s, 2, 0.8) for s in SITES if s not in sites),
        name=name,
        category="lab" if code.startswith("LOINC:") else "condition",
        kinship=None,
        strength=probability,
    )


if __name__ == "__main__":
    print(big_home(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000).folder)
