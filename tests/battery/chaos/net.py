"""Network namespaces: each site has a machine's network of its own, joined to the coordinator's by a bridge.

    coordinator: bridge, .1 and .2           sites: .11, .12, .13, each in a namespace

`lake` reaches .1 through a relay inside its namespace, which can be made slow (the kernel's netem often is not
there); any site's cable can be pulled. Without root there is no namespace: then all is on the loopback interface.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RELAYED = "lake"


def ip(*words: str, check: bool = True) -> None:
    """One `ip` command."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


def available() -> bool:
    """Whether this account may make namespaces here."""
    name = f"chaos-probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("link", "add", f"cp{os.getpid()}", "type", "bridge")
    except (OSError, subprocess.CalledProcessError):
        return False
    else:
        return True
    finally:
        for words in (("netns", "del", name), ("link", "del", f"cp{os.getpid()}")):
            try:
                ip(*words, check=False)
            except OSError:
                break


class Network:
    """The bridge, and a namespace for each site.

    Args:
        sites: their names.
        folder: where the rate of the relayed line is kept.
    """

    def __init__(self, sites: tuple[str, ...], folder: Path) -> None:
        self.sites, self.rate_file = sites, folder / "relay.rate"
        self.tag = f"c{os.getpid() % 100000}"
        self.net = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"

    @property
    def hub(self) -> str:
        """The address that the sites are told."""
        return f"{self.net}.1"

    def namespace(self, site: str) -> str:
        """The namespace of a site."""
        return f"{self.tag}-{site}"

    def _port(self, site: str) -> str:
        return f"{self.tag}h{self.sites.index(site)}"

    def up(self) -> None:
        """Make all of it."""
        self.down()
        ip("link", "add", self.tag, "type", "bridge")
        for last in (1, 2):
            ip("addr", "add", f"{self.net}.{last}/24", "dev", self.tag)
        ip("link", "set", self.tag, "up")
        for number, site in enumerate(self.sites):
            space, near, far = self.namespace(site), self._port(site), f"{self.tag}s{number}"
            ip("netns", "add", space)
            ip("link", "add", near, "type", "veth", "peer", "name", far)
            ip("link", "set", far, "netns", space)
            ip("link", "set", near, "master", self.tag, "up")
            ip("-n", space, "addr", "add", f"{self.net}.{11 + number}/24", "dev", far)
            for device in ("lo", far):
                ip("-n", space, "link", "set", device, "up")
            if site == RELAYED:
                ip("-n", space, "addr", "add", f"{self.hub}/32", "dev", "lo")

    def down(self) -> None:
        """Take all of it away."""
        for site in self.sites:
            ip("netns", "del", self.namespace(site), check=False)
            ip("link", "del", self._port(site), check=False)
        ip("link", "del", self.tag, check=False)

    def inside(self, site: str) -> tuple[str, ...]:
        """What comes before a command that runs at the site."""
        return ("ip", "netns", "exec", self.namespace(site))

    def cut(self, site: str) -> None:
        """Nothing passes, and neither end is told: the site's port leaves the bridge."""
        ip("link", "set", self._port(site), "nomaster")

    def heal(self, site: str) -> None:
        """The cable is in again."""
        ip("link", "set", self._port(site), "master", self.tag)

    def relay(self, port: int) -> tuple[str, ...]:
        """The words that run the relay in the namespace of its site."""
        module = ("-m", "tests.battery.chaos.relay", self.hub, str(port), f"{self.net}.2", str(port))
        return (*self.inside(RELAYED), sys.executable, *module, str(self.rate_file))

    def slow(self, rate: int) -> None:
        """Bytes a second of the relayed line; 0 is as fast as it goes."""
        self.rate_file.write_text(str(rate))
