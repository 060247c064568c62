"""What a report says: facts of a release as frozen values, and what they add up to.

Nothing here draws or formats. A number that a site did not state is `None`, and a site that sent no
release has no `SiteRelease`: neither can be mistaken for a zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coordinator.recogniser.verdict import Audit
from coordinator.report.checks import Checks
from coordinator.report.text import safe_text

TextArray = NDArray[Any]
"""(n,) strings, as `object` or `str_`; `object` is better where one entry may be long."""

SURE: Final = 0.9
"""A posterior from which the report calls a code's place sure."""


@dataclass(frozen=True)
class Floors:
    """The study's privacy floors.

    Args:
        code_patients: a code seen by fewer distinct patients of a site is withheld by that site.
        pair_patients: the same for a pair of codes.
        margin_rounding: counts of patients are rounded to this multiple.
    """

    code_patients: int
    pair_patients: int
    margin_rounding: int


@dataclass(frozen=True, eq=False)
class FitFacts:
    """How the fit went.

    Args:
        dim: dimensions of the shared embedding.
        n_clusters: clusters that the fit was given (K); some may have stayed empty.
        kappa: concentration of the clusters (von Mises-Fisher).
        iterations: iterations made.
        warnings: what the fit complained about, a sentence each.
        history: (t,) the bound after each iteration; may be empty.
        background: what was used beside the releases, a sentence each.
    """

    dim: int
    n_clusters: int
    kappa: float
    iterations: int
    warnings: tuple[str, ...] = ()
    history: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    background: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteRelease:
    """What a site says that it released and withheld. `None`: the site did not say.

    Args:
        n_patients: patients behind the release, rounded.
        codes_seen: distinct codes in the site's events.
        codes_released: codes with a row in the released embedding.
        codes_suppressed: codes withheld because too few patients have them.
        codes_without_pairs: codes lost because none of their pairs passed the floor.
        pairs_released: pairs of codes that went into the embedding.
        pairs_suppressed: pairs withheld because too few patients have them.
        mass_kept: share (0..1) of all co-occurrences that lies in released pairs.
        anchors: the site's codes whose standard code was given before the fit.
        embedding_dim: columns of the released embedding.
        bytes_sent: size of the sealed message.
    """

    n_patients: int | None = None
    codes_seen: int | None = None
    codes_released: int | None = None
    codes_suppressed: int | None = None
    codes_without_pairs: int | None = None
    pairs_released: int | None = None
    pairs_suppressed: int | None = None
    mass_kept: float | None = None
    anchors: int | None = None
    embedding_dim: int | None = None
    bytes_sent: int | None = None


@dataclass(frozen=True)
class SiteFacts:
    """One invited site.

    Args:
        name: the site's identifier in the study.
        code_system: prefix of its codes ("ICD10CM").
        category: what its codes stand for ("condition", "drug").
        state: "received", or why not: "refused", "late", "invited", "withdrawn".
        detail: the reason in words, for a site that is not in the release.
        release: its numbers; `None` when nothing of it is in this release.
        key_fingerprint: fingerprint (hex) of the key that signed its message; "" if none came.
    """

    name: str
    code_system: str
    category: str
    state: str = "received"
    detail: str = ""
    release: SiteRelease | None = None
    key_fingerprint: str = ""


@dataclass(frozen=True, eq=False)
class CodeTable:
    """The mapped codes, a row each; S sites in the order of `ReportData.sites`.

    Args:
        curie: (n,) codes.
        title: (n,) names; "" where none is known.
        member: (n, S) bool, the site released the code. A row without any site is a code that only the
            knowledge holds: it can be a target, and is not counted among the mapped codes.
        category: (n,) groups for colour and coverage, such as chapter names, the same for every code system.
        cluster: (n,) int >= 0.
        posterior: (n,) in 0..1, the probability that the code's standard code is right.
        xy: (n, 2) place on the map.
        anchored: (n,) bool, the code's cluster was given before the fit.
        target: (n,) preferred standard code of the cluster; "" where it has none.
        target_title: (n,) its title.

    Raises:
        ValueError: shapes differ, or a value is out of range or not finite.
    """

    curie: TextArray
    title: TextArray
    member: NDArray[np.bool_]
    category: TextArray
    cluster: NDArray[np.integer[Any]]
    posterior: NDArray[np.floating[Any]]
    xy: NDArray[np.floating[Any]]
    anchored: NDArray[np.bool_]
    target: TextArray
    target_title: TextArray

    def __post_init__(self) -> None:
        n = len(self.curie)
        if self.member.ndim != 2 or self.xy.shape != (n, 2):
            raise ValueError(f"member must be (n, S) and xy (n, 2) for n = {n}")
        for name in (
            "title",
            "member",
            "category",
            "cluster",
            "posterior",
            "anchored",
            "target",
            "target_title",
        ):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, curie has {n}")
        if not np.isfinite(self.xy).all():
            raise ValueError("xy is not finite")
        if not ((self.posterior >= 0) & (self.posterior <= 1)).all():
            raise ValueError("a posterior is outside 0..1")
        if (self.cluster < 0).any():
            raise ValueError("a cluster is negative")

    @property
    def held(self) -> NDArray[np.intp]:
        """Rows of the codes that at least one site released."""
        return np.flatnonzero(self.member.any(axis=1))


