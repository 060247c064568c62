"""The gate before the application: host, sender, rate, size and time of each request, and the headers of each answer.

Plain ASGI rather than Starlette's `BaseHTTPMiddleware`, which starts a task and copies the body of every answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.tables import utc_now
from coordinator.web.access import Access, Person, not_signed_in, too_many
from coordinator.web.errors import unforeseen
from coordinator.web.fresh import Fresh
from coordinator.web.limits import Buckets
from coordinator.web.problems import ServiceError, error_response
from coordinator.web.sessions import COOKIE, SECURE_COOKIE, Sessions
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import ANONYMOUS, KnownTokens, check_name
from protocol.errors import UsageError

_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with it browsers send our own forms with `Origin: null`, as if another site had made them.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # What is for one person is kept by no proxy, and asked for again with its ETag.
    "cache-control": "private, no-cache",
    "vary": "Authorization, Cookie",
}
_RAW_HEADERS = {name.encode(): value.encode() for name, value in _HEADERS.items()}
_HSTS = (b"strict-transport-security", b"max-age=31536000")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_STEADY = 600.0
"""Seconds that sending an answer may take: a download over a slow line is no attack."""

_LOGGER = logging.getLogger("uvicorn.error")
Log = Callable[[dict[str, Any]], None]


class Gate:
    """ASGI middleware in front of everything else.

    Args:
        app: what it lets requests through to.
        settings: of the service.
        tokens: that hold now.
        sessions: that browsers have.
        log: takes one record an answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: WebSettings,
        tokens: Fresh[KnownTokens],
        sessions: Sessions,
        log: Log | None = None,
    ) -> None:
        self.app, self.settings, self.tokens, self.sessions, self._log = app, settings, tokens, sessions, log
        self._networks = tuple(ipaddress.ip_network(n) for n in settings.trusted_proxies)
        self._hosts = _LOOPBACK | {h.lower() for h in settings.hosts} | {_bracketed(settings.listen)}
        self._requests = Buckets(settings.requests_per_second, settings.burst)
        self._strangers = Buckets(settings.logins_per_minute / 60, max(10, settings.logins_per_minute))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; websockets are refused, there are none."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, https=scope["scheme"] == "https")
        # Every GET has its HEAD; endpoints that send files leave out reading them.
        head = scope["method"] == "HEAD"
        scope = {**scope, "method": "GET"} if head else scope
        began = time.perf_counter()
        headers = Headers(scope=scope)
        try:
            access = await self._let_in(scope, headers, answer)
            scope.setdefault("state", {}).update(access=access, head=head)
            body = _Body(receive, self.settings, headers)
            await self._answered(scope, body, answer)
        except ServiceError as error:
            await self._refuse(error, scope, receive, answer)
        except Exception:
            if answer.status:
                raise
            # Here rather than in Starlette's outermost handler, whose answers would come without our headers.
            _LOGGER.exception("A request of %s failed", _route(scope))
            await unforeseen(Request(scope))(scope, receive, answer)
        finally:
            self._record(scope, answer, time.perf_counter() - began)

    async def _answered(self, scope: Scope, body: _Body, answer: _Answer) -> None:
        task = asyncio.timeout(2 * self.settings.request_seconds)
        answer.when_begun = lambda: task.reschedule(asyncio.get_running_loop().time() + _STEADY)
        try:
            async with task:
                await self.app(scope, body, answer)
        except TimeoutError:
            if answer.status:
                raise
            raise ServiceError(
                504,
                f"No answer was found in {2 * self.settings.request_seconds:g} s",
                do="Ask for less, or try again",
            ) from None
        finally:
            # What is answered from here on has no such clock.
            answer.when_begun = None

    async def _refuse(self, error: ServiceError, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if answer.status:
            raise error
        await error_response(error, scope["path"])(scope, receive, answer)

    # --- Who -------------------------------------------------------------------------------------------

    async def _let_in(self, scope: Scope, headers: Headers, answer: _Answer) -> Access:
        self._check_host(headers)
        peer = scope["client"][0] if scope.get("client") else ""
        trusted = self._trusts(peer)
        address = self._sender(peer, headers) if trusted else peer
        if trusted and headers.get("x-forwarded-proto", "").lower() == "https":
            answer.https = True
        access = await self._identify(headers, trusted=trusted, address=address, https=answer.https)
        key = access.person.name if access.person and access.how != "anonymous" else f" {_line(address)}"
        if wait := self._requests.take(key):
            raise too_many(wait, "requests")
        return access

    async def _identify(self, headers: Headers, *, trusted: bool, address: str, https: bool) -> Access:
        settings = self.settings
        if settings.identity_header:
            named = [v for v in headers.getlist(settings.identity_header) if v.strip()]
            if named:
                person = self._named_by_proxy(named, trusted=trusted)
                return Access(person, "proxy", address, https, f"proxy {person.name}")
        if given := headers.get("authorization"):
            scheme, _, token = given.partition(" ")
            known = await self.tokens.get()
            found = known.of(token.strip(), utc_now()) if scheme.lower() == "bearer" else None
            if found is None:
                if wait := self._strangers.take(_line(address)):
                    raise too_many(wait, "wrong tokens from this address")
                raise not_signed_in("the token is unknown, has expired or was revoked")
            return Access(Person(found.name, found.role), "token", address, https)
        cookie = cookie_parser(headers.get("cookie", "")).get(SECURE_COOKIE if https else COOKIE)
        session = self.sessions.read(cookie) if cookie else None
        if session and (found := (await self.tokens.get()).numbered(session.token, utc_now())):
            return Access(Person(found.name, found.role), "cookie", address, https, f"cookie {session.nonce}")
        if settings.anonymous:
            return Access(Person(ANONYMOUS, settings.anonymous), "anonymous", address, https)
        return Access(None, "", address, https)

    def _named_by_proxy(self, named: list[str], *, trusted: bool) -> Person:
        header = self.settings.identity_header
        if not trusted:
            raise ServiceError(
                401,
                f"The header {header} is believed from trusted proxies only",
                why="this request came from elsewhere",
                do="Go through the proxy, or list its address in [web] trusted_proxies",
            )
        name = named[0].strip()
        try:
            check_name(name)
        except UsageError as error:
            raise ServiceError(401, error.what, why=error.why) from None
        if len(named) > 1:
            raise ServiceError(401, f"The header {header} does not name one person")
        role = self.settings.role_of.get(name) or self.settings.role_of.get("*")
        if role is None:
            raise ServiceError(
                403, f"{name} has no role here", do="Ask the coordinator to add the name to [web.role_of]"
            )
        return Person(name, role)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site whose name was pointed at this machine would otherwise read as its visitor."""
        host = headers.get("host", "").lower()
        name = (
            host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        )
        if name not in self._hosts:
            raise ServiceError(
                421, "This service does not answer to that host name", do="Name it in [web] hosts"
            )

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in n for n in self._networks)

    def _sender(self, peer: str, headers: Headers) -> str:
        """The last address in X-Forwarded-For that no trusted proxy has; what stands before it is hearsay."""
        for hop in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
            if hop.strip() and not self._trusts(hop.strip()):
                return hop.strip()[:64]
        return peer

    def _record(self, scope: Scope, answer: _Answer, seconds: float) -> None:
        if self._log is None:
            return
        access: Access | None = scope.get("state", {}).get("access")
        record = {
            "method": scope["method"],
            # The pattern, not the path: what somebody looks up is theirs.
            "route": _route(scope),
            "status": answer.status,
            "bytes": answer.bytes,
            "ms": round(seconds * 1000, 1),
            "person": access.person.name if access and access.person else "",
        }
        if answer.status in {401, 403, 421, 429}:
            record["address"] = access.address if access else (scope.get("client") or ("",))[0]
        self._log(record)


class _Answer:
    """Sends, with the headers that every answer has; remembers status and size."""

    def __init__(self, send: Send, *, https: bool) -> None:
        self._send, self.https = send, https
        self.status, self.bytes = 0, 0
        self.when_begun: Callable[[], None] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.when_begun:
                self.when_begun()
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            given += [(n, v) for n, v in _RAW_HEADERS.items() if n not in names]
            if self.https:
                given.append(_HSTS)
            message = {**message, "headers": given}
        elif message["type"] == "http.response.body":
            self.bytes += len(message.get("body", b""))
        await self._send(message)


class _Body:
    """Receives a body that is neither too large nor too slow."""

    def __init__(self, receive: Receive, settings: WebSettings, headers: Headers) -> None:
        self._receive, self._settings = receive, settings
        self._left, self._ended = settings.body_bytes, False
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > settings.body_bytes:
            raise self._too_large()
        self._until = time.monotonic() + settings.request_seconds

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise ServiceError(
                408, f"The body did not arrive within {self._settings.request_seconds:g} s"
            ) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise self._too_large()
        self._ended = not message.get("more_body", False)
        return message

    def _too_large(self) -> ServiceError:
        return ServiceError(
            413, f"The body is larger than {self._settings.body_bytes:,} bytes", do="Send it in parts"
        )


def _route(scope: Scope) -> str:
    """The pattern that the path fits; "" for none."""
    return str(getattr(scope.get("route"), "path", ""))


def _line(address: str) -> str:
    """What one subscriber has: an IPv4 address, or a /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


def _bracketed(listen: str) -> str:
    return f"[{listen}]" if ":" in listen else listen.lower()
