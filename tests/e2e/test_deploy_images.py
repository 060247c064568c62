"""The images' Dockerfiles without Docker: each stage is an overlay over this machine, and what RUN says runs in it.

This machine with its Python as /usr/local stands in for the base image. So COPY, ARG, ENV, WORKDIR, USER, RUN and the
commands of the finished image are tried; that Debian's slim image has what they need is not.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.systemd_unit import DEPLOY, ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

FILES = {name: DEPLOY / "docker" / f"{name}.Dockerfile" for name in ("site", "coordinator")}
SERVERS = {
    "flwr",
    "fastapi",
    "uvicorn",
    "starlette",
    "sqlalchemy",
    "grpcio",
    "torch",
    "hnswlib",
    "matplotlib",
}
PATHS = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of each instruction; continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in joined]


@dataclass
class Image:
    """A stage, as far as it was built.

    Attributes:
        folder: its layer and mount points lie in it.
        below: the stage that it goes on from.
        settings: ENV and ARG; user, working folder, entry point, command and check as they were last set.
    """

    folder: Path
    below: Image | None = None
    settings: dict[str, str] = field(default_factory=dict)
    at: str = "/"
    user: str = "0:0"
    entry: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    check: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("root", "work"):
            (self.folder / name).mkdir(parents=True)
        # A copy: the kernel takes no layer that lies within another one, and the lowest is this machine's /.
        layer = self.folder / "layer"
        if self.below:
            subprocess.run(["cp", "-a", self.below.folder / "layer", layer], check=True)
        else:
            layer.mkdir()

    def path(self, name: str) -> Path:
        """Where a path of the image lies on this machine."""
        return self.folder / "layer" / str(Path(self.at, name)).lstrip("/")

    def run(self, script: str, *, user: str = "", confined: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a shell line in the image, as its user; `confined` as compose runs it: read-only, no network, an empty /tmp."""
        root, layer, work = (self.folder / name for name in ("root", "layer", "work"))
        keep = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        # The image's linker looks there by itself.
        settings = {
            "PATH": PATHS,
            "HOME": "/root",
            "LD_LIBRARY_PATH": "/usr/local/lib",
            **keep,
            **self.settings,
        }
        # What was downloaded for another test need not come again.
        settings.pop("PIP_NO_CACHE_DIR", None)
        inner = shlex.join(["sh", "-c", f"cd {self.at} && {script}"])
        words = shlex.join(f"{k}={v}" for k, v in settings.items())
        lines = [
            "set -e; mount --make-rprivate /",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={layer},workdir={work} {root}",
            f"mount --bind {sys.base_prefix} {root}/usr/local",
            f"mount --bind /dev {root}/dev; mount -t proc proc {root}/proc; mount -t tmpfs none {root}/tmp",  # noqa: S108
            f"mkdir -p {root}{self.at}",
            f"mount -o remount,ro {root}" if confined else "",
            f"exec env -i {words} chroot --userspec={user or self.user} --groups= {root} {inner}",
        ]
        argv = ["unshare", "--mount", *(["--net"] if confined else []), "sh", "-c", "\n".join(lines)]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def distributions(self) -> dict[str, str]:
        """Name -> version of what is installed in /opt/smile."""
        done = self.run(
            "python -m pip --python /opt/smile/bin/python list --format=json 2>/dev/null", user="0:0"
        )
        assert done.returncode == 0, done.stderr
        return {row["name"].lower(): row["version"] for row in json.loads(done.stdout)}

    def megabytes(self) -> int:
        """What /opt/smile takes."""
        return sum(p.lstat().st_size for p in self.path("/opt/smile").rglob("*") if p.is_file()) >> 20


def build(path: Path, folder: Path, target: str, **arguments: str) -> Image:
    """Build a stage and those that it needs, as `docker build --target` does."""
    given, stages, image = {}, dict[str, Image](), Image(folder / "nothing")
    wanted = _needed(path, target)
    skipping = False
    for word, rest in instructions(path):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            name = name or "last"
            skipping = name not in wanted
            if not skipping:
                below = stages.get(base)
                image = stages[name] = Image(
                    folder / name, below, dict(below.settings) if below else {}, below.at if below else "/"
                )
        elif word == "ARG" and not stages:
            given[rest.partition("=")[0]] = rest.partition("=")[2]
        elif not skipping:
            _follow(image, word, rest, stages, arguments, ignored=path.with_name(f"{path.name}.dockerignore"))
    return stages[target]


