"""Which patients of a build a question of the consortium is about: the rule of `protocol.cohort`, by exact search."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import numpy as np
import numpy.typing as npt

from protocol.codeindex import CodeIndex
from protocol.cohort import CohortQuestion, Sex, space_digest
from protocol.errors import UsageError
from protocol.published import verify_folder
from protocol.tfidf import patient_vectors
from site_agent.cohort.files import CohortStore
from site_agent.cohort.gathering import follow_up
from site_agent.cohort.queries import Filters
from site_agent.config import Home
from site_agent.keys import coordinator_keys
from site_agent.sources import Progress, silent

Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_SEXES: Mapping[str, Sex] = {
    "f": "female",
    "female": "female",
    "8532": "female",  # OMOP's concepts
    "m": "male",
    "male": "male",
    "8507": "male",
}
_BLOCK = 4096


def like(home: Home, store: CohortStore, question: CohortQuestion, *, progress: Progress = silent) -> Flags:
    """(n,) which patients of the build the question is about.

    Raises:
        UsageError: the build is of another release or window, or the patients table does not tell what is asked for.
        ProtocolError: the release is not the one that the question means.
    """
    told = store.manifest
    if told.release != question.release:
        raise UsageError(
            f"The question is about release v{question.release}, and the patient vectors are made with v{told.release}",
            do="Run site-agent cohort build once that release is the newest here, or have the question asked anew",
        )
    if (told.first, told.last) != question.window:
        raise UsageError(
            f"The question is about events {_days(*question.window)}, and the build about {_days(told.first, told.last)}",
            do=f"Run site-agent cohort build{_options(*question.window)}",
        )
    passed = Filters(age=question.age, sexes=_sexes(home, store, question), seen=question.seen).population(
        store
    )
    for code in question.having:
        passed &= _has(store, code)
    for code in question.lacking:
        passed &= ~_has(store, code)
    if question.least is not None:
        passed &= (
            cosines(store, question, release_index(home, store, question), progress=progress)
            >= question.least
        )
    return passed


def build_index(home: Home, store: CohortStore) -> CodeIndex:
    """The codes and vectors of the release that a build was made with.

    Raises:
        UsageError: the release's folder was replaced since.
        ProtocolError: its files are not what its manifest says.
    """
    folder = home.folder / "results" / f"v{store.manifest.release}"
    manifest = verify_folder(folder, coordinator_keys(home))
    if manifest.digest != store.manifest.release_digest:
        raise UsageError(
            f"The patient vectors were made with another version {store.manifest.release}",
            do="Run site-agent cohort build again",
        )
    return CodeIndex.read(folder, manifest, exact=True)


def release_index(home: Home, store: CohortStore, question: CohortQuestion) -> CodeIndex:
    """`build_index`, if the question means the same vectors.

    Raises:
        UsageError: as there; or it means others.
        ProtocolError: as there.
    """
    index = build_index(home, store)
    if space_digest(index, home.study.standard) != question.space:
        raise UsageError(
            f"The question means other vectors than those of release v{question.release} at this site",
            do="Ask the coordinator which release it asked by; answer nothing until this is clear",
        )
    return index


def cosines(
    store: CohortStore, question: CohortQuestion, index: CodeIndex, *, progress: Progress = silent
) -> Floats:
    """(n,) of each patient with the profile; a patient without any code of the release has -inf.

    Raises:
        UsageError: the profile has no direction in this release.
    """
    direction = question.direction(index)
    row = {code: i for i, code in enumerate(index.codes)}
    vectors = np.zeros((len(store.codes["code"]), index.vectors.shape[1]))
    for i, code in enumerate(store.codes["code"]):
        if code in row:
            vectors[i] = index.vectors[row[code]]
    alike = np.ones(len(vectors))
    rate = store.incidence.astype(np.float64)
    years = follow_up(store.array("first"), store.array("last"))
    rate.data /= np.repeat(years, np.diff(rate.indptr))
    found = np.full(rate.shape[0], -np.inf)
    for low in range(0, len(found), _BLOCK):
        progress("comparing patients with the profile", low / len(found))
        block = patient_vectors(rate[low : low + _BLOCK], alike, vectors)
        known = block.any(axis=1)
        found[low : low + _BLOCK][known] = block[known] @ direction
    return found


def _has(store: CohortStore, code: str) -> Flags:
    """(n,) who has the code, or one that the release maps to it; nobody where the site knows no such code."""
    columns = store.codes
    wanted = np.array(
        [code in pair for pair in zip(columns["code"], columns["standard"], strict=True)], dtype=bool
    )
    start = np.asarray(store.array("start"))
    before = np.concatenate([[0], np.cumsum(wanted[store.array("code")])])
    return np.asarray(before[start[1:]] > before[start[:-1]])


def _sexes(home: Home, store: CohortStore, question: CohortQuestion) -> tuple[str, ...]:
    """How this site's patients table writes the sexes asked for; empty if none are."""
    if not question.sexes:
        return ()
    own = home.config.cohort.sexes
    meant = {text: own.get(text) or _SEXES.get(text.casefold()) for text in store.manifest.sexes}
    found = tuple(text for text, sex in meant.items() if sex in question.sexes)
    if not found:
        raise UsageError(
            f"The question asks for sex {' or '.join(question.sexes)}, and the patients table has none of these",
            why=f"it has {', '.join(store.manifest.sexes) or 'no column sex'}",
            do='Say in site.toml what its values mean: [cohort] sexes = { "2" = "female" }',
        )
    return found


def _days(first: date | None, last: date | None) -> str:
    if first is None and last is None:
        return "of all days"
    return f"from {first or 'the first'} to {last or 'the last'}"


def _options(first: date | None, last: date | None) -> str:
    return (f" --from {first}" if first else "") + (f" --to {last}" if last else "")
