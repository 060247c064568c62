"""`coordinator round watch`: a line for each change, and an end when the version is delivered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from coordinator.flower.desk import SiteProgress
from protocol.processes import scripts_folder
from tests.hub import Hub, releases


def test_each_change_is_a_line_until_the_round_is_over(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    given = releases()
    hub.enrol(*given)
    hub.open_round()
    command = [str(scripts_folder() / "coordinator"), "round", "watch", "r1", "--every", "0.2", "--json"]
    with subprocess.Popen(
        [*command, "--home", str(hub.home.folder)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as watching:
        assert watching.stdout is not None
        first = [json.loads(watching.stdout.readline()) for _ in given]
        assert {line["site"]: line["state"] for line in first} == dict.fromkeys(given, "invited")
        progress = SiteProgress(site="west", state="receiving", bytes_done=5, bytes_total=10)
        hub.desk().report(progress)
        change = json.loads(watching.stdout.readline())
        assert (change["site"], change["state"], change["bytes_done"]) == ("west", "receiving", 5)
        hub.desk().report(progress.model_copy(update={"state": "offline", "detail": "[bold]gone[/]"}))
        assert json.loads(watching.stdout.readline())["detail"] == "[bold]gone[/]"
        hub.store.move_round("r1", "aborted", "no more")
        assert watching.wait(30) == 0
        assert watching.stdout.read() == ""


def test_it_can_be_stopped(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.enrol("lake", "north", "south")
    hub.open_round()
    command = [str(scripts_folder() / "coordinator"), "round", "watch", "r1", "--home", str(hub.home.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert "lake: invited" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