def _needed(path: Path, target: str) -> set[str]:
    needs: dict[str, set[str]] = {}
    name = ""
    for word, rest in instructions(path):
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            name = name or "last"
            needs[name] = {base}
        elif word == "COPY" and rest.startswith("--from="):
            needs[name].add(rest.split()[0].removeprefix("--from="))
    found, todo = set[str](), [target]
    while todo:
        if (stage := todo.pop()) in needs:
            found.add(stage)
            todo += needs[stage]
    return found


def _follow(
    image: Image, word: str, rest: str, stages: dict[str, Image], arguments: dict[str, str], ignored: Path
) -> None:
    match word:
        case "WORKDIR":
            image.at = rest
        case "USER":
            image.user = rest
        case "ENV":
            image.settings |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        case "ARG":
            name, _, default = rest.partition("=")
            image.settings[name] = arguments.get(name, default)
        case "ENTRYPOINT":
            image.entry = tuple(json.loads(rest))
        case "CMD":
            image.command = tuple(json.loads(rest))
        case "HEALTHCHECK":
            image.check = tuple(json.loads(rest.partition(" CMD ")[2]))
        case "COPY":
            _copy(image, rest, stages, ignored)
        case "RUN":
            done = image.run(rest)
            assert done.returncode == 0, f"{rest}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        case _:
            raise AssertionError(f"{word} is not understood here")


def _copy(image: Image, rest: str, stages: dict[str, Image], ignored: Path) -> None:
    *sources, target = rest.split()
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).removeprefix("--from=")]
        found = [origin.path(source) for source in sources]
    else:
        passed = {line[1:] for line in ignored.read_text().splitlines() if line.startswith("!")}
        assert set(sources) <= passed, f"{ignored.name} keeps {sorted(set(sources) - passed)} from the build"
        found = [ROOT / source for source in sources]
    to = Path(image.at, target)
    for source in found:
        # A folder's content is copied, a file under its name if the target is a folder.
        whole = to / source.name if source.is_file() and (target.endswith("/") or len(found) > 1) else to
        place = image.folder / "layer" / str(whole).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, place, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(source, place)


