"""What a site remembers of its sums, so that no two of them expose one or two sites by subtraction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Self

from pydantic import Field

from protocol.errors import GateError, RoundError
from protocol.messages import HexDigest
from protocol.sections import Identifier
from protocol.secure_sum.messages import MAX_SITES, ParticipantList, SumMessage, SumSubject

MAX_SUMS_OVER_DATA = 16
_PRIME = 2**61 - 1


class SumEntry(SumMessage):
    """One sum that the site joined."""

    session: HexDigest
    subject: SumSubject
    data: HexDigest
    values: str = Field("", pattern="^([0-9a-f]{64})?$", description="Digest of the vector that was masked.")
    members: tuple[Identifier, ...] = Field(
        (), max_length=MAX_SITES, description="The received list that was signed."
    )


class SumLedger(SumMessage):
    """All sums of a site, in order; each step returns a new ledger, which the caller stores before it sends.

    A membership counts from the signature of the received list: from then on, the
    other sites may unmask the sum without this one.
    """

    entries: tuple[SumEntry, ...] = ()

    def joined(self, sites: ParticipantList, data: str) -> Self:
        """The ledger with a new sum.

        Args:
            sites: the list about to be signed.
            data: digest of the patients' data behind this site's vector.

        Raises:
            RoundError: the site has joined this very sum before.
            GateError: its membership beside that of an earlier sum over the same data would expose a site.
        """
        if any(e.session == sites.digest for e in self.entries):
            raise RoundError(
                "This sum has been joined before",
                why="keys are used once",
                do="Continue it with its stored state, or have the coordinator start a new attempt",
            )
        self._check(sites.subject, data, sites.names)
        entry = SumEntry(session=sites.digest, subject=sites.subject, data=data)
        return self._with((*self.entries, entry))

    def masked(self, session: str, values: str) -> Self:
        """The ledger that binds the sum's keys to one vector.

        Raises:
            RoundError: another vector has been masked under these keys.
        """
        entry = self._entry(session)
        if entry.values not in ("", values):
            raise RoundError(
                "These keys have masked another vector",
                why="two vectors under one key set give away their difference",
                do="Send the first vector again, or have the coordinator start a new attempt",
            )
        return self._replace(entry.model_copy(update={"values": values}))

    def closed(self, session: str, members: Iterable[str]) -> Self:
        """The ledger with the sum's final membership.

        Raises:
            RoundError: the sum was closed with other members.
            GateError: see `joined`.
        """
        entry, names = self._entry(session), tuple(sorted(members))
        if entry.members:
            if entry.members != names:
                raise RoundError("Another received list of this sum has been signed")
            return self
        self._check(entry.subject, entry.data, names)
        return self._replace(entry.model_copy(update={"members": names}))

    def _check(self, subject: SumSubject, data: str, names: tuple[str, ...]) -> None:
        past = [e for e in self.entries if e.members and e.data == data]
        for entry in past:
            same = (entry.subject.statistic, entry.subject.shape_digest) == (
                subject.statistic,
                subject.shape_digest,
            )
            if same and entry.members == names:
                raise GateError(
                    f"The statistic {subject.statistic!r} has been summed over the same data and sites",
                    ("a sum is run once; the identical masked vector may be sent again",),
                    do=f"Resume the sum of round {entry.subject.round}",
                )
        if len(past) >= MAX_SUMS_OVER_DATA:
            raise GateError(
                "No further sum over the same data",
                (f"{MAX_SUMS_OVER_DATA} have been made",),
                do="Sum again once the data have changed",
            )
        exposed = singled_out([*(e.members for e in past), names])
        if exposed:
            raise GateError(
                "This sum is refused over the same data",
                (f"together with earlier sums it would expose {' and '.join(exposed)}",),
                do="Sum over the sites of the earlier sum, or once the data have changed",
            )

    def _entry(self, session: str) -> SumEntry:
        for entry in self.entries:
            if entry.session == session:
                return entry
        raise RoundError(
            "This sum is not in the site's memory", do="Have the coordinator start a new attempt"
        )

    def _replace(self, entry: SumEntry) -> Self:
        return self._with(tuple(entry if e.session == entry.session else e for e in self.entries))

    def _with(self, entries: tuple[SumEntry, ...]) -> Self:
        return self.model_copy(update={"entries": entries})


def singled_out(memberships: Sequence[Collection[str]]) -> tuple[str, ...]:
    """One or two sites whose (weighted) total is a linear combination of sums; empty if there are none.

    A sum is its membership's 0-1 vector; the row space of all sums holds a nonzero vector
    supported on T if and only if leaving out the columns T lowers the rank. Two
    memberships that differ by one or two sites are the simplest case.

    Args:
        memberships: the sites of each sum over the same data.
    """
    patterns: dict[tuple[int, ...], list[str]] = {}
    for site in sorted(set().union(*memberships)):
        patterns.setdefault(tuple(int(site in m) for m in memberships), []).append(site)
    # A combination weighs sites of one pattern alike: three of a kind are never singled out.
    full = _rank(patterns)
    small = [(p,) for p, sites in patterns.items() if len(sites) <= 2]
    lone = [p for p, sites in patterns.items() if len(sites) == 1]
    for left_out in [*small, *combinations(lone, 2)]:
        if _rank(p for p in patterns if p not in left_out) < full:
            return tuple(site for p in left_out for site in patterns[p])
    return ()


def _rank(columns: Iterable[tuple[int, ...]]) -> int:
    """Rank of 0-1 columns; minors of at most 17 rows are below the prime (Hadamard), so it is the rank over Q."""
    basis: dict[int, list[int]] = {}
    for column in columns:
        rest = list(column)
        for pivot, vector in basis.items():
            factor = rest[pivot]
            rest = [(r - factor * v) % _PRIME for r, v in zip(rest, vector, strict=True)]
        lead = next((i for i, r in enumerate(rest) if r), None)
        if lead is not None:
            inverse = pow(rest[lead], -1, _PRIME)
            basis[lead] = [r * inverse % _PRIME for r in rest]
    return len(basis)
