"""Every way by which bytes could become code or reach a parser that crashes, seen as it happens.

`Watch` lists, in order: signatures that held, and each call of pickle, marshal, numpy's and torch's
loaders, yaml, hnswlib's loader, exec, eval, compile, import and the start of a process or a library. Most
come from Python's audit events (PEP 578), which C code raises too; the rest are wrapped.

As `sitecustomize` of another process (`watched_environment`) it writes to a file what of this touched bytes
that hold one of the given marks.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIGNATURE, HNSW = "signature", "hnswlib.load_index"
_AUDITED = {
    "pickle.find_class", "marshal.loads", "marshal.load", "exec", "compile", "import", "os.system", "os.exec",
    "subprocess.Popen", "ctypes.dlopen", "code.__new__",
}  # fmt: skip
_LOG, _MARKS = "SMILE_WATCH_LOG", "SMILE_WATCH_MARKS"


@dataclass
class Watch:
    """What happened, in order.

    Attributes:
        events: (name, detail); the detail of `load_index` is the SHA-256 of what it was given.
    """

    events: list[tuple[str, str]] = field(default_factory=list)

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def dangerous(self) -> list[tuple[str, str]]:
        return [e for e in self.events if e[0] != SIGNATURE]


_active: Watch | None = None
_thread = 0


def _note(name: str, *details: Any) -> None:
    # Only the thread under test: another one may import what it likes.
    if _active is not None and threading.get_ident() == _thread:
        _active.events.append((name, " ".join(str(d)[:200] for d in details)))


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active is not None and event in _AUDITED:
        _note(event, *arguments)


sys.addaudithook(_hook)


def _loaders() -> list[tuple[Any, str, str]]:
    """(owner, attribute, name) of the loaders that raise no audit event of their own."""
    import hnswlib
    import numpy as np
    import torch
    import yaml

    return [
        (pickle, "load", "pickle.load"), (pickle, "loads", "pickle.loads"), (pickle, "Unpickler", "pickle.Unpickler"),
        (np, "load", "np.load"), (np.lib.format, "read_array", "np.lib.format.read_array"), (np, "fromfile", "np.fromfile"),
        (torch, "load", "torch.load"), (yaml, "load", "yaml.load"), (yaml, "safe_load", "yaml.safe_load"),
        (builtins, "eval", "eval"), (hnswlib.Index, "load_index", HNSW),
    ]  # fmt: skip


def _wrap(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        path = next((a for a in arguments if isinstance(a, str) and Path(a).is_file()), None)
        _note(name, hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else "")
        return call(*arguments, **named)

    return noted


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch this thread while the block runs."""
    global _active, _thread  # noqa: PLW0603 - an audit hook can never be removed
    from protocol.keys import PublicKeys

    holds = PublicKeys.verify

    def verify(self: PublicKeys, signature: bytes, data: bytes) -> None:
        holds(self, signature, data)
        _note(SIGNATURE, self.digest)

    watch = Watch()
    patched = [(owner, name, getattr(owner, name)) for owner, name, _ in _loaders()]
    for owner, name, told in _loaders():
        setattr(owner, name, _wrap(getattr(owner, name), told))
    PublicKeys.verify = verify  # type: ignore[method-assign]
    _active, _thread = watch, threading.get_ident()
    try:
        yield watch
    finally:
        _active = None
        PublicKeys.verify = holds  # type: ignore[method-assign]
        for owner, name, original in patched:
            setattr(owner, name, original)


# --- In other processes --------------------------------------------------------------------------------


def watched_environment(folder: Path, log: Path, marks: list[bytes]) -> dict[str, str]:
    """Names to set so that a Python process, and those that it starts, write to `log` what touches a mark."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('smile_watching', {__file__!r})\n"
        "sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.report()\n"
    )
    return {"PYTHONPATH": str(folder), _LOG: str(log), _MARKS: json.dumps([m.hex() for m in marks])}


def hand_on(names: Mapping[str, str]) -> Callable[..., None]:
    """Children get these names too, although our services start programs with a clean environment.

    Returns:
        what `subprocess.Popen.__init__` was before.
    """
    start = subprocess.Popen.__init__

    def started(self: subprocess.Popen[Any], *arguments: Any, **named: Any) -> None:
        if named.get("env") is not None:
            named["env"] = {**named["env"], **names}
        start(self, *arguments, **named)

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]
    return start


@contextlib.contextmanager
def handing_on(names: Mapping[str, str]) -> Iterator[None]:
    """`hand_on` while the block runs."""
    before = hand_on(names)
    try:
        yield
    finally:
        subprocess.Popen.__init__ = before  # type: ignore[method-assign]


def report() -> None:
    """From now on, write each event whose bytes hold a mark; first, a line that says that this process is watched."""
    import numpy as np

    marks = [bytes.fromhex(m) for m in json.loads(os.environ[_MARKS])]
    descriptor = os.open(os.environ[_LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def say(event: str, detail: object) -> None:
        os.write(descriptor, (json.dumps([os.getpid(), event, str(detail)[:300]]) + "\n").encode())

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if any(mark in data for data in map(_bytes_of, arguments) for mark in marks):
            say(event, arguments[0])

    def wrap(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def noted(*arguments: Any, **named: Any) -> Any:
            check(name, arguments)
            return call(*arguments, **named)

        return noted

    say("watched", " ".join(sys.orig_argv))
    sys.addaudithook(lambda event, arguments: check(event, arguments) if event in _AUDITED else None)
    for owner, name in ((pickle, "load"), (pickle, "loads"), (np, "load"), (np.lib.format, "read_array")):
        setattr(owner, name, wrap(getattr(owner, name), f"{owner.__name__}.{name}"))
    hand_on({name: os.environ[name] for name in ("PYTHONPATH", _LOG, _MARKS)})


def _bytes_of(value: Any) -> bytes:
    """What an argument holds: bytes, text, the content of a stream or of an open file, the names of a code object."""
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, types.CodeType):
        return repr((value.co_filename, value.co_consts)).encode(errors="replace")
    if isinstance(value, io.BytesIO):
        return value.getvalue()
    if isinstance(value, io.BufferedReader | Path):
        with contextlib.suppress(OSError, TypeError):
            return Path(value if isinstance(value, Path) else value.name).read_bytes()
    with contextlib.suppress(TypeError):
        return bytes(memoryview(value))
    return b""


def reported(*logs: Path) -> dict[str, list[str]]:
    """Event -> details, of all processes that wrote to the logs."""
    found: dict[str, list[str]] = {}
    for line in (line for log in logs for line in log.read_text().splitlines()):
        _, event, detail = json.loads(line)
        found.setdefault(event, []).append(detail)
    return found
