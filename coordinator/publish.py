"""Publishing: mapping set -> release folder -> signed manifest -> one sealed bundle a site."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.config import Home
from coordinator.edition import Edition
from coordinator.estimate import Progress
from coordinator.exports.sssom import write_sssom
from coordinator.exports.tables import CLUSTERS, EVIDENCE, clusters_table, evidence_table
from coordinator.flower.desk import RoundDesk
from coordinator.graph.structure import STRUCTURE, structure_table
from coordinator.graph.tables import EDGES, edges_table
from coordinator.harmonize import Harmonized
from coordinator.index import write_index
from coordinator.mapping import KnownPair, Mapping, MappingSet
from coordinator.report.data import Quality
from coordinator.reporting import write_report
from coordinator.review import Reviews
from coordinator.review.publication import reviewed_of
from coordinator.reviewed import write_reviews
from coordinator.store import Site, Store
from coordinator.version import SOFTWARE, coordinator_digest
from coordinator.versions.card import write_card
from protocol.bundle import encode_bundle
from protocol.canonical import digest
from protocol.envelope import EnvelopeHeader, seal
from protocol.errors import FederationError, RoundError
from protocol.files import remove_parts
from protocol.keys import PrivateKeys
from protocol.messages import PublishedManifest, SiteSummary, Tombstone
from protocol.published import list_files, sign_manifest
from protocol.release import VerifiedRelease
from protocol.study import StudySpec

CONSORTIUM = "consortium"
_DELIVERY_DAYS = 90

if TYPE_CHECKING:
    from coordinator.graph.building import Related


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
    published = store.versions()
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
        reviews=reviewed_of(Reviews(home, store), names=home.config.reviewer_names),
        previous=published[-1].manifest_digest if published else "",
        citation=home.config.citation,
    )


def tombstones(store: Store) -> tuple[Tombstone, ...]:
    """What every version since says of the sites that have left the study."""
    return tuple(
        Tombstone(site=w.site, at=w.at.replace(tzinfo=UTC), reason=w.reason, versions=w.versions)
        for w in store.withdrawals()
    )


def publish(home: Home, store: Store, edition: Edition, progress: Progress | None = None) -> Path:
    """Write, sign and store a version, and lay a sealed bundle for each site on the round's desk.

    The version's folder appears whole, by one rename, before it is stored.

    Args:
        home: of the coordinator.
        store: its store.
        edition: to be written.
        progress: told the step and the share done.

    Returns:
        the folder.

    Raises:
        RoundError: there is a version of this number, or the one before has changed meanwhile.
    """
    published = store.versions()
    if edition.previous != (published[-1].manifest_digest if published else ""):
        raise RoundError(
            f"Version {edition.version} no longer follows the last published one",
            why="another version was published meanwhile, and a published version is never changed",
            do=f"Publish round {edition.round} again",
        )
    before = store.round(edition.round).state
    store.move_round(edition.round, "publishing", f"Version {edition.version}")
    try:
        return _publish(home, store, edition, progress or (lambda _step, _share: None))
    except (FederationError, OSError) as error:
        if before != "publishing":
            store.move_round(edition.round, "fitted", f"Publishing failed. {error}")
        raise


def _publish(home: Home, store: Store, edition: Edition, tell: Progress) -> Path:
    graph = None
    if home.config.graph:
        from coordinator.graph.building import relate  # noqa: PLC0415 - its compiler takes a second to import

        graph = relate(home, edition, lambda share: tell("relating codes", 0.4 + 0.4 * share))
    tell("writing the release", 0.8)
    target = home.release_folder(edition.version)
    # A folder that the store does not know is left from a publication that did not end.
    for leftover in (target, site_copies(target)):
        shutil.rmtree(leftover, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_parts(target.parent)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        audiences = [CONSORTIUM]
        if home.study.publish_local_codes == "own-site":
            audiences += [r.manifest.site for r in edition.releases]
        manifests = {a: _write(work / a, edition, a, home.keys, graph) for a in audiences}
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
        seal_bundle(home, enrolled[site], folder, manifests[audience])
    given = [r.manifest.site for r in edition.releases]
    store.record_published(edition.version, edition.round, manifests[CONSORTIUM].digest, given)
    return target


def visible(study: StudySpec, mappings: MappingSet, audience: str) -> npt.NDArray[np.bool_]:
    """Which codes an audience may see: all, or none that is local to another site."""
    if study.publish_local_codes == "consortium":
        return np.ones(len(mappings.rows), dtype=bool)
    return np.array([_may_see(study, row.code, audience) for row in mappings.rows], dtype=bool)


def _may_see(study: StudySpec, code: str, audience: str) -> bool:
    owner = study.system(code.partition(":")[0]).local_to
    return study.publish_local_codes == "consortium" or owner in {None, audience}


def _told(study: StudySpec, rows: Iterable[Mapping], audience: str) -> tuple[Mapping, ...]:
    """The rows without known pairs that name a code which the audience may not see."""

    def known(pairs: tuple[KnownPair, ...]) -> tuple[KnownPair, ...]:
        return tuple(
            p for p in pairs if _may_see(study, p.left, audience) and _may_see(study, p.right, audience)
        )

    if study.publish_local_codes == "consortium":
        return tuple(rows)
    return tuple(
        replace(row, candidates=tuple(replace(c, pairs=known(c.pairs)) for c in row.candidates))
        for row in rows
    )


def _write(
    folder: Path, edition: Edition, audience: str, keys: PrivateKeys, graph: Related | None
) -> PublishedManifest:
    study = edition.study
    folder.mkdir()
    folder.chmod(0o755)
    mask = visible(study, edition.harmonized.mappings, audience)
    kept = np.flatnonzero(mask)
    rows = [edition.harmonized.mappings.rows[i] for i in kept]
    mappings = MappingSet(_told(study, rows, audience), edition.harmonized.mappings.embedding[kept])
    codes = [row.code for row in mappings.rows]
    write_sssom(folder / "mappings.sssom.tsv", mappings, edition)
    pq.write_table(clusters_table(mappings), folder / CLUSTERS)
    pq.write_table(evidence_table(mappings), folder / EVIDENCE)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(mappings.embedding.ravel(), pa.float32()), mappings.embedding.shape[1]
    )
    pq.write_table(pa.table({"code": codes, "vector": vectors}), folder / "embeddings.parquet")
    write_index(folder, codes, mappings.embedding)
    if graph is not None:
        (folder / EDGES).parent.mkdir(mode=0o755)
        # Which codes another site's local code is related to would tell of it: neither end may be hidden.
        pq.write_table(edges_table(graph.edges.among(set(codes))), folder / EDGES)
        if graph.structure is not None:
            pq.write_table(structure_table(codes, graph.structure[kept]), folder / STRUCTURE)
    write_reviews(folder, edition.reviews, codes)
    write_report(folder / "report.html", edition, mask)
    write_card(folder, edition, mappings)
    manifest = PublishedManifest(
        study=study.stated,
        study_digest=study.digest,
        round=edition.round,
        version=edition.version,
        previous=edition.previous,
        audience=audience,
        created=edition.created,
        software=SOFTWARE,
        codes=len(codes),
        clusters=len({row.cluster for row in mappings.rows}),
        sites=edition.sites,
        withdrawn=edition.withdrawn,
        background=edition.harmonized.background,
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, keys)
    return manifest


def seal_bundle(home: Home, site: Site, folder: Path, manifest: PublishedManifest) -> None:
    """Seal a published version for a site's present keys, and lay it out for delivery.

    Args:
        home: of the coordinator.
        site: that gets it.
        folder: of the version that this site may see.
        manifest: of that folder.
    """
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
    verdicts, excluded = {s.site: s for s in store.submissions(round_name)}, store.exclusions(round_name)
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
        elif site in excluded:
            detail = f"The round went on without it: {excluded[site].because}"
            found.append(SiteSummary(site=site, state="excluded", detail=detail))
        elif site in verdicts:
            found.append(SiteSummary(site=site, state="refused", detail=verdicts[site].detail))
        else:
            found.append(SiteSummary(site=site, state="missing", detail="No release arrived in this round"))
    return tuple(found)
