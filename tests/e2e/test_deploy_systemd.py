"""Both sides as the install pages say, under a real systemd: the services run, and see no more than the pages promise."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from tests.systemd_machine import SystemdMachine
from tests.systemd_unit import ROOT, Unit
from tests.two_accounts import write_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
HUB = "/var/lib/smile-hub/hub"
PATIENCE = 180.0


def commands(page: str, *headings: str) -> list[str]:
    """The lines of the shell blocks below some headings of a how-to page, continued ones joined."""
    text = (ROOT / "docs" / "how-to" / page).read_text()
    found = []
    for heading in headings:
        part = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert part, heading
        for block in re.findall(r"^```sh\n(.*?)^```", part[1], re.MULTILINE | re.DOTALL):
            found += block.replace("\\\n", " ").strip().splitlines()
    return found


@pytest.fixture(scope="module")
def machine() -> Iterator[SystemdMachine]:
    machine = SystemdMachine(Path(tempfile.mkdtemp(prefix="smile-systemd-", dir="/var/tmp")) / "machine")
    if reason := machine.start():
        pytest.skip(reason)
    try:
        machine.must(f"mkdir /root/try && cp -r {ROOT}/deploy {ROOT}/constraints.txt /root/try/")
        yield machine
    finally:
        machine.stop()


def until(machine: SystemdMachine, what: str, condition: Callable[[], bool], unit: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(
                f"{what} did not happen: {machine.run(f'systemctl status {unit}').stdout}\n{machine.log(unit)[-2000:]}"
            )
        time.sleep(0.3)


def active(machine: SystemdMachine, unit: str) -> bool:
    return machine.run(f"systemctl is-active {unit}").stdout.strip() == "active"


@pytest.fixture(scope="module")
def hub(machine: SystemdMachine) -> SystemdMachine:
    """The page's commands, from an empty folder; what it says to type into a file is typed."""
    for line in commands("install-a-coordinator.md", "One account, three services", "Study and home folder"):
        machine.must(line, at="/root/try")
    machine.must(
        f'printf \'[web]\\nhosts = ["map.example.org"]\\ntrusted_proxies = ["127.0.0.3"]\\n\' >> {HUB}/coordinator.toml'
    )
    for line in commands("install-a-coordinator.md", "Start"):
        if not line.startswith(("systemctl status", "systemd-analyze")):
            machine.must(line, at="/root/try")
    until(machine, "a door", lambda: "Sites can dial" in machine.log("smile-hub-sites"), "smile-hub-sites")
    until(machine, "a page", lambda: "People can open" in machine.log("smile-hub-web"), "smile-hub-web")
    return machine


def test_the_coordinators_services_run(hub: SystemdMachine) -> None:
    time.sleep(3)
    for name in ("sites", "web", "rounds"):
        unit = f"smile-hub-{name}"
        assert active(hub, unit), hub.log(unit)[-2000:]
        assert "Traceback" not in hub.log(unit)
    assert "smile-hub-backup.timer" in hub.must("systemctl list-timers --all --no-pager")


# Run as a service: what of the account's other processes and files it can see, as JSON.
PROBE = """
import json, os, socket, sys
from pathlib import Path
seen = {"looked_into": [], "opened": [], "reached": []}
for entry in Path("/proc").iterdir():
    if entry.name.isdecimal() and int(entry.name) != os.getpid():
        for part in ("environ", "root/etc", "maps"):
            try:
                open(entry / part).read(1) if part != "root/etc" else os.listdir(entry / part)
                seen["looked_into"].append(int(entry.name))
            except OSError:
                pass
for path in sys.argv[2:]:
    try:
        open(path, "rb").read(1)
        seen["opened"].append(path)
    except IsADirectoryError:
        if os.path.isdir(path) and os.access(path, os.R_OK):
            seen["opened"].append(path)
    except OSError:
        pass
with socket.socket() as line:
    line.settimeout(5)
    try:
        line.connect(("127.0.0.1", int(sys.argv[1])))
        seen["reached"].append(int(sys.argv[1]))
    except OSError:
        pass
print("SEEN" + json.dumps(seen))
"""
FILES = (
    *("coordinator.toml", "coordinator.db", "study.toml", "keys/coordinator.key", "keys/rounds/probe.key"),
    *("rounds/probe.txt", "fits/probe.txt", "flower/tls/server.key", "quarantine"),
)


def probe(hub: SystemdMachine, like: str) -> dict[str, list[object]]:
    """What a program finds that took over a service: it runs as another one with the same unit."""
    port = json.loads(hub.must(f"cat {HUB}/flower/services.json"))["superlink"]
    for name in ("keys/rounds/probe.key", "rounds/probe.txt", "fits/probe.txt"):
        hub.must(f"sudo -u smile-hub mkdir -p {HUB}/{name.rpartition('/')[0]}")
        hub.must(f"sudo -u smile-hub touch {HUB}/{name}")
    hub.must(f"cat > /opt/probe.py <<'END'\n{PROBE}\nEND\n")
    unit = Unit.read(f"{like}.service").path.read_text()
    words = shlex.join(
        ["/opt/smile/bin/python", "/opt/probe.py", str(port), *(f"{HUB}/{name}" for name in FILES)]
    )
    unit = re.sub(r"^ExecStart=.*", f"ExecStart={words}", unit, flags=re.MULTILINE)
    unit = re.sub(r"^Restart=.*", "Type=oneshot", unit, flags=re.MULTILINE)
    hub.must(f"cat > /etc/systemd/system/{like}-probe.service <<'END'\n{unit}\nEND\nsystemctl daemon-reload")
    hub.must(f"systemctl start {like}-probe")
    last = hub.log(f"{like}-probe").rpartition("SEEN")[2]
    found: dict[str, list[object]] = json.loads(last)
    found["opened"] = [str(path).removeprefix(f"{HUB}/") for path in found["opened"]]
    return found


