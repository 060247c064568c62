"""Requests made from the service's own description, sent over TCP: none is answered by a mistake of the service.

schemathesis makes valid and invalid requests of every operation. SMILE_BATTERY=full makes many more.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coordinator.config import Home
from coordinator.web.serving import WebService
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens
from tests.web import small_home

FULL = os.environ.get("SMILE_BATTERY") == "full"
EXAMPLES = 400 if FULL else 8
RAW = 20_000 if FULL else 300
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
HEADERS = (b"Range", b"If-Range", b"If-None-Match", b"Cookie", b"X-CSRF-Token", b"Accept", b"Content-Type")
OPEN = {"requests_per_second": 100_000, "burst": 1_000_000, "logins_per_minute": 10_000}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"), codes=200)


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[tuple[WebService, dict[str, str]]]:
    made = WebService(home, settings=WebSettings(port=0, **OPEN))
    made.start()
    token = Tokens(made.app.state.library.store).add("ada", "coordinator")
    made.app.state.tokens.forget()
    yield made, {"Authorization": f"Bearer {token}"}
    assert made.alive
    made.stop()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_meets_a_mistake(service: tuple[WebService, dict[str, str]], mode: GenerationMode) -> None:
    made, headers = service
    schema = schemathesis.openapi.from_url(f"{made.url}/openapi.json")
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=not FULL,
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal sent
            sent += 1
            case.validate_response(case.call(headers=headers, timeout=60), checks=CHECKS)

        # Where nothing can be wrong, as in a request without parameters, there is no invalid one.
        with contextlib.suppress(Unsatisfiable):
            ask()
    print(f"\n{sent:,} {mode} requests, no mistake")
    assert sent > EXAMPLES


def test_bytes_that_are_no_request_meet_no_mistake(
    service: tuple[WebService, dict[str, str]], home: Home
) -> None:
    """Paths, headers and methods that no client would send."""
    made, headers = service
    rng = random.Random(0)  # noqa: S311 - a fuzzer
    token = headers["Authorization"].encode()
    pieces = [
        b"/api/v1/releases/1/mappings/",
        b"%00",
        b"%ff%fe",
        b"../",
        b"?cursor=",
        b"&limit=",
        b"%F0%9F%98%80",
        b"//",
    ]
    pieces += [
        b"/fhir/ConceptMap/$translate?code=",
        b"&system=",
        b"/files/",
        b"\xe2\x80\xae",
        b"<script>",
        b"'\"",
        b"9" * 40,
    ]
    methods = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PROPFIND"]
    statuses: set[int] = set()
    for _ in range(RAW):
        path = b"/api/v1/" + b"".join(rng.choices(pieces, k=rng.randrange(1, 6)))
        lines = [
            rng.choice(methods) + b" " + path.replace(b" ", b"") + b" HTTP/1.1",
            b"Host: localhost",
            b"Authorization: " + token,
        ]
        # Bytes above 0x7e make most requests none at all.
        top = 0x100 if rng.random() < 0.1 else 0x7F
        lines += [
            name + b": " + bytes(rng.choices(range(0x20, top), k=rng.randrange(40))).strip()
            for name in HEADERS
            if rng.random() < 0.4
        ]
        with socket.create_connection(("127.0.0.1", made.port), timeout=30) as line:
            line.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        statuses.add(int(answer[9:12]))
    assert max(statuses) < 500
    assert requests.get(f"{made.url}/healthz", timeout=30).status_code == 200
