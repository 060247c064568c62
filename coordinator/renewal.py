"""Keeping the server certificate good while the services run."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.certificates import check_authority, renew_server, why_renew
from protocol.errors import FederationError

LOOK_SECONDS = 3600.0


class Renewal:
    """Looks at the server certificate from time to time, and replaces it long before it ends.

    Args:
        folder: of the certificates.
        hosts: names and addresses that the certificate must be for.
        tell: told in words what was done, or what people must do.
    """

    def __init__(self, folder: Path, hosts: Sequence[str], tell: Callable[[str], object]) -> None:
        self._folder, self._hosts, self._tell = folder, tuple(hosts), tell
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> str:
        """Replace the certificate if it must be; the proxy takes it within seconds, and nothing is restarted.

        Returns:
            why it was replaced, in words; empty if it was not.

        Raises:
            KeyFileError: the authority has ended, or its files cannot be read.
        """
        now = dt.datetime.now(dt.UTC)
        warning = check_authority(self._folder, now=now)
        why = why_renew(self._folder, self._hosts, now=now)
        if why:
            renew_server(self._folder, self._hosts)
            self._tell(f"Renewed the server certificate: {why}")
        if warning:
            self._tell(warning)
        return why

    def start(self) -> None:
        """Look once an hour until `stop`."""
        self._over.clear()
        self._thread = threading.Thread(target=self._keep, name="certificate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; nothing happens if it was not started."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _keep(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            try:
                self.look()
            except (FederationError, OSError) as error:
                self._tell(f"The server certificate could not be renewed: {error}")
