"""The text view of the union vocabulary: titles that the coordinator has, and what the sites release of theirs.

All of it lies in one space, whoever wrote it: equal words are equal vectors, and nothing has to be aligned. Titles of
public code systems need nothing from the sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.knowledge.systems import Systems, canonical, curies
from coordinator.knowledge.tables import table
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


@dataclass(frozen=True, eq=False)
class NamedCodes:
    """Codes and their texts as vectors; a code comes once for each text and each site that says what it means.

    Attributes:
        codes: (n,) CURIEs.
        matrix: (n, p) unit rows.
    """

    codes: tuple[str, ...]
    matrix: FloatMatrix

    def rows(self, union: UnionVocabulary) -> npt.NDArray[np.float64]:
        """(n_rows, p) the mean direction of all that names the codes of a row; zeros where nothing does.

        A standard code that no site released lends its text to the codes anchored to it.
        """
        row = dict(zip(union.codes, union.row.tolist(), strict=True))
        row |= {code: r for r, code in union.standard.items()}
        total = np.zeros((union.n_rows, self.matrix.shape[1]))
        held = [i for i, code in enumerate(self.codes) if code in row]
        np.add.at(total, [row[self.codes[i]] for i in held], self.matrix[held].astype(np.float64))
        length = np.linalg.norm(total, axis=1, keepdims=True)
        # Vectors that cancel out say nothing.
        return np.where(length > 1e-9, total / np.maximum(length, 1e-9), 0.0)


def named_codes(
    releases: Sequence[VerifiedRelease],
    study: StudySpec,
    *,
    encoder: TextEncoder,
    titles: Mapping[str, str],
) -> NamedCodes:
    """Everything that names a code of the releases, or a code that they are anchored to.

    A code that has a title here is named by it alone: no site's word can change what a titled code is called. Other codes
    are named by the descriptions and the vectors that sites released.

    Args:
        releases: of the round.
        study: whose `[text]` names the encoder.
        encoder: `protocol.text.open_encoder(study.text)`.
        titles: CURIE -> title.

    Raises:
        FitError: a released text view does not have the study's dimensions.
    """
    known = {canonical(code): title for code, title in titles.items()}
    public = {s.prefix for s in study.code_systems}
    wanted = {code for r in releases for code in r.manifest.codes}
    wanted |= {anchor.standard for r in releases for anchor in r.manifest.anchors}
    said = [(code, known[canonical(code)]) for code in sorted(wanted) if canonical(code) in known]
    titled = {code for code, _ in said}
    for release in releases:
        named = zip(release.manifest.codes, release.manifest.descriptions, strict=False)
        said += [(code, text) for code, text in named if code not in titled]
    said = [(c, t) for c, t in dict.fromkeys(said) if c.partition(":")[0] in public and has_word(t)]
    kinds = [study.system(code.partition(":")[0]).category for code, _ in said]
    codes = [code for code, _ in said]
    matrices = [encode_names(encoder, [text for _, text in said], kinds)]
    for release in releases:
        for own, matrix in _released(release, encoder.dim):
            kept = [i for i, row in enumerate(own) if release.manifest.codes[row] not in titled]
            codes += [release.manifest.codes[own[i]] for i in kept]
            matrices.append(matrix[kept].astype(np.float32))
    return NamedCodes(tuple(codes), np.concatenate(matrices))


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
