"""The union vocabulary: which rows of the fit the sites' codes share.

Codes of one CURIE are one code, whichever sites hold them. A code and the
standard code that an anchor names for it share a row of the fit: without such
links nothing aligns the embeddings of two sites, whose axes are arbitrary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from coordinator.model import Source
from protocol.errors import FitError
from protocol.release import CODE_PATIENTS, TEXT, VerifiedRelease


@dataclass(frozen=True)
class UnionVocabulary:
    """All released codes and their rows.

    Attributes:
        codes: n CURIEs, sorted.
        row: int (n,) row of the fit for each code; codes that an anchor joins share one.
        n_rows: rows of the fit.
        standard: row -> the standard code that stands for it, for rows that have one.
        anchored: bool (n,), the code's standard code was given by an anchor.
        sites: the sites' names, in order.
        holds: bool (n, n_sites), which site released which code.
        warnings: anchors that were left out, in words.
    """

    codes: tuple[str, ...]
    row: npt.NDArray[np.int64]
    n_rows: int
    standard: dict[int, str]
    anchored: npt.NDArray[np.bool_]
    sites: tuple[str, ...]
    holds: npt.NDArray[np.bool_]
    warnings: tuple[str, ...]


def build_union(
    releases: Sequence[VerifiedRelease],
    *,
    standard: str,
    reviewed: Collection[str] = (),
    require_links: bool = True,
) -> UnionVocabulary:
    """Join codes by CURIE and by anchors.

    A code that two sites anchor to different standard codes is joined to neither: the contradiction is reported.
    A site's word alone joins its own codes only: a code that other sites released too is joined to a standard
    code if two sites say so, or one in `reviewed`.

    Args:
        releases: of the round.
        standard: prefix of the standard system.
        reviewed: codes that one site's anchor may join to a standard code.
        require_links: whether sites that share no row with the others are an error; a warning otherwise.

    Raises:
        FitError: some sites share no row with the others; they are named.
    """
    codes = tuple(sorted({c for r in releases for c in r.manifest.codes}))
    index = {c: i for i, c in enumerate(codes)}
    anchors, warnings = _agreed_anchors(releases, standard, reviewed)
    # A standard code that no site released still joins the codes that are anchored to it.
    targets = sorted(set(anchors.values()) - index.keys())
    node = index | {c: len(codes) + i for i, c in enumerate(targets)}
    links = np.array([(node[a], node[b]) for a, b in anchors.items()], dtype=np.int64).reshape(-1, 2)
    n_nodes = len(codes) + len(targets)
    graph = sp.coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(n_nodes, n_nodes))
    n_rows, component = connected_components(graph, directed=False)
    standards = {int(component[i]): c for c, i in node.items() if c.startswith(f"{standard}:")}
    holds = np.zeros((len(codes), len(releases)), dtype=bool)
    for s, release in enumerate(releases):
        holds[[index[c] for c in release.manifest.codes], s] = True
    union = UnionVocabulary(
        codes=codes,
        row=component[: len(codes)].astype(np.int64),
        n_rows=n_rows,
        standard=standards,
        anchored=np.array([c in anchors for c in codes]),
        sites=tuple(r.manifest.site for r in releases),
        holds=holds,
        warnings=tuple(warnings),
    )
    apart = _apart(union)
    if not apart:
        return union
    if require_links:
        raise FitError(
            f"No code and no anchor links {apart} with the other sites",
            why="embeddings of two sites can only be aligned through codes that both hold",
            do="Have these sites add anchors.csv (local_code, standard_code), prepare and approve again; or fit by two-stage",
        )
    said = (
        f"No code and no anchor links {apart} with the other sites: their codes were mapped by how often they are used, how "
        "they occur with each other, and what they are called. Many of these mappings can be wrong; a few anchors help most"
    )
    return replace(union, warnings=(*union.warnings, said))


def sources(releases: Sequence[VerifiedRelease], union: UnionVocabulary) -> list[Source]:
    """One model source for each site's view; codes of a site that share a row are averaged."""
    index = {c: i for i, c in enumerate(union.codes)}
    found = []
    for release in releases:
        own = np.array([index[c] for c in release.manifest.codes])
        for view in release.views():
            # Text lives in one space for all sites already: it is no view to align.
            if view.name == TEXT:
                continue
            rows = union.row[own[view.rows]]
            distinct, place, count = np.unique(rows, return_inverse=True, return_counts=True)
            mean = sp.csr_array((1.0 / count[place], (place, np.arange(len(rows)))))
            matrix = mean @ view.matrix.astype(np.float64)
            found.append(Source(f"{release.manifest.site}/{view.name}", distinct, matrix))
    return found


