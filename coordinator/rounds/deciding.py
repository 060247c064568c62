"""What a coordinator may decide about a round: more time, other sites, enough, or no more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.rounds.opening import open_round
from coordinator.roundstates import COLLECTING, check_move
from coordinator.store import Round, Store
from protocol.errors import RoundError, UsageError
from protocol.messages import RoundCall
from protocol.rotation import erase_key
from protocol.signed import open_signed, sign_message

_SETTLED = frozenset({"fitting", "publishing", "published", "delivered", "aborted"})


def close(home: Home, store: Store, name: str) -> None:
    """Take no more releases in; what is there is enough.

    Raises:
        RoundError: fewer releases were accepted than the study needs, or the round takes none in now.
    """
    found, accepted = store.round(name), accepted_sites(store, name)
    if found.state not in COLLECTING:
        check_move(name, found.state, "closed")
    if len(accepted) < home.study.minimum_sites:
        raise RoundError(
            f"Round {name} has {len(accepted)} accepted releases, and the study needs {home.study.minimum_sites}",
            do="Wait for more sites, extend the round, or abort it",
        )
    store.move_round(name, "closed", f"Closed by hand with {', '.join(accepted)}")


def accepted_sites(store: Store, name: str) -> list[str]:
    """The sites whose release the round has accepted and goes on with, by name."""
    excluded = store.exclusions(name)
    return [s.site for s in store.submissions(name) if s.state == "accepted" and s.site not in excluded]


def extend(home: Home, store: Store, name: str, *, days: int) -> Round:
    """Give the sites until `days` days from now; a round that was closed or has lapsed takes releases in again.

    The call is signed anew with the later date and the round's same key, so what was sealed stays good.

    Raises:
        RoundError: the round was not opened yet, or is past taking releases in.
    """
    found = store.round(name)
    if found.state not in COLLECTING:
        check_move(name, found.state, "collecting")
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    if expires.replace(tzinfo=None) <= found.expires:
        raise UsageError(
            f"Round {name} stands until {found.expires:%Y-%m-%d %H:%M} UTC already",
            do="Give more days, counted from now",
        )
    before = open_signed(found.call, RoundCall, home.keys.public())
    members = {s.name: s for s in store.members()}
    update = {
        "expires": expires,
        "expected": {
            name: (s.accepted_sequence, s.accepted_digest)
            for name, s in members.items()
            if name in before.expected
        },
        "ledger_heads": {s: head for s, head in store.ledger_heads().items() if s in before.expected},
    }
    call = sign_message(before.model_copy(update=update), home.keys)
    desk = RoundDesk(home.round_folder(name))
    changes = {"call": call, "expires": expires.replace(tzinfo=None)}
    detail = f"Extended until {expires:%Y-%m-%d %H:%M} UTC"
    if found.state in COLLECTING:
        store.note_round(name, detail, **changes)
    else:
        store.move_round(name, "collecting", detail, **changes)
    desk.open(call, desk.sites())
    return store.round(name)


def exclude(store: Store, name: str, site: str, *, because: str) -> None:
    """Go on without a site: it is not asked, and a release of it that was accepted is not used.

    Raises:
        UsageError: there is no such site, or no reason is given.
        RoundError: the round is past that.
    """
    because = " ".join(because.split())
    if not 0 < len(because) <= 500:
        raise UsageError("An exclusion needs a reason of 1 to 500 characters", do="Write it after --because")
    store.site(site)
    _decide(store, name, site, because)


def include(store: Store, name: str, site: str) -> None:
    """Take an excluded site back into a round.

    Raises:
        UsageError: it is not excluded.
        RoundError: the round is past that.
    """
    if site not in store.exclusions(name):
        raise UsageError(f"Site {site} is not excluded from round {name}", do="See coordinator round status")
    _decide(store, name, site, "")


def _decide(store: Store, name: str, site: str, because: str) -> None:
    state = store.round(name).state
    if state in _SETTLED:
        raise RoundError(
            f"Round {name} is {state}: its sites cannot be changed now",
            why="a published version stays as it is" if state in {"published", "delivered"} else "",
            do="Open another round with coordinator round rerun and exclude the site there",
        )
    # A fit of other sites is no fit of this round any more.
    store.set_exclusion(name, site, because, to="closed" if state == "fitted" else state)


def abort(home: Home, store: Store, name: str, *, because: str) -> None:
    """End a round without a result; its key and what was sealed to it are erased.

    Sites lose nothing: what they approved can go with another round. Killed on the way, it is gone on with
    by the same call.

    Raises:
        UsageError: no reason is given.
        RoundError: the round has published a version, or is doing so.
    """
    because = " ".join(because.split())
    if not 0 < len(because) <= 500:
        raise UsageError(
            "Aborting a round needs a reason of 1 to 500 characters", do="Write it after --because"
        )
    if store.round(name).state != "aborted":
        store.move_round(name, "aborted", because)
    key = home.round_key_path(name)
    if key.exists():
        erase_key(key)
    folder = home.round_folder(name)
    for path in (*folder.glob("received/*"), home.fit_path(name)):
        path.unlink(missing_ok=True)


def rerun(
    home: Home,
    store: Store,
    name: str,
    new: str,
    *,
    nodes: Mapping[str, int],
    days: int = 0,
    by_file: bool = False,
) -> Round:
    """Open a round like an earlier one: without the sites that were excluded there.

    Raises:
        UsageError, RoundError: as `open_round`.
    """
    store.round(name)
    found = open_round(home, store, new, nodes=nodes, days=days, by_file=by_file)
    members = {s.name for s in store.members()}
    for site, row in store.exclusions(name).items():
        if site in members:
            exclude(store, new, site, because=row.because)
    store.note_round(new, f"Opened like round {name}")
    return found
