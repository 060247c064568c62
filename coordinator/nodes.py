"""Which Flower nodes may connect: those of members; not those of sites that withdrew, nor those that a site has replaced."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.store import Site, Store
from coordinator.tables import OldNodeKey, utc_now
from protocol.enrolment import NodeKeyChange
from protocol.errors import KeyFileError, RoundError, StudyError, UsageError
from protocol.signed import open_signed, peek

if TYPE_CHECKING:
    from coordinator.flower.services import Services


def read_change(home: Home, store: Store, path: Path) -> NodeKeyChange:
    """A site's new node key, signed by the site's present keys.

    Raises:
        UsageError: there is no such file, the site is not enrolled or has withdrawn, or the key was replaced before.
        ProtocolError: it is no such change.
        EnvelopeError: the site did not sign it.
        StudyError: it is for another study.
    """
    try:
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"There is no file {path}") from None
    site = store.site(peek(data, NodeKeyChange).site)
    change = open_signed(data, NodeKeyChange, site.public_keys)
    if change.study_digest != home.study.digest:
        raise StudyError(f"The node key of site {site.name} is for another study")
    if site.withdrawn is not None:
        raise UsageError(
            f"Site {site.name} withdrew on {site.withdrawn:%Y-%m-%d}", do="Its keys stay refused"
        )
    with store.begin() as session:
        rows = session.scalars(select(OldNodeKey).where(OldNodeKey.site == site.name))
        if change.node_key in {row.node_key for row in rows}:
            raise UsageError(
                f"Site {site.name} has replaced this node key before",
                why="the file is an old one, or was replayed",
                do="Ask the site for the newest node-key file",
            )
    return change


def take_change(store: Store, change: NodeKeyChange) -> None:
    """Store a site's new node key; the same change again changes nothing."""
    with store.begin() as session:
        site = session.get_one(Site, change.site)
        if site.node_key == change.node_key:
            return
        session.add(OldNodeKey(site=site.name, node_key=site.node_key, at=utc_now()))
        site.node_key = change.node_key


def deny_nodes(home: Home, store: Store) -> list[str]:
    """Shut the Flower nodes of withdrawn sites out for ever, if the services run; returns these sites.

    Without it such a node may still connect, and is told nothing: no round calls it.
    """
    waiting = [w for w in store.withdrawals() if not w.node_denied]
    if not waiting or not (home.flower / "services.json").exists():
        return []
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import

    try:
        services = Services.attach(home.flower)
    except RoundError:
        return []
    denied = []
    for withdrawal in waiting:
        key = _write(home, f"{withdrawal.site}.withdrawn.pub", withdrawal.node_key)
        # Flower refuses a key for ever once its node was unregistered; one that never came is registered first.
        try:
            services.withdraw(services.register(withdrawal.site, key))
        except KeyFileError:
            pass  # it is out already
        finally:
            key.unlink()
        withdrawal.node_denied = True
        store.save_withdrawal(withdrawal)
        denied.append(withdrawal.site)
    return denied


def introduce_nodes(home: Home, store: Store) -> dict[str, int]:
    """Make the Flower nodes of the members known, if the services run; by site.

    A node that is not known yet is turned away for a minute each time (305 in the site's log). Where the services do not
    run, the opening of a round makes nodes known.

    Raises:
        KeyFileError: a site's key is malformed, or another site's.
        FederationError: the services stopped answering.
    """
    if not (home.flower / "services.json").exists():
        return {}
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import

    try:
        services = Services.attach(home.flower)
    except RoundError:
        return {}
    return known_nodes(home, store, services)


def known_nodes(home: Home, store: Store, services: Services) -> dict[str, int]:
    """The Flower node of each member, known to the services from now on.

    Raises:
        KeyFileError: a site's key is malformed, or another site's.
        FederationError: the services stopped answering.
    """
    return {
        site.name: services.register(site.name, _write(home, f"{site.name}.pub", site.node_key))
        for site in store.members()
    }


def settle_nodes(home: Home, store: Store) -> list[str]:
    """Shut replaced nodes out for ever, if the services run, and put the new ones on open rounds' desks.

    Returns:
        the sites whose old nodes are out now.

    Raises:
        KeyFileError: a site's new key is malformed, or another site's.
        FederationError: the services stopped answering.
    """
    with store.begin() as session:
        waiting = list(session.scalars(select(OldNodeKey).where(OldNodeKey.denied.is_(False))))
    if not waiting or not (home.flower / "services.json").exists():
        return []
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import

    try:
        services = Services.attach(home.flower)
    except RoundError:
        return []
    for old in waiting:
        key = _write(home, f"{old.site}.replaced.pub", old.node_key)
        # Flower refuses a key for ever once its node was unregistered; one that never came is registered first.
        try:
            services.withdraw(services.register(old.site, key))
        except KeyFileError:
            pass  # it is out already
        finally:
            key.unlink()
        site = store.site(old.site)
        if site.withdrawn is None:
            node = services.register(site.name, _write(home, f"{site.name}.pub", site.node_key))
            _call(home, store, site.name, node)
        with store.begin() as session:
            session.get_one(OldNodeKey, old.id).denied = True
    return sorted({old.site for old in waiting})


def _call(home: Home, store: Store, site: str, node: int) -> None:
    for found in store.rounds():
        desk = RoundDesk(home.round_folder(found.name))
        if found.call and desk.folder.is_dir() and site in (sites := desk.sites()):
            desk.open(found.call, {**sites, site: node})


def _write(home: Home, name: str, key: str) -> Path:
    path = home.flower / "nodes" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(key + "\n")
    return path
