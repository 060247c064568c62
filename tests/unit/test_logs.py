"""Logs of processes that run for long: one line each, as JSON where asked, and nothing of the data in them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UsageError
from protocol.logs import FORMAT, _Json, _Text, wanted
from protocol.processes import clean_environment, scripts_folder
from tests.hub import Hub
from tests.unit.test_agent import Bench

SCRIPT = """
import logging, sys, threading, warnings
from protocol import logs
logs.configure("test", site="north", hide=("/data/events.parquet",))
log = logging.getLogger("x")
log.info("Round 2026-q4: sealed. It came from /data/events.parquet")
log.warning("a line\\nthat would be two \\x1b[31m and red")
log.info("about it", extra={"round": "r7"})
logging.getLogger("httpx").info("GET https://x/?code=C50")
def count(code):
    raise ValueError(f"{code} was seen with 3 patients")
try:
    count("C50.9")
except ValueError:
    log.exception("it failed")
warnings.warn("old")
thread = threading.Thread(target=count, args=("E11",)); thread.start(); thread.join()
logs.speaker(print)("Press Ctrl-C to stop")
count("I10")
"""


def logged(form: str) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | {FORMAT: form}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env, check=False
    )


def test_json_lines_have_their_members_and_no_value_of_the_data() -> None:
    done = logged("json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == "" and done.returncode == 1
    assert {line["site"] for line in lines} == {"north"} and {line["process"] for line in lines} == {"test"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]) for line in lines)
    assert lines[0]["round"] == "2026-q4" and "(hidden)" in lines[0]["message"]
    assert lines[1]["level"] == "warning" and "round" not in lines[1]
    assert lines[2]["round"] == "r7"
    failures = [line["error"] for line in lines if "error" in line]
    assert [f["type"] for f in failures] == ["ValueError"] * 3
    assert all(f["trace"][-1].endswith(" count") for f in failures)
    for value in ("C50", "E11", "I10", "3 patients", "/data/events", "?code="):
        assert value not in done.stderr
    assert lines[-1]["level"] == "critical"
    assert "Press Ctrl-C to stop" in [line["message"] for line in lines]


def test_text_says_the_same_in_one_line_each() -> None:
    done = logged("text")
    lines = done.stderr.splitlines()
    assert done.stdout == "Press Ctrl-C to stop\n"
    assert lines[0].split(" ", 1)[1] == "info test: Round 2026-q4: sealed. It came from (hidden)"
    assert "\x1b" not in done.stderr
    assert [i for i, line in enumerate(lines) if "ValueError at" in line] == [3, 5, 6]
    for value in ("C50", "E11", "I10", "3 patients"):
        assert value not in done.stderr


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT, "xml")
    with pytest.raises(UsageError, match="SMILE_LOG_FORMAT is 'xml'"):
        wanted()
    monkeypatch.setenv(FORMAT, "")
    assert wanted() == "text"


@given(st.text(max_size=300), st.sampled_from([_Json, _Text]))
def test_whatever_is_said_is_one_line(said: str, form: Any) -> None:
    import logging

    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (said,), None)
    line = form("p", "", ()).format(record)
    assert len(line.splitlines()) == 1 and line.isprintable()
    if form is _Json:
        assert isinstance(json.loads(line)["message"], str)


def test_the_programs_that_are_kept_get_the_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FORMAT, "json")
    assert clean_environment(tmp_path)[FORMAT] == "json"


@contextmanager
def running(*command: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    program = [str(scripts_folder() / command[0]), *command[1:]]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ) | env
    ) as process:
        # A line that never comes fails the test rather than holding it up.
        watch = threading.Timer(120, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            process.kill()


def until(process: subprocess.Popen[str], words: str) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        found: dict[str, Any] = json.loads(line)
        if words in found["message"]:
            return found
    raise AssertionError(f"{words!r} was never logged")


def test_an_agent_logs_what_it_does_and_ends_on_a_signal(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.approve()
    home = str(bench.agent.home.folder)
    with running("site-agent", "run", "--agent-only", "--home", home, SMILE_LOG_FORMAT="json") as process:
        assert until(process, "Answering what arrives")["site"] == "north"
        bench.call()
        line = until(process, "sealed")
        assert (line["round"], line["process"], line["level"]) == ("r1", "site-agent", "info")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with running("site-agent", "run", "--agent-only", "--home", home, SMILE_LOG_FORMAT="xml") as refused:
        assert refused.wait(60) == 2


def test_the_service_logs_json_and_its_end_too(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    serve = ("coordinator", "serve", "--only", "web", "--home", str(hub.home.folder))
    config = hub.home.folder / "coordinator.toml"
    config.write_text(config.read_text() + "\n[web]\nport = 0\n")
    with running(*serve, SMILE_LOG_FORMAT="json") as process:
        assert until(process, "People can open http://127.0.0.1:")["process"] == "coordinator-serve"
        until(process, "Press Ctrl-C to stop")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    config.write_text(
        config.read_text().replace(
            "port = 0", 'port = 0\nlisten = "192.0.2.1"\ntrusted_proxies = ["10.0.0.1"]'
        )
    )
    with running(*serve, SMILE_LOG_FORMAT="json") as process:
        assert until(process, "Nothing can listen")["level"] == "error"
        assert process.wait(60) == 2