def why_not() -> str:
    """Why images cannot be played here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root, to mount overlays"
    with tempfile.TemporaryDirectory(dir=_disk()) as folder:
        done = Image(Path(folder, "probe")).run("python -c 'import ssl, venv'", user="10001:10001")
    return "" if done.returncode == 0 else f"needs overlays and chroot: {done.stderr[-200:]}"


def _disk() -> Path:
    # The layers of an overlay must not lie in the overlay's own /tmp, nor on a tmpfs of a gigabyte.
    return Path("/var/tmp")  # noqa: S108


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="smile-images-", dir=_disk()))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def agent(place: Path) -> Image:
    return build(FILES["site"], place / "agent", "agent")


@pytest.fixture(scope="module")
def connection(place: Path) -> Image:
    return build(FILES["site"], place / "connection", "connection")


def python(image: Image, code: str) -> subprocess.CompletedProcess[str]:
    return image.run(shlex.join(["/opt/smile/bin/python", "-P", "-c", code]), confined=True)


@pytest.mark.parametrize("name", ["agent", "connection"])
def test_a_site_image_holds_no_line_of_the_coordinator(name: str, request: pytest.FixtureRequest) -> None:
    image: Image = request.getfixturevalue(name)
    refused = python(image, "import coordinator")
    assert (refused.returncode, "No module named 'coordinator'" in refused.stderr) == (1, True), (
        refused.stderr
    )
    assert [
        p
        for p in image.path("/opt/smile").rglob("*")
        if p.name in {"coordinator", "tests"} and "smile_" in str(p)
    ] == []
    programs = {p.name for p in image.path("/opt/smile/bin").iterdir()}
    assert "site-agent" in programs
    assert "coordinator" not in programs
    assert not {"pip", "setuptools", "wheel"} & set(image.distributions())
    print(f"{name}: {len(image.distributions())} distributions, {image.megabytes()} MB")


def test_the_agent_has_no_server_and_no_flower(agent: Image) -> None:
    assert not SERVERS & set(agent.distributions())
    assert {"numba", "pyarrow", "numpy"} <= set(agent.distributions())


def test_the_connection_has_nothing_that_reads_or_counts_data(connection: Image) -> None:
    assert not {"numba", "pyarrow", "pandas", "torch"} & set(connection.distributions())
    assert connection.distributions()["flwr"] == "1.41.0"


@pytest.mark.parametrize("name", ["agent", "connection"])
def test_what_is_installed_is_what_constraints_name(name: str, request: pytest.FixtureRequest) -> None:
    image: Image = request.getfixturevalue(name)
    pinned = dict(
        re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    pinned = {_normal(k): v for k, v in pinned.items()}
    loose = {n: v for n, v in image.distributions().items() if pinned.get(_normal(n)) != v}
    assert set(loose) == {"smile-federation"}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_agents_commands_work_read_only_and_without_network(agent: Image) -> None:
    assert agent.user == "10001:10001"
    for words in (["--version"], ["doctor", "--help"], ["run", "--help"], ["preview", "--help"]):
        done = agent.run(shlex.join([*agent.entry, *words]), confined=True)
        assert done.returncode == 0, done.stderr
    # What the entry point does without a home folder: an error for people.
    done = agent.run(shlex.join([*agent.entry, *agent.command]), confined=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "site-agent init" in done.stderr


def test_the_connections_command_works_read_only(connection: Image) -> None:
    assert connection.user == "10002:10002"
    done = connection.run(shlex.join(connection.entry), confined=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "connection.toml" in done.stderr


def test_the_health_check_tells_a_lock_that_is_held(agent: Image) -> None:
    lock = agent.folder / "layer" / "var/lib/smile/site/running.lock"
    lock.parent.mkdir(parents=True)
    check = shlex.join(agent.check)
    assert agent.run(check, confined=True).returncode == 1  # no such file
    lock.touch(mode=0o644)
    assert agent.run(check, confined=True).returncode == 1
    assert agent.run(f"exec 9<{agent.check[-1]}; flock 9; {check}", confined=True).returncode == 0


def test_the_coordinators_image(place: Path) -> None:
    if os.environ.get("SMILE_BATTERY") != "full":
        pytest.skip("installs PyTorch, minutes: SMILE_BATTERY=full")
    # PyTorch's own index, or a copy of it; here pip's find-links has that build.
    image = build(
        FILES["coordinator"],
        place / "hub",
        "last",
        TORCH_INDEX=os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"),
    )
    found = image.distributions()
    assert found["torch"].endswith("+cpu")
    assert not [n for n in found if n.startswith("nvidia")]
    assert "numba" not in found
    assert python(image, "import site_agent").returncode == 1
    for words in (["--version"], ["serve", "--help"], ["round", "--help"], ["init", "--example-study"]):
        done = image.run(shlex.join([*image.entry, *words]), confined=True)
        assert done.returncode == 0, done.stderr
    assert image.run(shlex.join([*image.entry, "serve"]), confined=True).returncode == 2
    assert python(image, "import psycopg, coordinator.fitting, coordinator.web.serving").returncode == 0
    print(f"coordinator: {len(found)} distributions, {image.megabytes()} MB")


@pytest.mark.parametrize("name", FILES)
def test_each_image_ends_as_a_user_and_says_how_it_is(name: str) -> None:
    last: dict[str, str] = {}
    for word, rest in instructions(FILES[name]):
        if word == "FROM":
            assert rest.startswith("${PYTHON}") or " AS " in rest
            last = {}
        last[word] = rest
    assert re.fullmatch(r"1000\d:1000\d", last["USER"])
    assert {"HEALTHCHECK", "ENTRYPOINT"} <= set(last)
    assert ("ARG", "PYTHON=python:3.11-slim-bookworm") in instructions(FILES[name])
