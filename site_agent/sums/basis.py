"""Whether what a sum follows from is what this site knows of the sum before it."""

from __future__ import annotations

from protocol.canonical import digest
from protocol.errors import GateError
from protocol.secure_sum.state import need
from protocol.signed import peek
from protocol.sums import COUNTS, PooledHalves, PooledSum, SumProposal, unpack_basis, vocabulary_digest
from site_agent.sums.folder import SumFolder


def check(folder: SumFolder, proposal: SumProposal, site: str, text: str) -> None:
    """Store the pooled halves that came beside a proposal, if they are those whose digest this site was told at the end.

    Args:
        folder: of the site's sums.
        proposal: of a sum; one that follows from no halves needs nothing here.
        site: this one.
        text: `StepMaterial.basis`.

    Raises:
        GateError: this site has no part in the sum of half-samples, or it ended otherwise.
        ProtocolError: the bytes are damaged.
    """
    halves = proposal.graph.halves if proposal.graph else None
    if halves is None or folder.basis(proposal.name) is not None:
        return
    result = outcome_of(folder, proposal, halves, site)
    pairs = result.cells // 5
    data = unpack_basis(text, pairs)
    if digest(data) != result.files.get(COUNTS):
        raise _refused(proposal, f"the pooled halves beside it are not those with which {halves.name} ended")
    folder.keep_basis(proposal.name, data)


def outcome_of(folder: SumFolder, proposal: SumProposal, halves: PooledHalves, site: str) -> PooledSum:
    """The outcome of the sum of half-samples, as this site knows it.

    Raises:
        GateError: the proposal does not follow from it.
    """
    signed = folder.pooled(halves.name)
    if signed is None:
        raise _refused(proposal, f"this site knows no outcome of sum {halves.name}")
    result = peek(signed, PooledSum)  # its signature was checked when it came
    if (result.statistic, result.digest) != ("graph-halves", halves.result):
        raise _refused(proposal, f"sum {halves.name} ended with another outcome here")
    if site not in result.sites:
        raise _refused(proposal, f"this site's halves are not in sum {halves.name}")
    before = need(folder.proposal(halves.name).graph)
    if (
        result.vocabulary_digest != vocabulary_digest(proposal.vocabulary)
        or before.rows != need(proposal.graph).rows
    ):
        raise _refused(proposal, f"it is over other pairs of codes than sum {halves.name}")
    return result


def _refused(proposal: SumProposal, reason: str) -> GateError:
    return GateError(
        f"The sum {proposal.name} does not follow from what this site knows",
        (reason,),
        do="Have the coordinator open a sum that follows from one with this site's part",
    )
