"""From a folder, a coordinator's home or a service to a verified release."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from coordinator.client.release import MapRelease
from coordinator.client.remote import fetch_release
from coordinator.client.trust import UNVERIFIED, TrustGiven, trusted
from coordinator.config import Home
from coordinator.library import Library, OpenRelease
from protocol.errors import ProtocolError, UsageError
from protocol.published import MANIFEST, MAX_MANIFEST


class UnverifiedWarning(UserWarning):
    """A release was loaded without checking who signed it."""


def load_release(
    url_or_path: str | Path,
    *,
    trust: TrustGiven = None,
    token: str = "",
    version: int | None = None,
    cache: Path | None = None,
) -> MapRelease:
    """Load a published version, after checking that the coordinator signed it and that no file of it was altered.

    Args:
        url_or_path: address of a coordinator's service; or a release folder, a folder that holds some (`results` at a site), or
            the home folder of a coordinator.
        trust: whose signature it must have: `invitation.json` or a file of public keys, by its path; the coordinator's
            fingerprint, as text; `PublicKeys`, or `VerifiedKeys`. "unverified" loads it whoever signed it, with a warning.
            A coordinator's home trusts its own keys if nothing is given; in all other places something must be.
        token: for the service; the environment's SMILE_TOKEN if left out, which keeps it out of notebooks.
        version: the number; the newest that stands if left out.
        cache: where downloaded versions are kept; `~/.cache/smile-federation` (or below XDG_CACHE_HOME) if left out.

    Raises:
        UsageError: there is no such folder or version, or nobody said whom to trust.
        ProtocolError: a file was altered, or the version withdrawn; or the service cannot be used.
        EnvelopeError: another key has signed it.

    A version is downloaded once. Each call asks the service whether it still stands.
    """
    address = str(url_or_path)
    if re.match(r"(?i)https?://", address):
        folder, keys = fetch_release(
            address,
            trust=trust,
            token=token or os.environ.get("SMILE_TOKEN", ""),
            version=version,
            cache=cache or _cache(),
        )
        return _opened(OpenRelease.load(folder, trust=keys), trust)
    path = Path(url_or_path).expanduser()
    if (path / "coordinator.toml").is_file():
        library = Library(Home(path))
        if trust is None:
            return MapRelease(library.open(version), verified=True)
        path = library.version(version).folder
    elif not (path / MANIFEST).exists():
        path = _chosen(path, version)
    opened = OpenRelease.load(path, trust=trusted(trust, _manifest(path), where=str(path)))
    if version is not None and opened.manifest.version != version:
        raise UsageError(
            f"{path} holds version {opened.manifest.version}, not {version}", do="Name another folder"
        )
    return _opened(opened, trust)


def _opened(release: OpenRelease, trust: TrustGiven) -> MapRelease:
    verified = trust != UNVERIFIED
    if not verified:
        warnings.warn(
            f"Nobody checked who signed version {release.manifest.version}: it is whole, and may be forged",
            UnverifiedWarning,
            stacklevel=3,
        )
    return MapRelease(release, verified=verified)


def _chosen(path: Path, version: int | None) -> Path:
    """The release folder of a version below a folder of them, named as coordinator and site name them: v1, v2, ..."""
    found = {int(p.name[1:]): p for p in path.glob("v*") if re.fullmatch(r"v[1-9][0-9]{0,8}", p.name)}
    if version is None:
        # One that was erased or withdrawn is marked; an older one may stand.
        standing = {n: p for n, p in found.items() if not any(p.glob("withdrawn-*.json"))}
        number = max(standing or found, default=None)
    else:
        number = version if version in found else None
    if number is None:
        have = f"it holds versions {', '.join(map(str, sorted(found)))}" if found else ""
        what = f"a release of version {version}" if version is not None and found else "a published release"
        raise UsageError(
            f"{path} is not the folder of {what}",
            why=have or "it has no manifest.json, no v1, v2, ..., and no coordinator.toml",
            do="Name a folder such as releases/v1, or the address of the service, beginning with https://",
        )
    return found[number]


def _manifest(folder: Path) -> bytes:
    try:
        with (folder / MANIFEST).open("rb") as stream:
            return stream.read(MAX_MANIFEST + 1)
    except OSError:
        raise ProtocolError(
            f"The release in {folder} has no manifest.json",
            why="it was erased, or copied in part",
            do="Take another version, or fetch it again",
        ) from None


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "smile-federation"
