"""`cohort fuse`: from a build and the site's notes to four ways of joining them, and to vectors that can be searched."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from protocol.errors import UsageError
from protocol.text import TextEncoder, find_encoder
from protocol.tfidf import patient_vectors
from site_agent.cohort.files import CohortStore
from site_agent.cohort.gathering import Window, follow_up
from site_agent.cohort.labels import Label, label_by_codes, label_by_file, label_terms
from site_agent.cohort.people import known_of
from site_agent.cohort.prediction import need_torch
from site_agent.config import Home
from site_agent.notes import NoteVectors, known_words, note_vectors, open_notes
from site_agent.notes.cache import chunk_cache
from site_agent.notes.staging import staged_notes
from site_agent.notes.vectors import line_shares
from site_agent.sources import Progress, silent
from site_agent.working import work_lock

Vectors = npt.NDArray[np.float32]
_BLOCK = 4096


@dataclass(frozen=True)
class Wanted:
    """What `fuse` is asked.

    Attributes:
        codes: that are the label, or beginnings and *.
        flags: a file of the label instead.
        left_out: further codes that are in no feature.
        terms: words or phrases whose sentences are left out beside those of the codes' names.
        compare_terms: also learn with these sentences left in.
        keep: whose vectors are kept: gated, concatenated, text, codes, or none.
        seeds: how many splits.
    """

    codes: tuple[str, ...] = ()
    flags: Path | None = None
    left_out: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    compare_terms: bool = False
    keep: str = "gated"
    seeds: int = 5


def fuse(home: Home, wanted: Wanted, *, progress: Progress = silent) -> dict[str, Any]:
    """Compare the four ways, and keep the vectors of one; the report, as it goes into JSON.

    Args:
        home: of the site; with a build, and with `[notes]` in its configuration.
        wanted: label, terms and what to keep.
        progress: told each step.

    Raises:
        UsageError: torch is missing, there is no build, no notes, no such code, or too few patients.
        DataError: the notes or the flags cannot be used.
    """
    need_torch("Fusion")
    import torch  # noqa: PLC0415

    from site_agent.cohort.comparing import compare_fusions, parts_of_both, with_seed  # noqa: PLC0415
    from site_agent.cohort.fusion import Fitting, learn_fusion  # noqa: PLC0415

    # Of layers as small as these, more threads make nothing faster, and on a busy machine all of it slower.
    torch.set_num_threads(1)
    store = CohortStore.open(home)
    if wanted.flags is not None:
        label = label_by_file(store, wanted.flags, wanted.left_out)
    else:
        label = label_by_codes(store, wanted.codes, wanted.left_out)
    codes = code_vectors_without(store, label.own)
    with work_lock(home):
        text, left_in, encoder = _notes(home, store, label, wanted, progress)
    something = np.asarray(codes.any(axis=1) | text.vectors.any(axis=1))
    rows = np.flatnonzero(label.known & something)
    found = compare_fusions(
        codes,
        text.vectors,
        label.has,
        rows,
        seeds=range(wanted.seeds),
        left_in=None if left_in is None else left_in.vectors,
        progress=progress,
    )
    counts = asdict(text.counts) | {"removed": dict(sorted(text.counts.removed.items()))}
    report = {
        "label": label.said,
        "left_out": [store.codes["code"][int(i)] for i in label.own],
        "encoder": encoder.name,
        "patients_with_label": int((label.known & label.has).sum()),
        "patients_without": int((label.known & ~label.has).sum()),
        "notes": counts,
        **asdict(found),
    }
    if wanted.keep != "none":
        from site_agent.cohort.fused import keep_fused  # noqa: PLC0415

        progress(f"vectors to keep: {wanted.keep}", 0.0)
        learn, stop, _ = parts_of_both(rows, label.has, 0)
        made = learn_fusion(
            wanted.keep,  # type: ignore[arg-type]
            codes,
            text.vectors,
            label.has,
            learn,
            stop,
            with_seed(Fitting(), 0),
        )
        keep_fused(
            home,
            store,
            made.vectors * something[:, None],
            made=datetime.now(UTC),
            kind=wanted.keep,
            label=label.said,
            left_out=tuple(report["left_out"]),
            encoder=f"{encoder.name} {encoder.digest[:12]}",
            learnt_from=len(learn) + len(stop),
            report=report,
        )
    progress("done", 1.0)
    return report | {"kept": wanted.keep}


def code_vectors_without(store: CohortStore, left_out: npt.NDArray[np.intp]) -> Vectors:
    """(n, d) patient vectors of a build, made again without some codes; the weights are the build's."""
    weight = np.asarray(store.codes["weight"], dtype=np.float64)
    weight[left_out] = 0.0
    vectors = store.array("code_vectors")
    years = follow_up(np.asarray(store.array("first")), np.asarray(store.array("last")))
    counts = store.incidence
    made = np.empty((counts.shape[0], vectors.shape[1]), dtype=np.float32)
    for low in range(0, len(made), _BLOCK):
        part = slice(low, low + _BLOCK)
        rates = sparse.csr_array(sparse.diags_array(1.0 / years[part]) @ counts[part])
        made[part] = patient_vectors(rates, weight, vectors)
    return made


def _notes(
    home: Home, store: CohortStore, label: Label, wanted: Wanted, progress: Progress
) -> tuple[NoteVectors, NoteVectors | None, TextEncoder]:
    """Note vectors without the label's words, and with them if that is asked."""
    told = home.config.notes
    encoder = find_encoder(told.encoder, home.path(told.model) if told.model else None, dim=told.dim)
    numbers = np.asarray(store.array("patients"))
    rows = {int(number): i for i, number in enumerate(numbers)}
    manifest = store.manifest
    terms = label_terms(label.names, wanted.terms)
    with ExitStack() as stack:
        staged = stack.enter_context(
            staged_notes(
                open_notes(home),
                home.work / "cohort" / "notes.sqlite",
                rows,
                Window(manifest.first, manifest.last).days(),
                _known(home, store),
                progress,
            )
        )
        cache = stack.enter_context(chunk_cache(home.folder / "cohort", encoder))
        shares = line_shares(staged)

        def made(pattern: Any) -> NoteVectors:
            return note_vectors(
                staged, shares, cache, len(rows), encoder.dim, terms=pattern, progress=progress
            )

        text = made(terms)
        left_in = made(None) if wanted.compare_terms and terms is not None else None
    return text, left_in, encoder


def _known(home: Home, store: CohortStore) -> Any:
    """Number of a patient -> words of the patient's own record: the identifier, and columns of the patients table."""
    name, columns = home.config.cohort.patients, home.config.notes.identifiers
    if columns and not name:
        raise UsageError(
            "notes.identifiers names columns of the patients table, and there is none",
            do="Set patients in [cohort] of site.toml",
        )
    words = known_of(home.path(name), columns) if name else {}
    labels = store.labels

    def known(number: int) -> Collection[str]:
        own = labels.get(number, str(number))
        return words.get(number, frozenset()) | known_words([own])

    return known
