"""Sessions of browsers: signed cookies that name a token by its number, and proof that a form is ours."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response

from coordinator.web.tokens import Token
from protocol.errors import KeyFileError
from protocol.files import write_atomic

COOKIE = "smile_session"
SECURE_COOKIE = "__Host-smile_session"
"""The prefix makes browsers refuse it without https, for other paths, or for sister domains."""
_DAY = 86_400


@dataclass(frozen=True)
class Session:
    """What a cookie that we signed says.

    Attributes:
        token: number of the token that it began with.
        nonce: random; the session's forms are bound to it.
    """

    token: int
    nonce: str


class Sessions:
    """Signs and reads cookies.

    Args:
        key: 32 random bytes.
        hours: that a session lasts.
        clock: seconds since 1970; for tests.
    """

    def __init__(self, key: bytes, *, hours: float, clock: Callable[[], float] = time.time) -> None:
        self._key, self._seconds, self._clock = key, hours * 3600, clock

    def begin(self, response: Response, token: Token, *, https: bool) -> None:
        """Give the browser a cookie: not for scripts, and sent by pages of this service only."""
        payload = f"{token.number}.{int(self._clock())}.{secrets.token_urlsafe(16)}"
        response.set_cookie(
            SECURE_COOKIE if https else COOKIE,
            f"{payload}.{self._mac('session', payload)}",
            max_age=int(self._seconds),
            path="/",
            secure=https,
            httponly=True,
            samesite="strict",
        )

    def end(self, response: Response) -> None:
        """Take the cookie back."""
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        response.delete_cookie(SECURE_COOKIE, path="/", secure=True, httponly=True, samesite="strict")

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None if we did not sign it, or it is too old."""
        payload, _, mac = cookie.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac("session", payload).encode()):
            return None
        number, begun, nonce = payload.split(".")
        age = self._clock() - int(begun)
        return Session(int(number), nonce) if age < self._seconds else None

    def csrf(self, secret: str) -> str:
        """Proof for forms of who has this secret; good today and tomorrow."""
        return self._csrf(secret, self._day)

    def csrf_holds(self, given: str, secret: str) -> bool:
        """Whether `csrf` gave it."""
        days = (self._day, self._day - 1)
        return any(hmac.compare_digest(given.encode(), self._csrf(secret, day).encode()) for day in days)

    @property
    def _day(self) -> int:
        return int(self._clock() // _DAY)

    def _csrf(self, secret: str, day: int) -> str:
        return self._mac("csrf", f"{day}.{secret}")

    def _mac(self, purpose: str, text: str) -> str:
        mac = hmac.new(self._key, f"smile/{purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256)
        return base64.urlsafe_b64encode(mac.digest()).decode().rstrip("=")


def session_key(path: Path) -> bytes:
    """The key that signs cookies; made when it is first asked for, so that sessions outlive a restart.

    Raises:
        KeyFileError: others may read the file, or it holds something else.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        write_atomic(path, secrets.token_bytes(32))
        key = path.read_bytes()
    if path.stat().st_mode & 0o077 or len(key) != 32:
        raise KeyFileError(
            f"The key of the web service's sessions in {path} is not 32 bytes that nobody else may read",
            do=f"Delete it: a new one is made, and everybody signs in again. Or chmod 600 {path}",
        )
    return key