def pid(hub: SystemdMachine, unit: str) -> int:
    return int(hub.must(f"systemctl show -P MainPID {unit}"))


def test_what_sites_dial_sees_no_key_and_no_other_process_that_has_one(hub: SystemdMachine) -> None:
    found = probe(hub, "smile-hub-sites")
    assert found["opened"] == ["coordinator.toml", "rounds/probe.txt", "flower/tls/server.key"]
    assert not {pid(hub, "smile-hub-web"), pid(hub, "smile-hub-rounds")} & set(found["looked_into"])
    # So the probe would have told: of those without the capability it sees all.
    assert pid(hub, "smile-hub-sites") in found["looked_into"]


def test_what_people_use_opens_no_release_and_starts_no_run(hub: SystemdMachine) -> None:
    found = probe(hub, "smile-hub-web")
    assert found["opened"] == [
        "coordinator.toml",
        "coordinator.db",
        "study.toml",
        "keys/coordinator.key",
        "rounds/probe.txt",
    ]
    assert found["reached"] == []
    assert probe(hub, "smile-hub-sites")["reached"] != []  # there is something to reach


def test_nginx_reaches_the_page_and_nobody_else_does(hub: SystemdMachine) -> None:
    ask = "curl -s -m 10 -o /dev/null -w '%{http_code}' http://127.0.0.1:8480/healthz --interface "
    assert hub.run(f"{ask} 127.0.0.3").stdout == "200"
    assert hub.run(f"{ask} 127.0.0.1").stdout == "000"


def test_commands_of_people_run_as_the_account(hub: SystemdMachine) -> None:
    assert "north" in hub.must("sudo smile-hub sites")
    assert hub.must("sudo smile-hub round status")
    shown = hub.must(
        r"sed 's#/opt/smile/bin/coordinator \"\$@\"#cat /proc/self/status#' /usr/local/sbin/smile-hub | sh"
    )
    assert re.search(r"CapEff:\s+0000001000000000", shown)  # CAP_BLOCK_SUSPEND and no other


def test_systemd_takes_every_unit_without_a_word(hub: SystemdMachine) -> None:
    units = " ".join(f"smile-hub-{name}.service" for name in ("sites", "web", "rounds", "backup"))
    assert hub.run(f"systemd-analyze verify {units} smile-hub-backup.timer").stderr.strip() == ""
    for name in ("sites", "web", "rounds"):
        shown = hub.run(f"systemd-analyze security --no-pager smile-hub-{name}").stdout
        score = re.search(r"exposure level for \S+: (\d+\.\d)", shown)
        assert score
        assert float(score[1]) <= 1.3, shown


def test_a_site_under_its_units_connects_to_the_coordinator_under_its_own(hub: SystemdMachine) -> None:
    """What the page on hardening says, on the same machine; the coordinator's name leads to it."""
    hub.must(
        "mkdir -p /srv/smile && cp -r /root/try/deploy /srv/smile/ && echo '127.0.0.1 hub.example' >> /etc/hosts"
    )
    hub.must(f"install -m 0644 {HUB}/study.toml {HUB}/invitation.json /srv/smile/")
    write_events(hub.folder / "layer" / "events.parquet")
    for line in commands("harden-a-site.md", "Accounts and folders"):
        hub.must(line, at="/srv/smile")
    hub.must("install -o smile-agent -m 0600 /events.parquet /srv/smile/")
    steps = commands("harden-a-site.md", "Make the home folder", "Separate the connection")
    enrolled = next(n for n, line in enumerate(steps) if " enroll " in line)
    for line in steps[: enrolled + 1]:
        hub.must(line, at="/srv/smile")
    hub.must("install -o smile-hub -m 0600 /var/lib/smile/site/enrolment-north.json /var/lib/smile-hub/")
    hub.must("echo y | sudo smile-hub enroll /var/lib/smile-hub/enrolment-north.json")
    # A node is let in when a round is opened.
    hub.must("sudo smile-hub round open 2026-q4")
    # One shell: the page changes its folder on the way.
    hub.must("set -e; " + "\n".join(steps[enrolled + 1 :]), at="/srv/smile")
    for line in commands("harden-a-site.md", "Start both services"):
        if not line.startswith(("systemd-analyze", "sudo -u smile-agent")):
            hub.must(line, at="/srv/smile")
    ask = (
        "from pathlib import Path; from coordinator.flower.services import Services; "
        f"print(len(Services.attach(Path('{HUB}/flower')).online()))"
    )
    until(
        hub,
        "the site online",
        lambda: (
            hub.run(f"sudo -u smile-hub /opt/smile/bin/python -c {shlex.quote(ask)}").stdout.strip() == "1"
        ),
        "smile-site-flower",
    )
    assert active(hub, "smile-site-agent"), hub.log("smile-site-agent")
    refused = hub.run("sudo -u smile-flower ls /var/lib/smile/site")
    assert "Permission denied" in refused.stderr
