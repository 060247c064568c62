"""A machine under a real systemd, made of namespaces: this machine's files under an overlay, and our software in /opt/smile.

Needs root and cgroup v2. It starts systemd as a container does, with no unit but those that a test installs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tests.systemd_unit import ROOT

_PROGRAMS = ("coordinator", "site-agent", "flower-superlink", "flower-superexec", "flower-supernode")
_SUDO = """#!/bin/sh
if [ "$1" = -u ]; then account=$2; shift 2; exec setpriv --reuid "$account" --regid "$account" --init-groups "$@"; fi
exec "$@"
"""
# Each unit's output, where no journal runs.
_LOGGED = "[Service]\nStandardOutput=append:/var/log/units/%N.log\nStandardError=inherit\n"
_TARGET = "[Unit]\nDescription=A test\nDefaultDependencies=no\n"


def _cgroups() -> Path | None:
    for place in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (place / "cgroup.procs").exists():
            return place
    return None


class SystemdMachine:
    """Runs until `stop`, which removes the folder above `folder` too.

    Args:
        folder: for the overlay; not on an overlay or tmpfs itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        for name in ("layer", "work", "root"):
            (folder / name).mkdir(parents=True)
        self._cgroup: Path | None = None
        self._outer: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> str:
        """Start it; why it cannot be started here, empty if it runs."""
        if os.geteuid() != 0 or not Path("/lib/systemd/systemd").exists():
            return "needs root and systemd"
        place = _cgroups()
        if place is None:
            return "needs cgroup v2"
        self._lay_out()
        self._cgroup = place / f"smile-{os.getpid()}"
        try:
            self._cgroup.mkdir()
            self._outer = self._spawn()
        except OSError as error:
            return f"needs namespaces and cgroups: {error}"
        end = time.monotonic() + 30
        while time.monotonic() < end and self._outer.poll() is None:
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            self._pid = int(children[0]) if children else 0
            if self._pid and self.run("systemctl is-system-running").stdout.strip() in {
                "running",
                "degraded",
            }:
                return ""
            time.sleep(0.2)
        said = (self.folder / "systemd.log").read_text()[-300:]
        self.stop()
        return f"systemd does not run in a namespace here: {said}"

    def _lay_out(self) -> None:
        layer = self.folder / "layer"
        software = layer / "opt/smile"
        (software / "bin").mkdir(parents=True)
        (software / "bin/python").symlink_to("/opt/python/bin/python3.11")
        (software / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
        (software / "lib/python3.11/site-packages").mkdir(parents=True)
        (layer / "opt/python").mkdir()
        for name in _PROGRAMS:
            lines = Path(sysconfig.get_path("scripts"), name).read_text().splitlines()
            self._write(
                f"opt/smile/bin/{name}", "\n".join(["#!/opt/smile/bin/python", *lines[1:]]) + "\n", mode=0o755
            )
        self._write("etc/ld.so.conf.d/python.conf", "/opt/python/lib\n")
        self._write("etc/systemd/system/smile-test.target", _TARGET)
        self._write("etc/systemd/system/service.d/logged.conf", _LOGGED)
        self._write("usr/local/bin/sudo", _SUDO, mode=0o755)
        (layer / "var/log/units").mkdir(parents=True)

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.folder / "layer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def _spawn(self) -> subprocess.Popen[bytes]:
        root, packages = self.root, sysconfig.get_path("purelib")
        lines = [
            "set -e; mount --make-rprivate /",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={self.folder}/layer,workdir={self.folder}/work {root}",
            f"mount --bind {sys.base_prefix} {root}/opt/python",
            f"mount --bind {packages} {root}/opt/smile/lib/python3.11/site-packages",
            # Before the checkout, which may lie below it.
            f"mount -t tmpfs none {root}/tmp",  # noqa: S108
            f"mkdir -p {root}{ROOT}; mount --bind {ROOT} {root}{ROOT}",
            f"chroot {root} ldconfig",
            # Nothing of this machine's own is started: no unit is wanted by anything but what a test enables.
            f"rm -rf {root}/lib/systemd/system/*.wants {root}/etc/systemd/system/*.wants {root}/etc/systemd/system/*.requires",
            f"mount -t proc proc {root}/proc; mount -t sysfs -o ro sysfs {root}/sys",
            f"mount -t cgroup2 cgroup2 {root}/sys/fs/cgroup",
            f"mount --bind /dev {root}/dev; mount -t tmpfs -o mode=755 none {root}/run",
            f"exec env -i container=unshare PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot {root} "
            "/lib/systemd/systemd --system --unit=smile-test.target --log-target=console",
        ]
        spaces = "--pid --fork --kill-child --mount --cgroup --uts --ipc --net"
        join = f'echo $$ > {self._cgroup}/cgroup.procs; exec unshare {spaces} sh -c "$1"'
        return subprocess.Popen(
            ["sh", "-c", join, "sh", "\n".join(lines)],
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "systemd.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, script: str, *, at: str = "/root") -> subprocess.CompletedProcess[str]:
        """A shell script in the machine, as root."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [
            *("nsenter", "-t", str(self._pid), "-m", "-p", "-n", "-u", "-i", "-r", "-w"),
            *("env", "-i", f"PATH={path}", "HOME=/root", "OMP_NUM_THREADS=1", "LANG=C.UTF-8"),
            *("sh", "-c", f"cd {at}; {script}"),
        ]
        return subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")

    def must(self, script: str, *, at: str = "/root") -> str:
        """The output of a script that must succeed."""
        done = self.run(script, at=at)
        assert done.returncode == 0, f"{script}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done.stdout

    def log(self, unit: str) -> str:
        """What a unit has printed."""
        path = self.folder / "layer" / f"var/log/units/{unit}.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        """End every process of it; what it wrote stays in the folder."""
        if self._outer is not None:
            self._outer.kill()
            self._outer.wait(30)
        if self._pid:
            end = time.monotonic() + 30
            while Path(f"/proc/{self._pid}").exists() and time.monotonic() < end:
                time.sleep(0.1)
        if self._cgroup is not None and self._cgroup.exists():
            for path in sorted(self._cgroup.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            self._cgroup.rmdir()
        shutil.rmtree(self.folder.parent, ignore_errors=True)
