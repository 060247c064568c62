"""API tokens: 256 random bits that their holder sees once; the database has their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from coordinator.store import Store
from coordinator.tables import AccessToken, utc_now
from coordinator.web.settings import ROLES, Role
from protocol.errors import UsageError

PREFIX = "smile_"
"""Programs that look for secrets in files and logs know one by it."""
ANONYMOUS = "anonymous"
"""Who has not signed in, where that is allowed."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


@dataclass(frozen=True)
class Token:
    """What the database knows of a token.

    Attributes:
        number: of the token, for `revoke`.
        name: of the person who holds it.
        role: what that person may do with it.
        digest: SHA-256 of the token, in hex.
        created: UTC, without a zone, as the other times.
        expires: None for never.
        revoked: None while it holds.
    """

    number: int
    name: str
    role: Role
    digest: str
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def stands(self, now: datetime) -> bool:
        """Whether it lets its holder in."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Tokens:
    """The tokens of one study's service.

    Args:
        store: of the coordinator.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, name: str, role: str, *, days: int | None = None) -> str:
        """Make a token.

        Args:
            name: of the person: letters, digits and `._@+-`, at most 64.
            role: one of `ROLES`.
            days: after which it ends; None for never.

        Returns:
            the token, which is kept nowhere.

        Raises:
            UsageError: the name or the role is none.
        """
        check_name(name)
        if role not in ROLES:
            raise UsageError(f"There is no role {role!r}", do=f"Take one of {', '.join(ROLES)}")
        token = PREFIX + secrets.token_urlsafe(32)
        expires = utc_now() + timedelta(days=days) if days is not None else None
        with self.store.begin() as session:
            session.add(AccessToken(name=name, role=role, digest=digest_of(token), expires=expires))
        return token

    def all(self) -> list[Token]:
        """Every token that was ever made, the first one first."""
        a = AccessToken
        # Columns rather than objects: a running service reads them every second.
        columns = (a.number, a.name, a.role, a.digest, a.created, a.expires, a.revoked)
        with self.store.begin() as session:
            rows = session.execute(select(*columns).order_by(a.number))
            return [Token(*row) for row in rows]  # type: ignore[arg-type]

    def revoke(self, name: str, *, number: int | None = None) -> list[Token]:
        """End a person's tokens, or one of them; sessions that began with them end too.

        Raises:
            UsageError: there is none that still holds.
        """
        now = utc_now()
        with self.store.begin() as session:
            query = select(AccessToken).where(AccessToken.name == name, AccessToken.revoked.is_(None))
            rows = [r for r in session.scalars(query) if number is None or r.number == number]
            if not rows:
                which = name if number is None else f"{name} with the number {number}"
                raise UsageError(
                    f"There is no token of {which} to revoke", do="List them with coordinator token list"
                )
            for row in rows:
                row.revoked = now
            return [_token(row) for row in rows]


class KnownTokens:
    """The tokens as they were read a moment ago."""

    def __init__(self, tokens: list[Token]) -> None:
        self._by_digest: Mapping[str, Token] = {t.digest: t for t in tokens}
        self._by_number: Mapping[int, Token] = {t.number: t for t in tokens}

    def of(self, token: str, now: datetime) -> Token | None:
        """The record of a token that holds; None for any other text."""
        digest = digest_of(token)
        found = self._by_digest.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest) or not found.stands(now):
            return None
        return found

    def numbered(self, number: int, now: datetime) -> Token | None:
        """The token of a number, if it holds."""
        found = self._by_number.get(number)
        return found if found is not None and found.stands(now) else None


def digest_of(token: str) -> str:
    """What is stored: as many bits are random as the digest has, so it needs no salt and no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def check_name(name: str) -> None:
    """Raise if this is no name of a person.

    Raises:
        UsageError: it has other characters, or too many.
    """
    if not _NAME.fullmatch(name) or name == ANONYMOUS:
        raise UsageError(
            f"The name {name[:80]!r} cannot be a person's",
            why="it goes into signed records and logs",
            do="Take letters, digits and . _ @ + - only, at most 64 of them, as ada@north.example",
        )


def _token(row: AccessToken) -> Token:
    return Token(row.number, row.name, row.role, row.digest, row.created, row.expires, row.revoked)  # type: ignore[arg-type]
