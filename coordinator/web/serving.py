"""Running the web service: uvicorn in a thread, a log of answers, and a line about what listens where."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import ssl
import sys
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from coordinator.config import Home
from coordinator.web.app import create_app
from coordinator.web.gate import Log
from coordinator.web.settings import WebSettings
from protocol.console import err
from protocol.errors import FederationError, UsageError

_START_SECONDS = 600.0
_LOG_BYTES, _LOGS = 20 << 20, 5
_HEAD_SECONDS = 10.0
_CONNECTIONS = 1000
_SWITCH_SECONDS = 0.0005


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, which by itself waits for ever for the head of a request: a thousand idle connections would do."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._waiting = self.loop.call_later(_HEAD_SECONDS, transport.close)

    def on_message_begin(self) -> None:
        """A request begins, on a connection that may have been kept: its head has to arrive in time too."""
        super().on_message_begin()
        self._waiting.cancel()
        self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def on_headers_complete(self) -> None:
        """The head has arrived; the gate watches the body."""
        self._waiting.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._waiting.cancel()
        super().connection_lost(exc)


class WebService:
    """The web service of one coordinator, in a thread of this process.

    The Flower services are processes of their own, so this one has the interpreter to itself.

    Args:
        home: of the coordinator; its private key must be open, as reviewers' decisions are signed with it.
        settings: taken in place of those in `coordinator.toml`.
    """

    def __init__(self, home: Home, *, settings: WebSettings | None = None) -> None:
        self.home, self.settings = home, settings or home.config.web
        _check_safe(self.settings)
        self._server: uvicorn.Server | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Listen, and return when the newest version is open.

        Raises:
            UsageError: the certificate cannot be read, or somebody else has the port.
            FederationError: it does not start.
        """
        self.app: FastAPI = create_app(
            self.home, settings=self.settings, log=access_log(self.home.folder / "web-access.jsonl")
        )
        config = uvicorn.Config(
            self.app,
            host=self.settings.listen,
            port=self.settings.port,
            # uvloop takes in one connection a turn: while 200 readers keep it busy, a new one would wait for seconds.
            loop="asyncio",
            http=PatientProtocol,
            ws="none",
            # Whose address a request has, the gate decides.
            proxy_headers=False,
            server_header=False,
            access_log=False,
            # A warning for each line that is no HTTP would let anybody fill the log.
            log_level="error",
            log_config=None,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            backlog=1024,
        )
        config.load()
        # A search in a thread holds the interpreter for an interval each time that the event loop lets go of it.
        sys.setswitchinterval(_SWITCH_SECONDS)
        if self.settings.certificate:
            config.ssl = self._tls()
        self._listen(config)

    def _listen(self, config: uvicorn.Config) -> None:
        try:
            socket = config.bind_socket()
        except SystemExit:
            raise UsageError(
                f"Nothing can listen on {self.settings.listen}:{self.settings.port}",
                why="another program has the port, or this machine has no such address",
                do="Set listen and port under [web] in coordinator.toml",
            ) from None
        self.port: int = socket.getsockname()[1]
        server = self._server = uvicorn.Server(config)
        self._thread = Thread(target=server.run, args=([socket],), name="web", daemon=True)
        self._thread.start()
        waited = 0.0
        while not server.started and self._thread.is_alive() and waited < _START_SECONDS:
            self._thread.join(0.05)
            waited += 0.05
        if trouble := self.app.state.shelf.trouble:
            err.print(f"The newest version cannot be served: {trouble}", markup=False)
        if not server.started:
            self.stop()
            raise FederationError("The web service did not start", do="Read what it printed above")

    def stop(self) -> None:
        """End what was started; answers under way have some seconds."""
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(15)
        self._server = self._thread = None

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def url(self) -> str:
        """Where it listens."""
        name = f"[{self.settings.listen}]" if ":" in self.settings.listen else self.settings.listen
        return f"{'https' if self.settings.certificate else 'http'}://{name}:{self.port}"

    def _tls(self) -> ssl.SSLContext:
        certificate, key = (self.home.folder / p for p in (self.settings.certificate, self.settings.key))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"The certificate {certificate} and key {key} cannot be used", why=str(error)
            ) from None
        return context


class _PrivateLog(RotatingFileHandler):
    """Each of its files is readable for its owner only."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).touch(mode=0o600, exist_ok=True)
        return super()._open()


def access_log(path: Path) -> Log:
    """A log of one JSON line an answer, which is rotated; nobody else may read it."""
    handler = _PrivateLog(path, maxBytes=_LOG_BYTES, backupCount=_LOGS, encoding="utf-8")
    logger = logging.Logger("smile.web.access")
    logger.addHandler(handler)

    def log(record: dict[str, Any]) -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        logger.info("%s", json.dumps({"at": at} | record, ensure_ascii=True))

    return log


def _check_safe(settings: WebSettings) -> None:
    """Tokens must not cross a network in the clear.

    Raises:
        UsageError: they would.
    """
    try:
        loopback = ipaddress.ip_address(settings.listen).is_loopback
    except ValueError:
        loopback = settings.listen == "localhost"
    if not loopback and not settings.certificate and not settings.trusted_proxies:
        raise UsageError(
            f"The web service would listen on {settings.listen} without TLS",
            why="tokens and what is read would cross the network in the clear",
            do="Set certificate and key under [web], or listen on 127.0.0.1 behind a proxy that has TLS",
        )
