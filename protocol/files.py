"""Writing files so that a reader sees the old bytes or the new bytes, never a part."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A stream whose bytes appear at `path` only if the block ends without an error.

    The bytes are on the disk before the name is (fsync, then rename, then fsync of the folder).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, mode)  # noqa: PTH101
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o600) -> None:
    """Write a whole file by `atomic_file`."""
    with atomic_file(path, mode=mode) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def copy_atomic(source: Path, target: Path, *, mode: int = 0o600) -> None:
    """Copy a whole file by `atomic_file`, however large it is."""
    with atomic_file(target, mode=mode) as stream, source.open("rb") as data:
        shutil.copyfileobj(data, stream)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes began in a folder; nobody may write there at the time."""
    for part in folder.glob(".part-*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(work: Path, folder: Path) -> None:
    """Give a folder that was made whole its name; an empty folder of that name gives way.

    An empty mount point cannot give way: its content comes into it instead, then the whole appears step by step.

    Args:
        work: the folder, beside `folder`.
        folder: its name; absent or empty.
    """
    try:
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.EXDEV}:
            raise
        for path in sorted(work.iterdir()):
            shutil.move(path, folder / path.name)
