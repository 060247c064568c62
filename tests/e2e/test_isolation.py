"""A site under two accounts: what runs on its network side gets no patient row, no credential and no key.

The whole stack runs with the units' accounts and restrictions. Then the worst is assumed: somebody else's program
runs as the Flower account, beside the live agent, knowing every path. Needs root; see `tests.systemd_unit`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from coordinator.flower.bundle import build_bundle, write_bundle
from protocol.envelope import open_sealed
from protocol.errors import UsageError
from protocol.messages import Invitation, Receipt
from protocol.release import decode_release
from protocol.signed import open_signed, parse
from site_agent.flower.connection import read_connection
from tests.battery.watching import reported
from tests.systemd_unit import why_not
from tests.two_accounts import HOSTILE_MARK, IDS, PASSWORD, PATIENCE, Site


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    if reason := why_not():
        pytest.skip(reason)
    # Not pytest's folder, whose mode keeps the other accounts out.
    base = Path(tempfile.mkdtemp(prefix="smile-isolation-"))
    base.chmod(0o711)
    found = Site(base)
    try:
        found.set_up()
        found.start()
        yield found
    finally:
        found.stop()
        shutil.rmtree(base, ignore_errors=True)


needs_stack = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


class TestTwoAccounts:
    """In order: the first tests are what later ones look back on."""

    pytestmark = needs_stack

    def test_a_round_goes_through_both_accounts(self, site: Site) -> None:
        desk = site.desk("round-1")
        run = site.services.start_run(desk, "collect", deadline_seconds=PATIENCE, poll_seconds=0.3)
        assert site.finish(run) == "finished:completed", site.services.run_detail(run)
        assert desk.progress("north").state == "received", desk.progress("north").detail
        plain = site.base / "root" / "opened"
        signer = site.site_keys().public()
        open_sealed(desk.received("north"), plain, keys=site.round_keys, signer=signer)
        assert decode_release(plain.read_bytes()).manifest.site == "north"

        desk.outgoing("north").write_bytes(site.result("round-1"))
        run = site.services.start_run(desk, "deliver", deadline_seconds=PATIENCE, poll_seconds=0.3)
        assert site.finish(run) == "finished:completed", site.services.run_detail(run)
        site.until("the receipt", lambda: desk.progress("north").state == "delivered")
        assert open_signed(desk.progress("north").receipt.encode(), Receipt, signer).version == 1
        assert (site.home / "results" / "v1" / "clusters.parquet").read_bytes() == b"clusters"

    def test_a_damaged_result_is_quarantined(self, site: Site) -> None:
        """Out of the folder that the Flower account writes, into the home folder, under the unit's mounts."""
        data = b"no envelope"
        sha256 = hashlib.sha256(data).hexdigest()
        results = site.path("/var/lib/smile/exchange/results")
        (results / f"{sha256}.sealed").write_bytes(data)
        os.chown(results / f"{sha256}.sealed", IDS["smile-flower"], IDS["smile-exchange"])
        (results / f"{sha256}.sealed").chmod(0o640)
        site.until("the quarantine", (site.home / "quarantine" / f"{sha256}.sealed").exists)

    def test_a_hostile_bundle_is_refused_without_being_imported(self, site: Site) -> None:
        loot = site.base / "loot"
        loot.mkdir()
        loot.chmod(0o777)
        hostile = site.base / "root" / "hostile"
        write_bundle(hostile)
        strike = (
            f"# {HOSTILE_MARK.decode()}\n"
            "import os, socket, json\nfrom pathlib import Path\n"
            f"Path({str(loot)!r}, 'ran').write_text(json.dumps([dict(os.environ), os.listdir({str(site.home)!r})]))\n"
            "socket.create_connection(('127.0.0.1', 9))\n"
        )
        (hostile / "smile_round" / "client.py").write_text(f"{strike}app = None\n")
        (hostile / "site_agent").mkdir()
        (hostile / "site_agent" / "__init__.py").write_text(strike)
        project = (hostile / "pyproject.toml").read_text()
        (hostile / "pyproject.toml").write_text(project.replace("smile_round/*.py", "**/*.py"))
        bundle = build_bundle(hostile)
        desk = site.desk("round-2")
        config = {"desk": str(desk.folder), "deadline-seconds": PATIENCE, "poll-seconds": 0.5}
        assert site.finish(site.services.submit(bundle, config)) == "finished:completed"
        assert desk.progress("north").state == "refused"
        sha256 = hashlib.sha256(bundle).hexdigest()
        assert desk.progress("north").detail == f"The site does not list the bundle {sha256}"
        assert list(loot.iterdir()) == []
        # Nothing of it was unpacked on the site's side either.
        assert [p for p in site.path("/var").rglob("*") if p.name in {"smile_round", "apps"}] == []

    def test_no_process_loaded_what_was_received(self, site: Site) -> None:
        """Sealed bytes and the hostile bundle went through all of them: no pickle, marshal, np.load, exec or import."""
        found = reported(*site.logs.values())
        watched = found.pop("watched")
        for program in (
            "site-agent run --agent-only",
            "-m site_agent.flower --config",
            "-m site_agent.flower.supernode",
            "-m site_agent.flower.runner",
            "flower-superlink",
            "coordinator.flower.superexec",
            "coordinator.flower.proxy",
        ):
            assert [w for w in watched if program in w], program
        assert found == {}
        print(f"{len(watched)} processes watched, 0 events (bar: 0)")

    def test_the_agent_opens_no_socket(self, site: Site) -> None:
        agents = site.pids("smile-agent")
        assert agents
        for pid in agents:
            links = {str(p.readlink()) for p in Path(f"/proc/{pid}/fd").iterdir()}
            assert not [link for link in links if link.startswith("socket:")]
            addresses = Path(f"/proc/{pid}/net/dev").read_text().split("\n", 2)[2]
            assert [line.split(":")[0].strip() for line in addresses.splitlines()] == ["lo"]

    def test_whoever_holds_the_flower_account_gets_no_row_credential_or_key(self, site: Site) -> None:
        environment = Path(f"/proc/{site.pids('smile-agent')[0]}/environ").read_bytes()
        assert PASSWORD.encode() in environment  # what the attack looks for is there
        found = site.hostile()
        state, etc = site.path("/var/lib/smile-flower"), site.path("/etc/smile-flower")
        exchange = site.path("/var/lib/smile/exchange")
        readable = {Path(p) for p in found["readable"]}
        own = {p for p in readable if p.is_relative_to(state) and p.name != "node.key"}
        shared = {p for p in readable if p.is_relative_to(exchange)}
        apparatus = {p for p in readable if p.parent in {site.base, site.base / "watch"}}
        given = {site.path("/srv/smile/study.toml"), site.path("/srv/smile/invitation.json")}
        assert readable - own - shared - given - apparatus == {
            etc / "connection.toml",
            etc / "ca.crt",
            state / "node.key",
        }
        # `.heard` is empty: its time says when the coordinator last asked.
        assert {p.suffix for p in shared if p.name != ".heard"} <= {".json", ".sealed"}
        assert {"calls", "status"} <= {p.parent.name for p in shared} <= {"calls", "status", "sealed"}
        assert not [p for p in found["listed"] if Path(p).is_relative_to(site.home)]
        assert {p for p in map(Path, found["written"]) if not p.is_relative_to(state)} == {
            *(room / name for room in (exchange, exchange / "sums") for name in ("calls", "results")),
            site.base / "loot",
            *(p for p in shared if p.parent.name == "calls"),
        }
        assert found["leaks"] == found["reached"] == []
        print(f"{len(readable)} of all files of the site and 0 secrets were read (bar: 0)")
        assert site.running["smile-agent"].poll() is None

    def test_what_the_flower_account_puts_in_the_exchange_is_no_call(self, site: Site) -> None:
        """Links to the agent's files, pipes that never end, names that are not digests: the agent goes on."""
        calls, results = (site.path(f"/var/lib/smile/exchange/{n}") for n in ("calls", "results"))
        names = [f"{c * 64}.{ending}" for c in "abcd" for ending in ("json", "sealed")]
        script = (
            "import os, sys\n"
            "calls, results, secret = sys.argv[1:4]\n"
            "for folder, ending in ((calls, 'json'), (results, 'sealed')):\n"
            "    os.symlink(secret, f'{folder}/{\"a\" * 64}.{ending}')\n"
            "    os.mkfifo(f'{folder}/{\"b\" * 64}.{ending}')\n"
            "    os.mkdir(f'{folder}/{\"c\" * 64}.{ending}')\n"
            "open(f'{calls}/' + 'd' * 64 + '.json', 'w').write('{}')\n"
        )
        words = (str(calls), str(results), str(site.home / "keys" / "site.key"))
        subprocess.run(
            site.machine.as_account("smile-flower", sys.executable, "-c", script, *words), check=True
        )
        desk = site.desk("round-3")
        run = site.services.start_run(desk, "collect", deadline_seconds=PATIENCE, poll_seconds=0.3)
        assert site.finish(run) == "finished:completed", site.services.run_detail(run)
        assert desk.progress("north").state == "received", desk.progress("north").detail
        log = (site.base / "smile-agent.log").read_text()
        assert "Traceback" not in log
        assert not [name for name in names if name in log]

    def test_neither_half_can_be_started_twice_or_by_the_wrong_account(self, site: Site) -> None:
        config = site.path("/etc/smile-flower/connection.toml")
        with pytest.raises(UsageError, match="agent's account or root"):
            read_connection(config)
        with pytest.raises(AssertionError, match="Another process runs this site's agent"):
            site.agent("run", "--agent-only")
        with pytest.raises(AssertionError, match="separated already"):
            site.agent("separate", "--exchange", "/nowhere", "--to", "/nowhere-else")
        assert parse((site.home / "invitation.json").read_bytes(), Invitation).bundle_digest == site.digest
