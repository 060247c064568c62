"""Reading our systemd units, and running their commands under the same restrictions where no systemd runs.

Only what matters to the programs is played: accounts, mounts, network, /proc, privileges and writable code.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"

# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), Linux 6.3: what MemoryDenyWriteExecute= does, and it survives exec.
_LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) and sys.stderr.write('no PR_SET_MDWE here\\n'); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class Unit:
    """A service unit's `[Section] key` -> its values, in order; an empty value is kept."""

    path: Path
    values: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def read(cls, name: str) -> Unit:
        path = DEPLOY / "systemd" / name
        section, found = "", dict[tuple[str, str], tuple[str, ...]]()
        for line in path.read_text().splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, equals, value = line.partition("=")
                assert equals, line
                found[section, key] = (*found.get((section, key), ()), value)
        return cls(path, found)

    def get(self, key: str, section: str = "Service") -> str:
        return self.values[section, key][-1]

    def words(self, key: str, section: str = "Service") -> list[str]:
        return [word for value in self.values.get((section, key), ()) for word in value.split()]

    def command(self) -> list[str]:
        return shlex.split(self.get("ExecStart"))

    def environment(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.words("Environment"))


UNITS = [Unit.read(f"smile-site-{name}.service") for name in ("agent", "flower")]
AGENT, FLOWER = UNITS


def configuration(name: str, whose: str = "smile-site") -> list[list[str]]:
    """The lines of a sysusers.d or tmpfiles.d file, as words."""
    text = (DEPLOY / name / f"{whose}.conf").read_text()
    return [shlex.split(line) for line in text.splitlines() if line and not line.startswith("#")]


def home_of(account: str) -> str:
    """The home folder of an account in sysusers.d."""
    return next(line[-1] for line in configuration("sysusers.d") if line[:2] == ["u", account])


@dataclass(frozen=True)
class Machine:
    """Where a unit's paths and accounts lie in a test.

    Attributes:
        root: stands for / of all paths but the program's.
        ids: the numbers of the units' accounts and groups.
    """

    root: Path
    ids: Mapping[str, int]

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def command(self, unit: Unit) -> list[str]:
        """The unit's command with the paths of this machine."""
        program, *rest = unit.command()
        own = Path(sys.executable).with_name(Path(program).name)
        return [str(own), *(str(self.path(w)) if w.startswith("/") else w for w in rest)]

    def as_account(self, account: str, *argv: str) -> list[str]:
        """Run as one of the two accounts, with the shared group and without any privilege."""
        uid = str(self.ids[account])
        words = [
            *("setpriv", "--reuid", uid, "--regid", uid, "--groups", str(self.ids["smile-exchange"])),
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *argv),
        ]
        lines = [
            "set -e",
            "mount --make-rprivate /",
            *_open_python(),
            "umask 077",
            f"exec {shlex.join(words)}",
        ]
        return ["unshare", "--mount", "sh", "-c", "\n".join(lines)]

    def sandbox(self, unit: Unit, *argv: str) -> list[str]:
        """Run a command in the unit's mounts, network and account."""
        writable = [self.path(word) for word in unit.words("ReadWritePaths")]
        lines = [f"mount --bind {path} {path}" for path in writable]
        for word in unit.words("ReadOnlyPaths"):
            path = self.path(word)
            lines += [f"mount --bind {path} {path}", f"mount -o remount,bind,ro {path}"]
        for word in unit.words("InaccessiblePaths"):
            path = self.path(word.removeprefix("-"))
            if path.exists() or not word.startswith("-"):
                lines.append(f"mount -t tmpfs -o mode=000,size=4k none {path}")
        lines += ["mount -t tmpfs -o mode=1777 none /var/tmp", "mount -o remount,bind,ro /"]
        lines.append("mount -t proc -o subset=pid,hidepid=invisible proc /proc")
        # First the account's own view, so that what follows hides parts of it.
        launch = (
            [sys.executable, "-c", _LAUNCH] if ("Service", "MemoryDenyWriteExecute") in unit.values else []
        )
        inner = self.as_account(unit.get("User"), *launch, *argv)
        *before, last = inner.pop().splitlines()
        network = ["--net"] if ("Service", "PrivateNetwork") in unit.values else []
        return [*inner[:2], *network, *inner[2:], "\n".join([*before, *lines, last])]


def _open_python() -> list[str]:
    """Shell lines that open the way to Python and the code where a folder above them is closed, as /root is."""
    needed = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        for above in [p for p in reversed(path.parents) if not p.stat().st_mode & 0o001][:1]:
            closed.setdefault(above, []).append(path)
    lines = []
    for above, paths in closed.items():
        lines += [f"stage{i}=$(mktemp -d) && mount --bind {p} $stage{i}" for i, p in enumerate(paths)]
        lines.append(f"mount -t tmpfs -o mode=755 none {above}")
        lines += [f"mkdir -p {p} && mount --bind $stage{i} {p}" for i, p in enumerate(paths)]
        lines += [f"umount $stage{i} && rmdir $stage{i}" for i, _ in enumerate(paths)]
    return lines


def why_not() -> str:
    """Why accounts and sandboxes cannot be played here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root, to run programs as other accounts"
    probe = "mount --make-rprivate / && mount -t tmpfs none /mnt && mount -t proc -o subset=pid proc /proc"
    for argv in (["setpriv", "--version"], ["unshare", "--mount", "--net", "sh", "-c", probe]):
        try:
            done = subprocess.run(argv, capture_output=True, check=False, timeout=30)
        except OSError:
            return f"needs {argv[0]} of util-linux"
        if done.returncode:
            return f"needs the right to make mount and network namespaces: {done.stderr.decode()[:200]}"
    one = Machine(Path("/"), {"smile-agent": 64999, "smile-exchange": 64999})
    probe_python = one.as_account("smile-agent", sys.executable, "-c", "import site_agent.config")
    seen = subprocess.run(probe_python, cwd="/", capture_output=True, check=False, timeout=120)
    return (
        "" if seen.returncode == 0 else f"no other account can run Python here: {seen.stderr.decode()[-200:]}"
    )
