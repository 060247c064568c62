"""The only door to the network: a TLS reverse proxy that lets SuperNodes through to their API.

A SuperLink serves its node, control and runtime APIs on one port, and whoever reaches the
latter two can start runs and take the ServerApp's place. So the SuperLink listens on the
loopback interface, and this proxy passes ten paths of the Fleet API and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys
from asyncio import sslproto
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from protocol import logs

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

# What a registered SuperNode calls, and the largest body of each. Arrays travel as objects of
# 5 MiB. A message announces its objects (about 70 bytes each), so its limit bounds how much
# a hostile node can make the SuperLink store: some hundred objects for each open question.
_SMALL, _OBJECT = 8 << 10, 6 << 20
LIMITS = {
    "/v1/fleet/activate-node": _SMALL,
    "/v1/fleet/deactivate-node": _SMALL,
    "/v1/fleet/send-node-heartbeat": _SMALL,
    "/v1/fleet/pull-messages": _SMALL,
    "/v1/fleet/push-messages": _SMALL,
    "/v1/fleet/get-run": _SMALL,
    "/v1/fleet/get-fab": _SMALL,
    "/v1/fleet/push-object": _OBJECT,
    "/v1/fleet/pull-object": _SMALL,
    "/v1/fleet/confirm-message-received": _SMALL,
}
MAX_CONNECTIONS = 128
LOOK_SECONDS = 1.0
"""Between two looks at the certificate's files."""
READ_BYTES = 32 << 10
"""Buffer of each connection. asyncio's own is 256 KiB, and a SuperNode keeps several connections open."""
BODY_SECONDS = 120.0
"""For one body; then 408, so that a slow sender cannot hold its place for ever."""

# RFC 9110 section 7.6.1, and what the two servers compute themselves.
_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
            b"host",
            b"content-length",
            b"date",
            b"server",
        ),
    )
)

_log = logging.getLogger("coordinator.flower.proxy")


class _Refused(Exception):  # noqa: N818  (an answer, not a failure)
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class FleetProxy:
    """ASGI application; `upstream` sends to the SuperLink and nowhere else."""

    def __init__(self, upstream: httpx.AsyncClient) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            await self._forward(scope, receive, send)
        except _Refused as refused:
            client = (scope.get("client") or ("?",))[0]
            target = bytes(scope.get("raw_path") or scope["path"].encode())[:200]
            _log.warning("%s: refused %s %r from %s", refused.status, scope["method"], target, client)
            await _answer(send, refused.status)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The path as it was sent, byte for byte, is one of ten. So nothing has to be
        # normalised: /v1/fleet/../control, %2e%2e and // are simply other paths.
        path = bytes(scope.get("raw_path") or b"").decode("latin-1")
        limit = LIMITS.get(path)
        if limit is None or scope["path"] != path or scope["query_string"]:
            raise _Refused(404)
        if scope["method"] != "POST":
            raise _Refused(405)
        body = await _body(scope, receive, limit)
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _HOP]
        started = False
        try:
            async with self._upstream.stream("POST", path, content=body, headers=headers) as response:
                # A SuperLink whose database is locked says 500. SuperNodes give up after that, but try
                # again after 503.
                status = 503 if response.status_code == 500 else response.status_code
                kept = [(n.lower(), v) for n, v in response.headers.raw if n.lower() not in _HOP]
                await send({"type": "http.response.start", "status": status, "headers": kept})
                started = True
                async for chunk in response.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except httpx.TransportError:
            if started:
                raise  # the node sees a cut answer and asks again
            # SuperNodes try again after 503, so a SuperLink that restarts is no failure of theirs.
            raise _Refused(503) from None


async def _body(scope: Scope, receive: Receive, limit: int) -> bytes:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and int(value) > limit:
            raise _Refused(413)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise _Refused(400)
                body += event.get("body", b"")
                if len(body) > limit:
                    raise _Refused(413)
                if not event.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise _Refused(408) from None


async def _answer(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def serve(*, superlink: str, ca: str, certificate: str, key: str, host: str, port: int) -> None:
    """Serve until the process is ended; a new certificate in the same files is taken without a pause.

    Args:
        superlink: host:port of the SuperLink on this machine.
        ca: PEM of the authority of its certificate.
        certificate, key: PEM files that sites see.
        host, port: where to listen.
    """
    # No parameter of create_server reaches it; without the attribute it would stay what it is.
    sslproto.SSLProtocol.max_size = READ_BYTES
    upstream = httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=ssl.create_default_context(cafile=ca),
        timeout=120,
        trust_env=False,
        limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
    )
    config = uvicorn.Config(
        FleetProxy(upstream),
        host=host,
        port=port,
        http="h11",  # the stricter of uvicorn's two parsers
        ws="none",
        lifespan="off",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        limit_concurrency=MAX_CONNECTIONS,
        server_header=False,
        proxy_headers=False,
        access_log=False,
        log_level="warning",
        log_config=None,
    )
    config.load()

    async def run() -> None:
        watching = asyncio.create_task(follow_certificate(config.ssl, Path(certificate), Path(key)))
        try:
            await uvicorn.Server(config).serve()
        finally:
            watching.cancel()

    asyncio.run(run())


async def follow_certificate(context: ssl.SSLContext | None, certificate: Path, key: Path) -> None:
    """Give a live context the certificate of two files whenever they change, until cancelled.

    New connections get the new one; those that are open keep theirs, and go on.

    Args:
        context: that the server listens with, and that holds the certificate as it is now.
        certificate, key: PEM files, each replaced as a whole.
    """
    seen = _stamp(certificate, key)
    while context is not None:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := _stamp(certificate, key)) == seen:
            continue
        try:
            # Tried elsewhere first: between the two replacements the files do not fit, and a failure
            # half-way would leave the live context without any.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            _log.warning("the new certificate cannot be taken yet: %s", error)
            continue
        seen = now
        _log.info("took the new certificate %s", certificate)


def _stamp(*paths: Path) -> tuple[tuple[int, int], ...]:
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((status.st_mtime_ns, status.st_ino))
    return tuple(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.flower.proxy", description="Let SuperNodes through to the SuperLink."
    )
    parser.add_argument("--superlink", required=True, help="host:port of the SuperLink")
    parser.add_argument("--ca", required=True, help="PEM of the coordinator's authority")
    parser.add_argument("--certificate", required=True, help="PEM of the server certificate")
    parser.add_argument("--key", required=True, help="PEM of its key")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    arguments = parser.parse_args(argv)
    logs.configure("fleet-proxy")
    serve(**vars(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
