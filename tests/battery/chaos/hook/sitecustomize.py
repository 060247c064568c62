"""Found by Python at the start of every process of a chaos federation: named steps at which a process kills itself.

`CHAOS_FOLDER/points.json` names the steps. A step is armed by a file `CHAOS_FOLDER/fuses/ID`; the process that comes
to it first takes the file away and sends itself SIGKILL. The product knows nothing of it.
"""

from __future__ import annotations

# pathlib is what is patched here.
# ruff: noqa: PTH100, PTH104, PTH118, PTH120, PTH123
import functools
import importlib.abc
import importlib.util
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_FOLDER = os.environ.get("CHAOS_FOLDER", "")
_ROLE = os.environ.get("CHAOS_ROLE", "")
_PROCESSES = "protocol.processes"


def _die(point: dict[str, str], arguments: tuple[Any, ...] = ()) -> None:
    """SIGKILL to this process, if the step is armed and this is the process and the call that are meant."""
    if point["role"] != _ROLE or (point["arg"] and point["arg"] not in arguments):
        return
    fuse = os.path.join(_FOLDER, "fuses", point["id"])
    try:
        os.rename(fuse, os.path.join(_FOLDER, "burnt", point["id"]))
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(module: Any, point: dict[str, str]) -> None:
    owner: Any = module
    *above, name = point["at"].partition(":")[2].split(".")
    try:
        for part in above:
            owner = getattr(owner, part)
        plain = getattr(owner, name)
    except AttributeError:
        # The suite's fault, not the product's: the test says which step is not there.
        pathlib.Path(_FOLDER, "missing", point["id"]).touch()
        return

    @functools.wraps(plain)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if point["when"] == "before":
            _die(point, args)
        found = plain(*args, **kwargs)
        if point["when"] == "after":
            _die(point, args)
        return found

    setattr(owner, name, wrapped)


def _guard_renames(points: list[dict[str, str]]) -> None:
    """Bytes are written, and about to get their name by any of three ways."""

    def guarded(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            path = os.fspath(target) if not isinstance(target, int) else ""
            for point in points:
                if point["at"] in str(path):
                    _die(point)
            return plain(source, target, *args, **kwargs)

        return call

    os.replace = guarded(os.replace)
    pathlib.Path.replace = guarded(pathlib.Path.replace)  # type: ignore[method-assign]
    pathlib.Path.rename = guarded(pathlib.Path.rename)  # type: ignore[method-assign]


def _hand_down(module: Any) -> None:
    """Programs get a clean environment: they need this folder in it to have their steps too."""
    plain = module.clean_environment

    def clean_environment(home: Any, **words: Any) -> dict[str, str]:
        found: dict[str, str] = plain(home, **words)
        found |= {
            n: os.environ[n]
            for n in ("PYTHONPATH", "CHAOS_FOLDER", "CHAOS_ROLE", "OMP_NUM_THREADS")
            if n in os.environ
        }
        name, _, clock = os.environ.get("CHAOS_CLOCK", "").partition(":")
        if clock and str(home).endswith(name):
            found |= json.loads(clock)
        return found

    module.clean_environment = clean_environment


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, points: list[dict[str, str]]) -> None:
        self.points, self.busy = points, set[str]()
        self.wanted = {p["at"].partition(":")[0] for p in points} | {_PROCESSES}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        del path, target
        if fullname not in self.wanted or fullname in self.busy:
            return None
        self.busy.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.busy.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        plain = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            plain(module)
            if fullname == _PROCESSES:
                _hand_down(module)
            for point in self.points:
                if point["at"].partition(":")[0] == fullname:
                    _wrap(module, point)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _FOLDER:
    with open(os.path.join(_FOLDER, "points.json"), encoding="utf-8") as _stream:
        _points = json.load(_stream)
    _guard_renames([p for p in _points if p["when"] == "rename"])
    sys.meta_path.insert(0, _Finder([p for p in _points if p["when"] != "rename"]))
