"""A question of the consortium at a site: counted for a person to see; what may be said of it waits for a yes."""

from __future__ import annotations

import numpy as np

from protocol.cohort import CohortQuestion, Profile, space_digest, standard_code
from protocol.errors import UsageError
from protocol.secure_sum.fixed import Int64Vector
from protocol.sums import layout, vocabulary_digest
from site_agent.cohort.files import CohortStore
from site_agent.cohort.questions import build_index, cosines, like
from site_agent.config import Home
from site_agent.ledger import Ledger
from site_agent.sources import Progress, silent
from site_agent.sums.approval import check_not_begun, check_roster, check_terms, values_digest
from site_agent.sums.folder import SumFolder, SumPreview
from site_agent.sums.questions import COUNTED, answer_data, check_limit, decided, fingerprints

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def question_of(folder: SumFolder, name: str) -> CohortQuestion:
    """The question that a sum asks.

    Raises:
        UsageError: no such sum was proposed, or it asks no question.
    """
    question = folder.proposal(name).cohort
    if question is None:
        raise UsageError(
            f"The sum {name} asks no question about a cohort", do=f"Run site-agent sums preview {name}"
        )
    return question


def try_profile(
    home: Home, profile: Profile, *, progress: Progress = silent
) -> tuple[tuple[float, int], ...]:
    """(cosine, how many patients of the newest build reach it): what a question by this profile would find here.

    Raises:
        UsageError: there is no build, or a code is not in its release or not of the standard system.
        DataError: a malformed code.
    """
    store, standard = CohortStore.open(home), home.study.standard
    index = build_index(home, store)
    question = CohortQuestion(
        title=profile.name,
        release=store.manifest.release,
        space=space_digest(index, standard),
        weights={standard_code(code, standard): weight for code, weight in profile.codes.items()},
        least=-1.0,
    )
    found = cosines(store, question, index, progress=progress)
    return tuple((least, int((found >= least).sum())) for least in THRESHOLDS)


def preview_question(home: Home, name: str, *, progress: Progress = silent) -> SumPreview:
    """Count who a question is about and store what may be said of it for review; nothing leaves.

    Args:
        home: the site; its build must be of the question's release and window.
        name: of the question.
        progress: told the share done.

    Raises:
        GateError: the study or the roster does not allow it, or the site has answered as many as it allows.
        UsageError: no such question, no such build, or the answer was approved and is on its way.
    """
    folder, ledger = SumFolder(home.folder / "sums"), Ledger(home.folder / "ledger.jsonl")
    question, proposal = question_of(folder, name), folder.proposal(name)
    check_terms(home, proposal)
    pinned = check_roster(home, proposal)
    check_not_begun(folder, name)
    check_limit(home, folder, ledger.verify(), name)
    store = CohortStore.open(home)
    counted = like(home, store, question, progress=progress)
    patients = fingerprints(home, store.array("patients")[counted].tolist())
    with folder.locked():
        check_not_begun(folder, name)
        entries = ledger.verify()
        answer = decided(home, folder, entries, name, question.meaning, patients, store.manifest.patients)
        values: Int64Vector = np.array([answer.answer], dtype=np.int64)
        preview = SumPreview(
            site=home.config.site,
            subject=layout(proposal, home.study).subject,
            proposal=proposal.digest,
            vocabulary_digest=vocabulary_digest(proposal.vocabulary),
            codes=len(proposal.vocabulary),
            roster=pinned,
            minimum=proposal.minimum,
            data=answer_data(folder, answer, patients),
            values=values_digest(values),
            policy=home.policy(),
            nonzero=int(answer.answer > 0),
            largest=answer.answer,
            withheld_codes=0,
            withheld_pairs=0,
            other_codes=0,
            noise=False,
            answer=answer,
        )
        # The vector first: a preview without its vector would be approved and then could not be sent.
        folder.keep_vector(name, values)
        folder.keep_vector(name, patients.view(np.int64), COUNTED)
        folder.keep(name, preview)
        ledger.append("sum-prepared", sum=name, preview=preview.digest, question=question.meaning)
    return preview
