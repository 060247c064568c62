"""Runs the installed ClientApp for a SuperNode in process isolation; never the coordinator's code.

The stock runner unpacks and imports the app bundle (FAB) that the coordinator ships. This one
hashes the bundle's bytes and drops them: a bundle that the site has not listed is refused, and a
listed one only says that the coordinator's side of the conversation is one that the site knows.

It uses Flower's internals (`flwr.supercore`, `flwr.supernode.runtime`), which is why flwr is
pinned to one version; tests/e2e/test_flower_stack.py must pass before the pin moves.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.auth import load_superexec_auth_secret
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from protocol import logs
from site_agent.exchange import Exchange
from site_agent.flower.app import make_app

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 2.0

_log = logging.getLogger("site_agent.flower.runner")


def answer(
    app: ClientApp, message: Message, context: Context, bundle: bytes, allowed: frozenset[str]
) -> Message:
    """The app's reply, or a refusal if the bundle's SHA-256 is not listed; no list allows nothing."""
    sha256 = hashlib.sha256(bundle).hexdigest()
    if sha256 not in allowed:
        _log.warning("refused bundle %s: this site does not list it", sha256)
        reason = f"The site does not list the bundle {sha256}"
        return Message(Error(ErrorCode.INVALID_FAB, reason), reply_to=message)
    try:
        return app(message, context)
    except Exception:
        _log.exception("a message could not be answered")
        return Message(
            Error(
                ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "The site could not answer; the reason is in its log."
            ),
            reply_to=message,
        )


def run_task(address: str, token: str, app: ClientApp, allowed: frozenset[str]) -> None:
    """Take one message from the SuperNode, answer it and hand the reply back."""
    client = _client(address, RuntimeTokenHttpInterceptor(token), retry=True)
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    context: Context | None = None
    outcome = SubStatus.FAILED
    try:
        message, context, _, bundle = pull_task_input(client)
        reply = answer(app, message, context, bundle.content, allowed)
        push_message(client, reply, context)
        outcome = SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED
        _log.info("%s: %s", message.metadata.message_type, outcome)
    finally:
        push_task_output(client, context, outcome, "")
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()


def serve(address: str, secret: bytes | None, app: ClientApp, allowed: frozenset[str]) -> None:
    """Answer ClientApp tasks, one at a time, until the process is ended. Agent apps are never taken."""
    authentication: list[ProtobufClientInterceptor] = []
    if secret is not None:
        authentication.append(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=frozenset({_ACQUIRE}))
        )
    client = _client(address, *authentication, retry=False)
    request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    reachable = True
    while True:
        try:
            response = client.AcquireTask(request)
            if not reachable:
                _log.info("the SuperNode answers")
            reachable = True
            if response.HasField("task") and response.token:
                run_task(address, response.token, app, allowed)
            else:
                time.sleep(_POLL_SECONDS)
        except httpx.HTTPError as error:
            if reachable:
                _log.info("waiting for the SuperNode: %s", error)
            reachable = False
            time.sleep(_PATIENCE_SECONDS)
        except Exception:
            # One task that cannot be taken must not end the service of the others.
            _log.exception("a task was dropped")
            time.sleep(_PATIENCE_SECONDS)


def _client(address: str, *interceptors: ProtobufClientInterceptor, retry: bool) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        address,
        insecure=True,  # the SuperNode's Runtime API is on the loopback interface only
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), *interceptors],
        retry_invoker=make_simple_http_retry_invoker() if retry else None,
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m site_agent.flower.runner",
        description="Answer the coordinator from the exchange folder.",
    )
    parser.add_argument(
        "--runtime-api-address", required=True, help="host:port of the SuperNode's Runtime API"
    )
    parser.add_argument("--superexec-auth-secret-file", help="file with the secret shared with the SuperNode")
    parser.add_argument("--exchange", type=Path, required=True, help="the site's exchange folder")
    parser.add_argument("--site", required=True, help="the site's name")
    parser.add_argument(
        "--allow-bundle",
        action="append",
        default=[],
        metavar="SHA256",
        help="a bundle that may ask; may be repeated; without it every message is refused",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = _parse(argv)
    logs.configure("site-runner", site=arguments.site)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        os.environ.pop(name, None)  # the only address is on this machine
    allowed = frozenset(arguments.allow_bundle)
    if not allowed:
        _log.warning("no --allow-bundle is given: every message will be refused")
    app = make_app(Exchange(arguments.exchange), arguments.site)
    secret = load_superexec_auth_secret(secret_file=arguments.superexec_auth_secret_file)
    try:
        serve(arguments.runtime_api_address, secret, app, allowed)
    except KeyboardInterrupt:
        # Flower's client raises this too, when the SuperNode no longer knows the task.
        _log.info("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
