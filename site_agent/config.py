"""A site's home folder and its configuration file `site.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from protocol.configfile import read_config
from protocol.errors import KeyFileError, StudyError, UsageError
from protocol.keyfile import Passphrase
from protocol.keys import PrivateKeys
from protocol.messages import Invitation, Policy
from protocol.rotation import passphrase_for
from protocol.signed import parse
from protocol.study import StudySpec, load_study
from site_agent.sections import SiteConfig


def stamp(path: Path) -> tuple[int, ...]:
    """Differs whenever a file was replaced or written to; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ino, found.st_size)


@dataclass(frozen=True)
class Home:
    """The folder of one site: configuration, keys, outbox, results and ledger."""

    folder: Path

    def __post_init__(self) -> None:
        # Processes with other working folders get paths from here.
        object.__setattr__(self, "folder", self.folder.absolute())

    @cached_property
    def config(self) -> SiteConfig:
        """The parsed `site.toml`.

        Raises:
            UsageError: it is missing or wrong; every wrong field is named.
        """
        return read_config(self.folder / "site.toml", SiteConfig, whose="a site's", made_by="site-agent init")

    @cached_property
    def study(self) -> StudySpec:
        """The study, which must be the one of the invitation.

        Raises:
            StudyError: it is not, or this site is not in it.
        """
        site, path = self.config.site, self.folder / "study.toml"
        study = load_study(path)
        if site not in study.sites:
            raise StudyError(
                f"Site {self.config.site!r} is not in the study {path}",
                why=f"it lists {', '.join(study.sites)}",
            )
        if study.digest != self.invitation.study_digest:
            raise StudyError(
                f"The study {path} is not the one that the coordinator's invitation names",
                why=f"its digest begins {study.digest[:12]}, the invitation's {self.invitation.study_digest[:12]}",
                do="Compare the file with the coordinator's; all parties must hold the same study",
            )
        return study

    @cached_property
    def invitation(self) -> Invitation:
        """The coordinator's address and keys.

        Raises:
            UsageError: there is none.
        """
        path = self.folder / "invitation.json"
        try:
            return parse(path.read_bytes(), Invitation)
        except FileNotFoundError:
            raise UsageError(
                f"There is no invitation {path}", do="Ask the coordinator for invitation.json"
            ) from None

    @cached_property
    def keys(self) -> PrivateKeys:
        """The site's private keys; SMILE_PASSPHRASE_FILE, or a person at the terminal, gives their passphrase.

        Raises:
            KeyFileError: missing, or open to other users; protected, and there is no passphrase or a wrong one.
        """
        return PrivateKeys.load(self._key, self.passphrase)

    @cached_property
    def passphrase(self) -> Passphrase | None:
        """What opens the site's own key; a person is asked once. A changed key has the same."""
        return passphrase_for(self._key)

    @property
    def _key(self) -> Path:
        return self.folder / "keys" / "site.key"

    def reread(self) -> None:
        """Take in keys and an invitation that another command has changed; to be called under the site's lock.

        Raises:
            KeyFileError: the keys have changed, and cannot be opened.
        """
        paths = {"keys": self._key, "invitation": self.folder / "invitation.json"}
        stamps: dict[str, tuple[int, ...]] = self.__dict__.setdefault("_stamps", {})
        for name, path in paths.items():
            now = stamp(path)
            if stamps.get(name) == now:
                continue
            before, stamps[name] = stamps.get(name), now
            loaded = self.__dict__.pop(name, None)
            if name == "keys" and loaded is not None and before is not None:
                self._load_again()

    def _load_again(self) -> None:
        try:
            _ = self.keys
        except KeyFileError as error:
            raise KeyFileError(
                "This site's keys have changed, and the new ones cannot be opened here",
                why=error.what,
                do="Start site-agent run again, and give it the passphrase of the new keys",
            ) from None

    @property
    def node_key(self) -> Path:
        """The Flower node's private key; it proves a connection, not a release."""
        return self.folder / "flower" / "node.key"

    @property
    def exchange(self) -> Path:
        """The only folder that the Flower processes may see."""
        return self.folder / "exchange"

    @property
    def work(self) -> Path:
        """Where coded events and counts lie while a release is prepared."""
        return self.path(self.config.machine.work)

    def path(self, name: str) -> Path:
        """A path of the configuration, relative to the home folder."""
        return self.folder / Path(name).expanduser()

    def policy(self) -> Policy:
        """The site's floors: for each, the higher of the study's and the site's own.

        A wider rounding and a lower dimension are the stricter ones. `Policy.at` gives those in force at the site's size.
        """
        study, own = self.study, self.config.policy
        return Policy(
            min_code_patients=max(study.privacy.min_code_patients, own.min_code_patients),
            min_pair_patients=max(study.privacy.min_pair_patients, own.min_pair_patients),
            margin_rounding=max(study.privacy.margin_rounding, own.margin_rounding),
            max_dim=min(study.embedding.dim, own.max_dim or study.embedding.dim),
            sticky_patients=max(study.privacy.sticky_patients, own.sticky_patients),
            min_changed_patients=max(study.privacy.min_changed_patients, own.min_changed_patients),
            small_site_patients=max(study.privacy.small_site_patients, own.small_site_patients),
            small_site_pair_patients=max(
                study.privacy.small_site_pair_patients, own.small_site_pair_patients
            ),
        )
