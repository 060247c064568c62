"""Where a round can stand, and which moves there are.

    planned -> open -> collecting -> closed -> fitting -> fitted -> publishing -> published -> delivered

`open` is called, and nothing was asked of a site yet. `lapsed` is a round whose deadline passed below the
quorum; `aborted` is over. A move is stored before the work of the state that it leads to begins: who finds
a round `fitting` or `publishing` and does not do that work itself begins the work anew.
"""

from __future__ import annotations

from typing import Literal, get_args

from protocol.errors import RoundError

RoundState = Literal[
    "planned",
    "open",
    "collecting",
    "closed",
    "fitting",
    "fitted",
    "publishing",
    "published",
    "delivered",
    "lapsed",
    "aborted",
]
STATES: tuple[str, ...] = get_args(RoundState)

COLLECTING: frozenset[str] = frozenset({"open", "collecting"})
"""Releases are taken in."""

OVER: frozenset[str] = frozenset({"delivered", "lapsed", "aborted"})
"""Nothing follows by itself."""

_FIT = ("fitting", "closed")
MOVES: dict[str, tuple[str, ...]] = {
    "planned": ("open", "aborted"),
    "open": ("collecting", "closed", "lapsed", "aborted"),
    "collecting": ("closed", "lapsed", "aborted"),
    "lapsed": ("collecting", "aborted"),
    "closed": ("fitting", "collecting", "aborted"),
    "fitting": (*_FIT, "fitted", "aborted"),
    "fitted": (*_FIT, "publishing", "collecting", "aborted"),
    "publishing": ("publishing", "fitted", "published"),
    # A published version stands; the same releases may be fitted again for the next one.
    "published": (*_FIT, "publishing", "delivered"),
    "delivered": (*_FIT, "publishing", "delivered"),
    "aborted": (),
}


def check_move(name: str, state: str, to: str) -> None:
    """Return only if a round may move so.

    Raises:
        RoundError: there is no such move.
    """
    if to not in MOVES[state]:
        raise RoundError(
            f"Round {name} is {state}, and cannot become {to}",
            why=_WHY.get(state, ""),
            do=f"See coordinator round status {name}",
        )


_WHY = {
    "planned": "it has not been opened yet",
    "aborted": "an aborted round is over; coordinator round rerun opens another one like it",
    "lapsed": "too few releases came before its deadline; coordinator round extend gives sites more time",
}
