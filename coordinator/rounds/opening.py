"""Planning a round, and calling the sites to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.store import Round, Store
from protocol.errors import RoundError, UsageError
from protocol.keys import PrivateKeys
from protocol.messages import RoundCall
from protocol.signed import sign_message
from protocol.vocabulary import IDENTIFIER


def plan_round(
    home: Home, store: Store, name: str, *, opens: datetime, days: int = 0, by_file: bool = False
) -> Round:
    """Store a round that `open_planned` opens when its time has come.

    Args:
        home: of the coordinator.
        store: its store.
        name: of the round.
        opens: UTC, with its zone.
        days: until the call expires; 0: as the study says.
        by_file: no site is called over the line.

    Raises:
        UsageError: the name is not allowed or taken, or the study collects no embeddings.
    """
    _check_new(home, name)
    days = days or home.study.rounds.days
    start = opens.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    found = Round(name=name, call=b"", state="planned", days=days, by_file=by_file)
    found.opened, found.expires = start, start + timedelta(days=days)
    store.add_round(found, f"It opens on {start:%Y-%m-%d %H:%M} UTC")
    return found


def open_round(
    home: Home, store: Store, name: str, *, nodes: Mapping[str, int], days: int = 0, by_file: bool = False
) -> Round:
    """Make the round's own key, sign the call, lay out the desk.

    Args:
        home: of the coordinator.
        store: its store.
        name: of the round.
        nodes: site -> Flower node; none where the round goes by files.
        days: until the call, and everything sealed for it, expires; 0: as the study says.
        by_file: no site is called over the line.

    Raises:
        UsageError: the name is not allowed or taken, or the study collects no embeddings.
        RoundError: no site is enrolled.
    """
    _check_new(home, name)
    if any(r.name == name for r in store.rounds()):
        raise _taken(name)
    days = days or home.study.rounds.days
    call, expires = _call(home, store, name, days=days)
    _lay_out(home, store, name, call, nodes)
    found = Round(name=name, call=call, state="open", days=days, by_file=by_file)
    found.expires = expires.replace(tzinfo=None)
    store.add_round(found, f"Sites are called until {expires:%Y-%m-%d %H:%M} UTC")
    return found


def open_planned(home: Home, store: Store, name: str, *, nodes: Mapping[str, int]) -> Round:
    """Open a round that was planned; the days begin now.

    Raises:
        RoundError: it is not planned, or no site is enrolled.
    """
    found = store.round(name)
    if found.state != "planned":
        raise RoundError(
            f"Round {name} is {found.state}, not planned", do="coordinator round status shows it"
        )
    call, expires = _call(home, store, name, days=found.days)
    _lay_out(home, store, name, call, nodes)
    now = datetime.now(UTC).replace(tzinfo=None)
    until = f"Sites are called until {expires:%Y-%m-%d %H:%M} UTC"
    store.move_round(name, "open", until, call=call, opened=now, expires=expires.replace(tzinfo=None))
    return store.round(name)


def _check_new(home: Home, name: str) -> None:
    if not IDENTIFIER.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a round", why="a name has 1 to 32 of a-z, 0-9 and -")
    if home.study.sharing.embeddings == "none":
        raise UsageError(
            "This study collects no embeddings",
            why="its file says sharing.embeddings = none",
            do="Pool counts with coordinator sum open",
        )


def _taken(name: str) -> UsageError:
    return UsageError(f"Round {name!r} exists", do="Take a new name; coordinator round status lists them")


def _call(home: Home, store: Store, name: str, *, days: int) -> tuple[bytes, datetime]:
    """The signed call for the round's new key, and when it expires."""
    sites = store.members()
    if not sites:
        raise RoundError("No site is enrolled", do="Run coordinator enroll with the sites' enrolment files")
    key_path = home.round_key_path(name)
    # A key without a stored call is left from an opening that failed: nothing was ever sealed to it.
    key_path.unlink(missing_ok=True)
    keys = PrivateKeys.generate()
    keys.save(key_path, home.passphrase)
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    call = RoundCall(
        round=name,
        study_digest=home.study.digest,
        study=home.study.stated,
        recipient=keys.public(),
        expected={s.name: (s.accepted_sequence, s.accepted_digest) for s in sites},
        ledger_heads=store.ledger_heads(),
        expires=expires,
    )
    return sign_message(call, home.keys), expires


def _lay_out(home: Home, store: Store, name: str, call: bytes, nodes: Mapping[str, int]) -> None:
    called = {s.name: nodes[s.name] for s in store.members() if s.name in nodes}
    RoundDesk(home.round_folder(name)).open(call, called)
