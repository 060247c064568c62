"""Publishing: mapping set -> release folder -> signed manifest -> one sealed bundle a site."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.config import Home
from coordinator.edition import Edition
from coordinator.exports.sssom import write_sssom
from coordinator.flower.desk import RoundDesk
from coordinator.harmonize import Harmonized
from coordinator.index import write_index
from coordinator.mapping import MappingSet
from coordinator.report.data import Quality
from coordinator.reporting import write_report
from coordinator.store import Site, Store
from coordinator.version import SOFTWARE, coordinator_digest
from protocol.bundle import encode_bundle
from protocol.canonical import digest
from protocol.envelope import EnvelopeHeader, seal
from protocol.keys import PrivateKeys
from protocol.messages import PublishedManifest, SiteSummary, Tombstone
from protocol.published import list_files, sign_manifest
from protocol.release import VerifiedRelease
from protocol.study import StudySpec

CONSORTIUM = "consortium"
_DELIVERY_DAYS = 90


def next_version(store: Store) -> int:
    """The number of the next published version."""
    versions = store.versions()
    return versions[-1].version + 1 if versions else 1


def make_edition(
    home: Home,
    store: Store,
    round_name: str,
    releases: Sequence[VerifiedRelease],
    harmonized: Harmonized,
    *,
    created: datetime,
    quality: Quality | None = None,
) -> Edition:
    """The next version of the study, from the fit of a round's accepted releases."""
    releases = harmonized.screening.kept(releases)
    return Edition(
        study=home.study,
        round=round_name,
        version=next_version(store),
        created=created,
        harmonized=harmonized,
        releases=tuple(releases),
        sites=harmonized.screening.explained(site_summaries(store, home, round_name, releases)),
        quality=quality,
        withdrawn=tombstones(store),
    )


def tombstones(store: Store) -> tuple[Tombstone, ...]:
    """What every version since says of the sites that have left the study."""
    return tuple(
        Tombstone(site=w.site, at=w.at.replace(tzinfo=UTC), reason=w.reason, versions=w.versions)
        for w in store.withdrawals()
    )


def publish(home: Home, store: Store, edition: Edition) -> Path:
    """Write, sign and store a version, and lay a sealed bundle for each site on the round's desk.

    The version's folder appears whole, by one rename, before it is stored.

    Returns:
        the folder.
    """
    target = home.release_folder(edition.version)
    # A folder that the store does not know is left from a publication that did not end.
    for leftover in (target, site_copies(target)):
        shutil.rmtree(leftover, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        audiences = [CONSORTIUM]
        if home.study.publish_local_codes == "own-site":
            audiences += [r.manifest.site for r in edition.releases]
        manifests = {a: _write(work / a, edition, a, home.keys) for a in audiences}
        (work / CONSORTIUM).rename(target)
        if len(audiences) > 1:
            work.rename(site_copies(target))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    enrolled = {s.name: s for s in store.sites()}
    for release in edition.releases:
        site = release.manifest.site
        audience = site if site in manifests else CONSORTIUM
        folder = site_copies(target) / site if site in manifests else target
        _seal_bundle(home, enrolled[site], folder, manifests[audience])
    given = [r.manifest.site for r in edition.releases]
    store.record_published(edition.version, edition.round, manifests[CONSORTIUM].digest, given)
    return target


def visible(study: StudySpec, mappings: MappingSet, audience: str) -> npt.NDArray[np.bool_]:
    """Which codes an audience may see: all, or none that is local to another site."""
    if study.publish_local_codes == "consortium":
        return np.ones(len(mappings.rows), dtype=bool)
    owners = [study.system(row.code.partition(":")[0]).local_to for row in mappings.rows]
    return np.array([owner in {None, audience} for owner in owners], dtype=bool)


def _write(folder: Path, edition: Edition, audience: str, keys: PrivateKeys) -> PublishedManifest:
    study = edition.study
    folder.mkdir()
    folder.chmod(0o755)
    mask = visible(study, edition.harmonized.mappings, audience)
    kept = np.flatnonzero(mask)
    mappings = MappingSet(
        tuple(edition.harmonized.mappings.rows[i] for i in kept), edition.harmonized.mappings.embedding[kept]
    )
    codes = [row.code for row in mappings.rows]
    write_sssom(folder / "mappings.sssom.tsv", mappings, edition)
    pq.write_table(clusters_table(mappings), folder / "clusters.parquet")
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(mappings.embedding.ravel(), pa.float32()), mappings.embedding.shape[1]
    )
    pq.write_table(pa.table({"code": codes, "vector": vectors}), folder / "embeddings.parquet")
    write_index(folder, codes, mappings.embedding)
    write_report(folder / "report.html", edition, mask)
    manifest = PublishedManifest(
        study=study.model_dump(mode="json"),
        study_digest=study.digest,
        round=edition.round,
        version=edition.version,
        audience=audience,
        created=edition.created,
        software=SOFTWARE,
        codes=len(codes),
        clusters=len({row.cluster for row in mappings.rows}),
        sites=edition.sites,
        withdrawn=edition.withdrawn,
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, keys)
    return manifest


