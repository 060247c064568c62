"""Filling the report of a release from the fit, the manifests and the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from coordinator.edition import Edition
from coordinator.mapping import Mapping
from coordinator.poisoning.verdict import Screening
from coordinator.report.checks import MOST_CODES, CheckedCode, Checks, SiteCheck
from coordinator.report.data import CodeTable, FitFacts, Floors, ReportData, SiteFacts, SiteRelease
from coordinator.report.page import render
from protocol.canonical import fingerprint
from protocol.messages import SiteSummary
from protocol.release import VerifiedRelease
from protocol.study import StudySpec
from protocol.vocabulary import chapter

_TSNE_LIMIT = 6_000
"""Codes up to which the map is a t-SNE; it takes seconds there and minutes beyond."""


def write_report(path: Path, edition: Edition, mask: npt.NDArray[np.bool_]) -> None:
    """Write `report.html` for the codes in `mask`."""
    path.write_text(render(report_data(edition, mask)), encoding="utf-8")


def report_data(edition: Edition, mask: npt.NDArray[np.bool_]) -> ReportData:
    """Everything that the report shows."""
    study, harmonized = edition.study, edition.harmonized
    fit, union = harmonized.fit, harmonized.union
    by_site = {r.manifest.site: r for r in edition.releases}
    sites = tuple(_site_facts(study, s, by_site.get(s.site)) for s in edition.sites)
    rows = [r for r, kept in zip(harmonized.mappings.rows, mask, strict=True) if kept]
    member = np.zeros((len(rows), len(sites)), dtype=bool)
    for column, summary in enumerate(edition.sites):
        if summary.site in union.sites:
            member[:, column] = union.holds[mask, union.sites.index(summary.site)]
    xy, method = _flat_map(harmonized.mappings.embedding[mask])
    codes = CodeTable(
        curie=np.array([r.code for r in rows], dtype=object),
        title=np.array([r.name for r in rows], dtype=object),
        member=member,
        category=np.array([_category(study, r) for r in rows], dtype=object),
        cluster=np.array([r.cluster for r in rows], dtype=np.int64),
        posterior=np.clip([r.probability for r in rows], 0.0, 1.0),
        xy=xy,
        anchored=np.array([r.given for r in rows], dtype=bool),
        target=np.array([r.standard_code for r in rows], dtype=object),
        target_title=np.array([r.standard_name for r in rows], dtype=object),
    )
    privacy = study.privacy
    return ReportData(
        study=study.id,
        version=edition.version,
        created=edition.created.date(),
        study_digest=study.digest,
        counting_rule=_counting_rule(study),
        floors=Floors(privacy.min_code_patients, privacy.min_pair_patients, privacy.margin_rounding),
        fit=FitFacts(
            dim=fit.embedding.shape[1],
            n_clusters=harmonized.n_clusters,
            kappa=fit.kappa,
            iterations=len(fit.history),
            warnings=harmonized.warnings,
            history=np.asarray(fit.history),
            background=tuple(source.detail for source in harmonized.background),
        ),
        sites=sites,
        codes=codes,
        quality=edition.quality,
        map_method=method,
        checks=_checks(harmonized.screening, {r.code for r in rows}),
        audit=harmonized.audit,
    )


def _checks(screening: Screening, visible: set[str]) -> Checks | None:
    """The verdicts; codes that the reader may not see are counted only."""
    if not screening.sites:
        return None
    sites = tuple(
        SiteCheck(
            name=v.site,
            state=v.state,
            reasons=v.reasons,
            do=v.do,
            agreement=v.agreement,
            worth=v.worth,
            judged=v.shared,
            n_doubtful=len(v.doubtful),
            doubtful=tuple(
                CheckedCode(d.code, d.standard, d.agreement, d.done, v.site)
                for d in v.doubtful
                if d.code in visible
            )[:MOST_CODES],
            alone=v.alone,
            accepted=v.accepted,
        )
        for v in screening.sites
    )
    held = tuple(CheckedCode(h.code, "", h.agreement, h.done, h.site) for h in screening.held)
    return Checks(sites, held[:MOST_CODES], len(held))


def _category(study: StudySpec, row: Mapping) -> str:
    """The chapter of the standard code, or of the code itself where its system is public."""
    if not row.standard_code and study.system(row.code.partition(":")[0]).local_to is not None:
        return "no standard code"
    return chapter(row.standard_code or row.code)


def _site_facts(study: StudySpec, summary: SiteSummary, release: VerifiedRelease | None) -> SiteFacts:
    if release is None or summary.statistics is None:
        return SiteFacts(
            name=summary.site, code_system="", category="", state=summary.state, detail=summary.detail
        )
    manifest, s = release.manifest, summary.statistics
    prefixes = sorted({c.partition(":")[0] for c in manifest.codes})
    return SiteFacts(
        name=summary.site,
        code_system=", ".join(prefixes),
        category=", ".join(sorted({study.system(p).category for p in prefixes})),
        release=SiteRelease(
            n_patients=s.patients,
            codes_seen=s.codes_seen,
            codes_released=s.codes_released,
            codes_suppressed=s.codes_suppressed,
            codes_without_pairs=s.codes_without_pairs,
            pairs_released=s.pairs_released,
            pairs_suppressed=s.pairs_suppressed,
            mass_kept=s.mass_kept,
            anchors=len(manifest.anchors),
            embedding_dim=max(v.matrix.shape[1] for v in release.views()),
            bytes_sent=sum(a.nbytes for a in release.arrays.values()),
        ),
        key_fingerprint=fingerprint(release.signer),
    )


def _counting_rule(study: StudySpec) -> str:
    counting = study.counting
    if counting.rule == "whole-history":
        return "each pair of codes that a patient has at any time counts once a patient"
    return f"each pair of a patient's events at most {counting.window_days} days apart counts once"


def _flat_map(embedding: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], str]:
    """A place for each code in two dimensions, and how it was found."""
    # scikit-learn's t-SNE ends the whole process where many vectors are equal, as those of codes in one row are.
    distinct, place = np.unique(embedding, axis=0, return_inverse=True)
    n = len(distinct)
    if n < 50 or n > _TSNE_LIMIT:
        flat = PCA(2, random_state=0).fit_transform(embedding.astype(np.float64))
        return np.asarray(flat, dtype=np.float64), "first two principal components"
    tsne = TSNE(
        2, metric="cosine", init="pca", perplexity=min(30.0, (n - 1) / 3), random_state=0, max_iter=500
    )
    flat = np.asarray(tsne.fit_transform(distinct), dtype=np.float64)
    return flat[place.reshape(-1)], "t-SNE of cosine distances"
