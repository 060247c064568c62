"""Downloading a version from a coordinator's service: the manifest first, and nothing that it does not name."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from coordinator.client.trust import TrustGiven, trusted
from protocol.errors import EnvelopeError, ProtocolError, UsageError
from protocol.files import atomic_file, write_atomic
from protocol.messages import FileSpec, PublishedManifest
from protocol.published import MANIFEST, MAX_MANIFEST, Trust, verify_folder, verify_manifest

_API: Final = "/api/v1/releases"
_SECONDS: Final = 60.0
_MOST_LISTED: Final = 16 << 20


def fetch_release(
    url: str, *, trust: TrustGiven, token: str, version: int | None, cache: Path
) -> tuple[Path, Trust]:
    """The folder of a verified version on this machine, and the keys that signed it.

    Files lie in a folder named by the manifest's digest: what was verified once is only compared again.

    Args:
        url: of the service, with or without a path below which it lies.
        trust: as for `load_release`.
        token: sent as a bearer token; "" for none.
        version: its number; the newest that stands if None.
        cache: made if need be, for its owner alone.

    Raises:
        UsageError: no such version, or the token would travel in the clear.
        ProtocolError: the service cannot be reached, refuses, or gives other files than the manifest names.
        EnvelopeError: another key has signed the manifest.
    """
    _check_address(url, token)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # A redirect could take the token elsewhere: none is followed.
    with httpx.Client(
        base_url=url.rstrip("/"), headers=headers, timeout=_SECONDS, follow_redirects=False
    ) as service:
        number = _number(service, version)
        data = _read(service, f"{_API}/{number}/files/{MANIFEST}", MAX_MANIFEST)
        where = f"version {number} at {url}"
        keys = trusted(trust, data, where=where)
        manifest = verify_manifest(data, keys, where=where)
        if manifest.version != number:
            raise ProtocolError(
                f"The service at {url} gave version {manifest.version} for version {number}",
                do="Tell the coordinator; nothing was loaded",
            )
        folder = cache / manifest.digest
        if not _holds(folder, data, keys):
            _download(service, number, manifest, data, folder)
            verify_folder(folder, keys)
    return folder, keys


def _check_address(url: str, token: str) -> None:
    parts = urlsplit(url)
    if not parts.hostname:
        raise UsageError(f"{url!r} is not the address of a service", do="Write it as https://hub.example")
    if parts.scheme.lower() == "http" and token and not _loopback(parts.hostname):
        raise UsageError(
            f"The token would travel in the clear to {parts.hostname}",
            why="the address begins with http://",
            do="Use the service's https:// address",
        )


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _number(service: httpx.Client, version: int | None) -> int:
    """The version to load, if the service says that it stands."""
    listed = _listed(service)
    known = {
        line["version"]: line
        for line in listed.get("releases", ())
        if isinstance(line, dict) and isinstance(line.get("version"), int)
    }
    number = listed.get("latest") if version is None else version
    if not isinstance(number, int) or number not in known:
        what = "published version" if version is None else f"version {version}"
        have = ", ".join(map(str, sorted(known))) or "none"
        raise UsageError(f"There is no {what} at {service.base_url}", why=f"published are: {have}")
    if known[number].get("withdrawn"):
        raise ProtocolError(
            f"Version {number} at {service.base_url} was withdrawn",
            why="a site that it was fitted with has left the study",
            do="Use the newest version, and delete your copies of this one",
        )
    return number


def _listed(service: httpx.Client) -> dict[str, Any]:
    with _asked(service, _API) as answer:
        data = _limited(answer, _MOST_LISTED)
    try:
        found = httpx.Response(200, content=data).json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ProtocolError(
            f"What answers at {service.base_url} is not a coordinator's service",
            do="Check the address: the service's pages begin there",
        )
    return found


def _holds(folder: Path, manifest: bytes, keys: Trust) -> bool:
    """Whether a version lies here whole; the manifest may have been signed again, with new keys, since it was fetched."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        write_atomic(folder / MANIFEST, manifest)
        verify_folder(folder, keys)
    except (ProtocolError, EnvelopeError):
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _download(
    service: httpx.Client, number: int, manifest: PublishedManifest, data: bytes, folder: Path
) -> None:
    """Every file that the manifest names; the folder appears whole, by one rename."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        for spec in manifest.files:
            _fetch(service, f"{_API}/{number}/files/{quote(spec.name)}", spec, work / spec.name)
        write_atomic(work / MANIFEST, data)
        try:
            work.rename(folder)
        except OSError:
            # Another notebook was faster: its copy is verified like ours.
            if not (folder / MANIFEST).exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(service: httpx.Client, path: str, spec: FileSpec, target: Path) -> None:
    state, size = hashlib.sha256(), 0
    with _asked(service, path) as answer, atomic_file(target) as stream:
        for block in answer.iter_bytes():
            size += len(block)
            if size > spec.bytes:
                break
            state.update(block)
            stream.write(block)
        if size != spec.bytes or state.hexdigest() != spec.sha256:
            raise ProtocolError(
                f"The file {spec.name} from {service.base_url} is not the one that the manifest names",
                do="Try again; if it happens twice, tell the coordinator",
            )


def _read(service: httpx.Client, path: str, most: int) -> bytes:
    with _asked(service, path) as answer:
        return _limited(answer, most)


def _limited(answer: httpx.Response, most: int) -> bytes:
    data = bytearray()
    for block in answer.iter_bytes():
        data += block
        if len(data) > most:
            raise ProtocolError(f"The answer of {answer.url} is too large", do="Check the address")
    return bytes(data)


@contextmanager
def _asked(service: httpx.Client, path: str) -> Iterator[httpx.Response]:
    try:
        with service.stream("GET", path) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _refused(answer, service)
            yield answer
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ProtocolError(
            f"The service at {service.base_url} cannot be reached",
            why=str(error)[:200] or type(error).__name__,
            do="Check address and network, and try again; nothing was loaded",
        ) from None


def _refused(answer: httpx.Response, service: httpx.Client) -> ProtocolError:
    status = answer.status_code
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        do = "Give token=..., or set SMILE_TOKEN to the token that the coordinator gave you"
    elif status == httpx.codes.TOO_MANY_REQUESTS:
        do = "Wait a minute, and try again"
    elif httpx.codes.is_redirect(status):
        do = f"Use the address that it points to: {answer.headers.get('location', '')[:200]!r}"
    else:
        do = "Check the address; if it is right, tell the coordinator"
    return ProtocolError(f"The service at {service.base_url} answered {status}", why=_said(answer), do=do)


def _said(answer: httpx.Response) -> str:
    """What the service says of its refusal, as application/problem+json."""
    try:
        problem = answer.json()
    except (ValueError, RecursionError):
        return ""
    said = problem.get("what") or problem.get("detail") if isinstance(problem, dict) else ""
    return repr(said)[1:-1][:300] if isinstance(said, str) else ""
