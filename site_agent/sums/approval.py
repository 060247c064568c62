"""What a person sees of a sum, and the signed yes without which the site answers nothing.

The yes of each signer stands in the ledger, as those to releases do: the entry `sum-approved`
holds the signed `SumApproval`, `sum-revoked` ends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import AwareDatetime

from protocol.canonical import digest
from protocol.errors import FederationError, GateError, UsageError
from protocol.keyfile import Passphrase
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.secure_sum.fixed import Int64Vector
from protocol.signed import open_signed, sign_message
from protocol.sums import KINDS, SumProposal, layout, vocabulary_digest
from site_agent.changes import UInt64s, changed_patients
from site_agent.config import Home
from site_agent.ledger import Entry, Ledger
from site_agent.resources import Resources, resources
from site_agent.signers import Signers, standing
from site_agent.sources import Progress, silent
from site_agent.sums import roster
from site_agent.sums.folder import SumFolder, SumPreview
from site_agent.sums.sharing import check_summing


class SumApproval(Message):
    """A signer's yes to one preview: statistic, vocabulary, sites, data and the very vector."""

    preview: HexDigest
    by: Identifier
    at: AwareDatetime


def preview_sum(
    home: Home,
    name: str,
    *,
    machine: Resources | None = None,
    progress: Progress = silent,
) -> SumPreview:
    """Count what a proposal asks for and store it for review; nothing leaves.

    Args:
        home: the site.
        name: of the sum.
        machine: what counting may take.
        progress: told the steps.

    Raises:
        GateError: the study or the roster does not allow this sum.
        UsageError: no such sum was proposed, or it has begun with counts that were approved.
        DataError: the data cannot be used.
    """
    folder = SumFolder(home.folder / "sums")
    proposal = folder.proposal(name)
    check_terms(home, proposal)
    pinned = check_roster(home, proposal)
    check_not_begun(folder, name)
    # What counts is imported here: an agent waits for months, and checks approvals without it.
    from site_agent.sums.kinds import COUNTERS  # noqa: PLC0415

    if proposal.statistic not in COUNTERS:
        raise UsageError(
            f"The sum {name} asks how many patients a cohort has",
            do=f"Run site-agent cohort questions preview {name}",
        )
    found = COUNTERS[proposal.statistic](
        home, folder, proposal, machine or resources(home.config.machine), progress
    )
    check_changed(home, folder, name, found.days)
    preview = SumPreview(
        site=home.config.site,
        subject=layout(proposal, home.study).subject,
        proposal=proposal.digest,
        vocabulary_digest=vocabulary_digest(proposal.vocabulary),
        codes=len(proposal.vocabulary),
        roster=pinned,
        minimum=proposal.minimum,
        data=found.data,
        values=values_digest(found.values),
        policy=found.policy,
        nonzero=int((found.values != 0).sum()),
        largest=int(found.values.max()),
        noise=home.study.differential_privacy.enabled,
        withheld_codes=found.withheld_codes,
        withheld_pairs=found.withheld_pairs,
        other_codes=found.other_codes,
    )
    with folder.locked():
        check_not_begun(folder, name)
        # The vector first: a preview without its vector would be approved and then could not be sent.
        folder.keep_vector(name, found.values)
        folder.keep_vector(name, found.days.view("int64"), "days")
        folder.keep(name, preview)
        Ledger(home.folder / "ledger.jsonl").append("sum-prepared", sum=name, preview=preview.digest)
    return preview


def check_not_begun(folder: SumFolder, name: str) -> None:
    """Return only if the site has offered nothing for this sum yet.

    Raises:
        UsageError: it has.
    """
    if folder.offer(name) is not None or folder.pooled(name) is not None:
        raise UsageError(
            f"The sum {name} has begun with counts that were approved",
            why="other counts under the same keys would give away the difference",
            do="If the data have changed, have the coordinator open a new sum",
        )


def check_terms(home: Home, proposal: SumProposal) -> None:
    """Return only if this site may take part in such a sum at all.

    Raises:
        GateError: the study does not sum this, too few sites would do, or a code is of another system.
    """
    check_summing(home)
    study, reasons = home.study, []
    floor = max(study.sharing.minimum_summed_sites, home.config.sharing.minimum_summed_sites)
    if proposal.study_digest != study.digest:
        reasons.append("it is of another study")
    if proposal.minimum < floor:
        reasons.append(f"it would go on with {proposal.minimum} sites, and {floor} are needed")
    reasons += KINDS[proposal.statistic].unfit(study)
    if strangers := [c for c in proposal.vocabulary if not c.startswith(f"{study.standard}:")]:
        reasons.append(f"{strangers[0]} is no code of the standard system {study.standard}")
    if reasons:
        raise GateError(f"The sum {proposal.name} is refused", tuple(reasons))