def clusters_table(mappings: MappingSet) -> pa.Table:
    """One row a code: cluster, probability, standard code, alternatives and evidence by site."""
    rows = mappings.rows
    evidence = pa.list_(pa.struct({"site": pa.string(), "members": pa.int32(), "cosine": pa.float32()}))
    return pa.table(
        {
            "code": [r.code for r in rows],
            "sites": pa.array([list(r.sites) for r in rows], pa.list_(pa.string())),
            "cluster": pa.array([r.cluster for r in rows], pa.int32()),
            "posterior": pa.array([r.posterior for r in rows], pa.float32()),
            "probability": pa.array([r.probability for r in rows], pa.float32()),
            "anchored": [r.anchored for r in rows],
            "standard_code": [r.standard_code for r in rows],
            "similarity": pa.array([r.similarity for r in rows], pa.float32()),
            "alternatives": pa.array([list(r.alternatives) for r in rows], pa.list_(pa.string())),
            "evidence": pa.array(
                [
                    [{"site": e.site, "members": e.members, "cosine": e.cosine} for e in r.evidence]
                    for r in rows
                ],
                evidence,
            ),
        }
    )


def _seal_bundle(home: Home, site: Site, folder: Path, manifest: PublishedManifest) -> None:
    to = site.public_keys
    header = EnvelopeHeader(
        kind="result",
        suite=to.suite,
        consortium=home.study.id,
        study_digest=home.study.digest,
        round=manifest.round,
        site=site.name,
        recipient_key=to.digest,
        signer_key=home.keys.public().digest,
        sequence=manifest.version,
        previous=site.result_digest,
        content=manifest.digest,
        agent_digest=coordinator_digest(),
        policy_digest=digest(home.study.privacy),
        ledger_head="",
        expires=manifest.created + timedelta(days=_DELIVERY_DAYS),
    )
    target = RoundDesk(home.round_folder(manifest.round)).outgoing(site.name)
    seal(io.BytesIO(encode_bundle(folder)), target, header, to=to, keys=home.keys)


def site_copies(target: Path) -> Path:
    """Where the sites' own copies of a version lie, when local codes are for their own site only."""
    return target.with_name(f"{target.name}-sites")


def site_summaries(
    store: Store, home: Home, round_name: str, releases: Sequence[VerifiedRelease]
) -> tuple[SiteSummary, ...]:
    """Every site of the study: what it gave, or why nothing of it is in the release."""
    given = {r.manifest.site: r.manifest for r in releases}
    verdicts = {s.site: s for s in store.submissions(round_name)}
    left = {s.name: s.withdrawn for s in store.sites() if s.withdrawn is not None}
    found = []
    for site in home.study.sites:
        if site in given:
            m = given[site]
            found.append(
                SiteSummary(
                    site=site,
                    state="received",
                    sequence=m.sequence,
                    manifest_digest=m.digest,
                    statistics=m.statistics,
                )
            )
        elif site in left:
            detail = f"Withdrawn from the study on {left[site]:%Y-%m-%d}"
            found.append(SiteSummary(site=site, state="withdrawn", detail=detail))
        elif site in verdicts:
            found.append(SiteSummary(site=site, state="refused", detail=verdicts[site].detail))
        else:
            found.append(SiteSummary(site=site, state="missing", detail="No release arrived in this round"))
    return tuple(found)
