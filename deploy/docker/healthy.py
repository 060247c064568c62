"""Whether the service of this container runs; exit code 0 or 1. Without anything of the service's own that could fail with it.

python healthy.py lock FILE    a process holds the lock: running.lock of a site's home folder, or of a connection's `work`
python healthy.py fleet HOME   the port that sites dial answers, with the coordinator's certificate
python healthy.py web HOME     the web service answers
"""

import fcntl
import ssl
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

SECONDS = 5


def held(lock: Path) -> bool:
    """Whether somebody holds it."""
    with lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def answers(url: str, expected: int, authority: Path | None = None) -> bool:
    """Whether a request has this answer."""
    context = ssl.create_default_context(cafile=authority) if authority else None
    # Its only address is this container: no proxy of the environment is asked.
    open_ = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with open_.open(url, timeout=SECONDS) as response:
            return bool(response.status == expected)
    except urllib.error.HTTPError as error:
        return error.code == expected


def main(kind: str, path: Path) -> bool:
    """One check."""
    if kind == "lock":
        return held(path)
    config = tomllib.loads((path / "coordinator.toml").read_text())
    if kind == "fleet":
        port = config["address"].rpartition(":")[2]
        return answers(f"https://127.0.0.1:{port}/", 404, path / "flower" / "tls" / "ca.crt")
    return answers(f"http://127.0.0.1:{config.get('web', {}).get('port', 8480)}/healthz", 200)


if __name__ == "__main__":
    try:
        sys.exit(0 if main(sys.argv[1], Path(sys.argv[2])) else 1)
    except (OSError, ValueError, KeyError, IndexError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