def check_roster(home: Home, proposal: SumProposal) -> str:
    """Return only if the coordinator's list of sites and keys is the one that people compared; its digest.

    Raises:
        GateError: it is another one, or none was compared yet.
    """
    differences, pinned = roster.differences(home, proposal.roster), roster.trusted(home)
    if differences or pinned is None:
        raise GateError(
            "The coordinator's list of sites and keys is not the trusted one",
            tuple(differences),
            do="Compare fingerprints with the other sites: site-agent roster show, then site-agent roster trust",
        )
    return pinned.digest


def check_changed(home: Home, folder: SumFolder, name: str, days: UInt64s) -> None:
    """Return only if the patients are those of each earlier sum, or enough of them have changed.

    Between two totals whose data differ by few patients, the difference is what these few have.

    Raises:
        GateError: fewer patients than the floor have changed since an earlier sum.
    """
    floor = home.policy().min_changed_patients
    reasons = []
    for other, before in folder.begun_before(name):
        changed = changed_patients(before.view("uint64"), days)
        if 0 < changed < floor:
            reasons.append(f"{changed:,} patients have changed since sum {other}, and {floor:,} are needed")
    if reasons:
        raise GateError(
            "Too few patients have changed for another sum",
            tuple(reasons),
            do="Sum over the data of then, or wait until more have changed",
        )


def values_digest(values: Int64Vector) -> str:
    """SHA-256 of a vector's bytes, int64, little-endian."""
    return digest(values.astype("<i8", copy=False).tobytes())


def approve_sum(home: Home, name: str, digest_: str, by: str, passphrase: Passphrase) -> tuple[str, ...]:
    """Sign what `preview_sum` has shown.

    Args:
        home: the site.
        name: of the sum.
        digest_: of the preview, at least 16 digits.
        by: the signer.
        passphrase: of the signer's key.

    Returns:
        all signers who have approved it so far.

    Raises:
        UsageError: another preview than the one at hand, or no such signer.
        KeyFileError: a wrong passphrase.
        GateError: it answers a question, and is not what may be said now.
    """
    folder = SumFolder(home.folder / "sums")
    preview = folder.preview(name)
    if preview is None or len(digest_) < 16 or not preview.digest.startswith(digest_):
        raise UsageError(
            f"The counts under review are {preview.digest[:16] if preview else 'none'}, not {digest_ or 'none'}",
            do=f"Run site-agent sums preview {name} and look again",
        )
    ledger = Ledger(home.folder / "ledger.jsonl")
    keys = Signers(home.folder / "signers", ledger).unlock(by, passphrase)
    approval = SumApproval(preview=preview.digest, by=by, at=datetime.now(UTC))
    with folder.locked():
        if preview.answer is not None:
            # SciPy is behind it, without which the agent waits.
            from site_agent.sums.questions import check_still  # noqa: PLC0415

            check_still(home, folder, ledger.verify(), name, preview)
        ledger.append(
            "sum-approved",
            by=by,
            sum=name,
            preview=preview.digest,
            approval=sign_message(approval, keys).decode(),
        )
    return approved_by(ledger.verify(), preview.digest)


def approved_by(entries: Iterable[Entry], preview: str) -> tuple[str, ...]:
    """Present signers whose signed yes to this preview stands in the ledger, one a key.

    Raises:
        FederationError: an entry does not hold.
    """
    entries = tuple(entries)
    signers = standing(entries).signers
    found: dict[str, str] = {}
    for entry in entries:
        by = str(entry.facts.get("by"))
        if entry.event == "sum-revoked" and entry.facts.get("preview") == preview:
            found.pop(by, None)
        if entry.event != "sum-approved" or entry.facts.get("preview") != preview or by not in signers:
            continue
        approval = open_signed(str(entry.facts.get("approval")).encode(), SumApproval, signers[by])
        if (approval.preview, approval.by) != (preview, by):
            raise FederationError(f"Entry {entry.number} of the ledger names another approval than it holds")
        found[by] = signers[by].signing
    return tuple(sorted({key: name for name, key in sorted(found.items())}.values()))


def revoke_sum(home: Home, name: str, by: str) -> None:
    """Take a yes back; what has left already cannot be recalled.

    Raises:
        UsageError: there is none of this signer.
    """
    ledger = Ledger(home.folder / "ledger.jsonl")
    preview = SumFolder(home.folder / "sums").preview(name)
    if preview is None or by not in approved_by(ledger.verify(), preview.digest):
        raise UsageError(f"There is no approval of sum {name} by {by}")
    ledger.append("sum-revoked", by=by, sum=name, preview=preview.digest)


def check_approved(home: Home, preview: str) -> None:
    """Return only if as many signers as the site asks for have approved exactly this.

    Raises:
        GateError: too few.
        FederationError: the ledger does not hold.
    """
    have = approved_by(Ledger(home.folder / "ledger.jsonl").verify(), preview)
    needed = home.config.approval.signers
    if len(have) < needed:
        raise GateError(
            "The counts of this sum wait for approval",
            (f"{len(have)} of {needed} signers have approved",),
            do="Run site-agent sums preview and approve at the site",
        )