@dataclass(frozen=True)
class QualityRow:
    """A method's scores against known truth; `None`: not measured. `*_se` are standard errors.

    Args:
        method: name of the method.
        n_scored: codes that were scored.
        ami: adjusted mutual information of the clusters.
        hits1: share of codes whose right standard code came first.
        hits5: share of codes whose right standard code was among the first five.
        published: this release was made by this method.
    """

    method: str
    n_scored: int
    ami: float | None = None
    ami_se: float | None = None
    hits1: float | None = None
    hits1_se: float | None = None
    hits5: float | None = None
    hits5_se: float | None = None
    published: bool = False


@dataclass(frozen=True)
class Quality:
    """Scores of methods on the same codes, and a sentence that says which codes and which truth."""

    scored: str
    rows: tuple[QualityRow, ...]


@dataclass(frozen=True)
class Member:
    """A code of a cluster, with the sites that released it."""

    curie: str
    title: str
    sites: tuple[str, ...]
    posterior: float
    anchored: bool


@dataclass(frozen=True)
class ClusterToReview:
    """A cluster that deserves a person's look, with the reasons in words; least sure members first, given ones last."""

    cluster: int
    score: float
    reasons: tuple[str, ...]
    target: str
    target_title: str
    n_codes: int
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that the report of a release shows.

    Args:
        study: the study's identifier.
        version: number of the published release.
        created: day of the release, UTC.
        study_digest: digest (hex) of the study file that every party signed.
        counting_rule: how pairs were counted, in words.
        floors: privacy floors.
        fit: how the fit went.
        sites: every invited site, those without a release too; the columns of `codes.member`.
        codes: the mapped codes.
        quality: scores against known truth, or `None` when none is known.
        map_method: how `codes.xy` was computed, for the caption ("first two principal components").
        review: clusters to look at first; `None` takes `clusters_to_review(codes, names)`.
        checks: what the checks said of the sites' releases; `None` where none were made.
        audit: how far a vector tells its site; without lines where too few codes are shared.

    Raises:
        ValueError: `codes.member` has not one column for each site, or a member column of a site
            without a release holds codes.
    """

    study: str
    version: int
    created: date
    study_digest: str
    counting_rule: str
    floors: Floors
    fit: FitFacts
    sites: tuple[SiteFacts, ...]
    codes: CodeTable
    quality: Quality | None = None
    map_method: str = ""
    review: tuple[ClusterToReview, ...] | None = None
    checks: Checks | None = None
    audit: Audit = field(default_factory=Audit)

    def __post_init__(self) -> None:
        if self.codes.member.shape[1] != len(self.sites):
            raise ValueError(f"member has {self.codes.member.shape[1]} columns for {len(self.sites)} sites")
        for column, site in enumerate(self.sites):
            if site.release is None and self.codes.member[:, column].any():
                raise ValueError(f"site {site.name} has codes but no release")

    @property
    def reviewed(self) -> tuple[ClusterToReview, ...]:
        """The clusters to look at first: those given, or else those picked."""
        if self.review is not None:
            return self.review
        return clusters_to_review(self.codes, [site.name for site in self.sites])


@dataclass(frozen=True)
class Summary:
    """Numbers of the report's first sentence; codes are those that at least one site released.

    Args:
        n_codes: mapped codes.
        n_sites: sites in the release.
        n_clusters: clusters that hold a mapped code.
        n_shared: clusters that hold codes of two sites or more.
        n_alone: codes alone in their cluster.
        n_with_target: codes whose cluster has a standard code.
        n_anchored: codes whose cluster was given.
        n_free: codes that the fit placed, so all but the anchored.
        expected: mean probability of the free codes; `None` without free codes.
        n_withheld: codes withheld under the patient floor, summed over the sites that said so.
    """

    n_codes: int
    n_sites: int
    n_clusters: int
    n_shared: int
    n_alone: int
    n_with_target: int
    n_anchored: int
    n_free: int
    expected: float | None
    n_withheld: int | None


def summarise(data: ReportData) -> Summary:
    """What the codes and sites of a report add up to."""
    codes, held = data.codes, data.codes.held
    ids, inverse, sizes = np.unique(codes.cluster[held], return_inverse=True, return_counts=True)
    site_in_cluster = np.zeros((len(ids), len(data.sites)), dtype=bool)
    np.logical_or.at(site_in_cluster, inverse, codes.member[held])
    free = held[~codes.anchored[held]]
    withheld = [s.release.codes_suppressed for s in data.sites if s.release is not None]
    stated = [count for count in withheld if count is not None]
    return Summary(
        n_codes=len(held),
        n_sites=sum(site.release is not None for site in data.sites),
        n_clusters=len(ids),
        n_shared=int((site_in_cluster.sum(axis=1) >= 2).sum()),
        n_alone=int((sizes == 1).sum()),
        n_with_target=int((codes.target[held] != "").sum()),
        n_anchored=len(held) - len(free),
        n_free=len(free),
        expected=float(codes.posterior[free].mean()) if len(free) else None,
        n_withheld=sum(stated) if stated else None,
    )


def clusters_to_review(
    codes: CodeTable, site_names: Sequence[str], *, limit: int = 20, most_members: int = 40
) -> tuple[ClusterToReview, ...]:
    """The clusters in which a person's look is worth most, the highest score first.

    score = log2(1 + n) (2 doubt + span + crowd / 2 + unmapped), with n the cluster's codes; doubt = 1 - mean
    posterior of its codes that were not anchored; span = share of codes outside its commonest category;
    crowd = min(1, (m - 1) / 9) with m the most codes of one site; unmapped = 1 without a standard code.
    Crowding counts half: many local codes of one meaning are common, and alone no sign of an error.
    Only clusters of two codes or more that have a reason are listed: mean posterior below 0.7, less than
    80 % of codes in one category, ten codes of one site, or no standard code. Equal scores go by cluster.

    Args:
        codes: the mapped codes.
        site_names: S names, for the columns of `codes.member`.
        limit: most clusters returned.
        most_members: most members listed for a cluster; `n_codes` counts all.
    """
    held = codes.held
    if not len(held):
        return ()
    ids, inverse = np.unique(codes.cluster[held], return_inverse=True)
    size = np.bincount(inverse)
    free = ~codes.anchored[held]
    lost = np.bincount(inverse, weights=np.where(free, 1 - codes.posterior[held], 0.0))
    doubt = lost / np.maximum(np.bincount(inverse, weights=free), 1)
    crowd = np.stack([np.bincount(inverse, weights=column) for column in codes.member[held].T]).max(axis=0)
    span = 1 - _commonest(inverse, codes.category[held]) / size
    unmapped = np.bincount(inverse, weights=codes.target[held] != "") == 0
    score = np.log2(1 + size) * (2 * doubt + span + np.minimum(1, (crowd - 1) / 9) / 2 + unmapped)
    listed = (size >= 2) & ((doubt > 0.3) | (span > 0.2) | (crowd >= 10) | unmapped)
    order = sorted(np.flatnonzero(listed), key=lambda k: (-score[k], ids[k]))[:limit]
    return tuple(
        _review(codes, site_names, held[inverse == k], score=score[k], doubt=doubt[k], most=most_members)
        for k in order
    )


def numbered(labels: TextArray) -> tuple[list[str], NDArray[np.intp]]:
    """The distinct labels in order, and for each row the number of its label.

    Not `np.unique`, whose fixed-width strings give every row the room of the longest.
    """
    texts = [str(label) for label in labels]
    names = sorted(set(texts))
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[text] for text in texts], dtype=np.intp)


def _commonest(group: NDArray[np.intp], label: TextArray) -> NDArray[np.int64]:
    """For each group, how often its commonest label occurs."""
    names, number = numbered(label)
    pairs, counts = np.unique(group * len(names) + number, return_counts=True)
    most = np.zeros(group.max() + 1, dtype=np.int64)
    np.maximum.at(most, pairs // len(names), counts)
    return most


def _review(
    codes: CodeTable, sites: Sequence[str], rows: NDArray[np.intp], *, score: float, doubt: float, most: int
) -> ClusterToReview:
    reasons = []
    targets = Counter(str(t) for t in codes.target[rows] if t)
    target = min(targets, key=lambda t: (-targets[t], t)) if targets else ""
    if doubt > 0.3:
        reasons.append(
            f"mean probability {math.floor(100 * (1 - doubt)) / 100:.2f}"
        )  # never up to the 0.70 it missed
    categories = Counter(str(c) for c in codes.category[rows])
    ordered = sorted(categories.items(), key=lambda item: (-item[1], item[0]))
    if ordered[0][1] < 0.8 * len(rows):
        named = "; ".join(f"{safe_text(c, 40) or 'no category'} {k}" for c, k in ordered[:3])
        reasons.append(f"spans {len(ordered)} categories ({named}{'; …' if len(ordered) > 3 else ''})")
    by_site = codes.member[rows].sum(axis=0)
    if by_site.max() >= 10:
        reasons.append(f"{by_site.max()} codes of one site ({sites[int(by_site.argmax())]})")
    if not target:
        reasons.append("no standard code")
    first = sorted(rows, key=lambda i: (codes.anchored[i], codes.posterior[i], str(codes.curie[i])))
    return ClusterToReview(
        cluster=int(codes.cluster[rows[0]]),
        score=float(score),
        reasons=tuple(reasons),
        target=target,
        target_title=next(
            (str(codes.target_title[i]) for i in rows if target and codes.target[i] == target), ""
        ),
        n_codes=len(rows),
        members=tuple(
            Member(
                curie=str(codes.curie[i]),
                title=str(codes.title[i]),
                sites=tuple(sites[int(s)] for s in np.flatnonzero(codes.member[i])),
                posterior=float(codes.posterior[i]),
                anchored=bool(codes.anchored[i]),
            )
            for i in first[:most]
        ),
    )