def site_of(source: Source) -> str:
    """The site whose source this is."""
    return source.name.partition("/")[0]


def view_of(source: Source) -> str:
    """The view that this source is; "" for one that is not named as `sources` names them."""
    return source.name.partition("/")[2]


def above_zero(counts: npt.ArrayLike, step: int) -> npt.NDArray[np.float64]:
    """Counts that were rounded to a step; one that was rounded to nothing counts as half a step, and as 1 at least."""
    return np.maximum(np.asarray(counts, dtype=np.float64), max(step / 2, 1.0))


def patient_shares(
    releases: Sequence[VerifiedRelease], union: UnionVocabulary, data: Sequence[Source]
) -> list[npt.NDArray[np.float64]]:
    """For each source the share of its site's patients that have the code of each of its rows, above zero.

    Codes of a site that share a row are added up.
    """
    index = {c: i for i, c in enumerate(union.codes)}
    total = {}
    for release in releases:
        manifest = release.manifest
        counts = above_zero(release.arrays[CODE_PATIENTS], manifest.policy.margin_rounding)
        share = counts / max(manifest.statistics.patients, 1)
        total[manifest.site] = np.zeros(union.n_rows)
        np.add.at(total[manifest.site], union.row[[index[c] for c in manifest.codes]], share)
    return [total[site_of(source)][source.codes] for source in data]


def _agreed_anchors(
    releases: Sequence[VerifiedRelease], standard: str, reviewed: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """Code -> standard code, without contradictions; standard codes themselves need no anchor."""
    said: dict[str, set[str]] = {}
    by: dict[str, set[str]] = {}
    holders = Counter(code for release in releases for code in release.manifest.codes)
    for release in releases:
        for anchor in release.manifest.anchors:
            code = release.manifest.codes[anchor.row]
            said.setdefault(code, set()).add(anchor.standard)
            by.setdefault(code, set()).add(release.manifest.site)
    warnings = [
        f"The sites anchor {code} to different codes ({', '.join(sorted(targets))}): none was used"
        for code, targets in sorted(said.items())
        if len(targets) > 1
    ]
    agreed = {
        code: next(iter(targets))
        for code, targets in sorted(said.items())
        if len(targets) == 1 and not code.startswith(f"{standard}:")
    }
    single = [c for c in agreed if holders[c] > 1 and len(by[c]) == 1 and not by[c] & set(reviewed)]
    if single:
        shown = ", ".join(single[:5]) + (" ..." if len(single) > 5 else "")
        warnings.append(
            f"{len(single)} codes of several sites are anchored by one of them only ({shown}): none of these anchors was used"
        )
    return {code: target for code, target in agreed.items() if code not in set(single)}, warnings


def _apart(union: UnionVocabulary) -> str:
    """The sites that no path of shared rows joins with the rest, in words; empty if there are none."""
    n = len(union.sites)
    incidence = np.zeros((union.n_rows, n), dtype=np.int64)
    for s in range(n):
        incidence[np.unique(union.row[union.holds[:, s]]), s] = 1
    groups, member = connected_components(sp.csr_array(incidence.T @ incidence), directed=False)
    if groups == 1:
        return ""
    largest = Counter(member.tolist()).most_common(1)[0][0]
    named = [
        " and ".join(union.sites[s] for s in range(n) if member[s] == group)
        for group in range(groups)
        if group != largest or groups == n
    ]
    return "; ".join(named)
