"""The text view of the union vocabulary: titles that the coordinator has, and what the sites release of theirs.

All of it lies in one space, so that it is one source of the fit, not one a site: equal words are equal vectors, whoever
wrote them. Titles of public code systems need nothing from the sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coordinator.knowledge.systems import Systems, canonical, curies
from coordinator.knowledge.tables import table
from coordinator.model import Source
from coordinator.union import UnionVocabulary
from protocol.arrays import FloatMatrix
from protocol.errors import DataError, FitError
from protocol.release import VerifiedRelease
from protocol.study import StudySpec
from protocol.text import VIEW, TextEncoder, encode_names, has_word


def read_titles(path: Path, study: StudySpec) -> dict[str, str]:
    """CURIE -> title, of a table of system, code, title, or of all such tables (`*.csv`, `*.csv.gz`) in a folder.

    Codes of ICD may be written with or without their dot. Of two titles of a code the first one counts, files by name.

    Raises:
        DataError: no such file or column, or no title at all.
    """
    tables = (p for p in path.iterdir() if p.name.endswith((".csv", ".csv.gz"))) if path.is_dir() else (path,)
    found: dict[str, str] = {}
    systems = Systems.of_study(study)
    for file in sorted(tables):
        rows = table(file, ("system", "code", "title"), Counter())
        codes = curies(rows["system"].combine_chunks(), rows["code"].combine_chunks(), systems)
        for code, title in zip(codes.to_pylist(), rows["title"].to_pylist(), strict=True):
            if code is not None and title and has_word(title):
                found.setdefault(code, title)
    if not found:
        raise DataError(
            f"There is no title of a code in {path}", do="Name a CSV with the columns system, code, title"
        )
    return found


def text_source(
    releases: Sequence[VerifiedRelease],
    union: UnionVocabulary,
    study: StudySpec,
    *,
    encoder: TextEncoder,
    titles: Mapping[str, str],
) -> Source | None:
    """One source of the fit: the mean direction of all that names the codes of a row.

    A code is named by its title here, by the description that a site released, and by the vector that a site released.

    Args:
        releases: of the round.
        union: their codes; a standard code that no site released lends its title to the codes anchored to it.
        study: whose `[text]` names the encoder.
        encoder: `protocol.text.open_encoder(study.text)`.
        titles: CURIE -> title.

    Returns:
        a source `text` of (m, encoder.dim) unit rows; None where nothing names any code.

    Raises:
        FitError: a released text view does not have the study's dimensions.
    """
    index = dict(zip(union.codes, union.row.tolist(), strict=True))
    index |= {code: row for row, code in union.standard.items()}
    rows, names, kinds = [], [], []
    known = {canonical(code): title for code, title in titles.items()}
    public = {s.prefix for s in study.code_systems}
    said = [(code, known[canonical(code)]) for code in index if canonical(code) in known]
    for release in releases:
        said += zip(release.manifest.codes, release.manifest.descriptions, strict=False)
    for code, text in dict.fromkeys(said):
        prefix = code.partition(":")[0]
        if prefix in public and has_word(text):
            rows.append(index[code])
            names.append(text)
            kinds.append(study.system(prefix).category)
    matrices = [encode_names(encoder, names, kinds)]
    for release in releases:
        for own, matrix in _released(release, encoder.dim):
            rows += [index[release.manifest.codes[row]] for row in own]
            matrices.append(matrix.astype(np.float32))
    if not rows:
        return None
    return _mean_directions(np.array(rows), np.concatenate(matrices))


def _released(release: VerifiedRelease, dim: int) -> list[tuple[list[int], FloatMatrix]]:
    """Rows and vectors of a release's text view."""
    found = []
    for view in release.views():
        if view.name != VIEW:
            continue
        if view.matrix.shape[1] != dim:
            raise FitError(
                f"The text view of site {release.manifest.site} has {view.matrix.shape[1]} dimensions, the study's has {dim}",
                do="Ask the site to prepare and approve again under the round's study",
            )
        length = np.linalg.norm(view.matrix, axis=1, keepdims=True)
        kept = np.flatnonzero(length[:, 0] > 0)
        found.append((view.rows[kept].tolist(), view.matrix[kept] / length[kept]))
    return found


def _mean_directions(rows: np.ndarray, matrix: FloatMatrix) -> Source:
    """Vectors of one row summed, to unit length; a row whose vectors cancel out is left out."""
    distinct, place = np.unique(rows, return_inverse=True)
    total = np.zeros((len(distinct), matrix.shape[1]))
    np.add.at(total, place, matrix)
    length = np.linalg.norm(total, axis=1)
    kept = length > 1e-9
    return Source(VIEW, distinct[kept], total[kept] / length[kept, None])
