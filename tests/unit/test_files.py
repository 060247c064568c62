"""A folder that was made whole gets its name, whatever stands there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from protocol.files import put_in_place, remove_parts


def made(folder: Path) -> Path:
    work = folder / ".part-x"
    (work / "keys").mkdir(parents=True)
    (work / "keys" / "a.key").write_text("secret")
    (work / "study.toml").write_text("id")
    return work


def content(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("there", [False, True])
def test_an_empty_folder_gives_way(tmp_path: Path, there: bool) -> None:
    target = tmp_path / "hub"
    if there:
        target.mkdir()
    put_in_place(made(tmp_path), target)
    assert content(target) == {"keys/a.key", "study.toml"}


def test_a_folder_with_something_in_it_does_not(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "mine").write_text("kept")
    with pytest.raises(OSError, match="not empty"):
        put_in_place(made(tmp_path), tmp_path / "hub")
    assert content(tmp_path / "hub") == {"mine"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: needs root")
def test_a_mount_point_takes_the_content_in(tmp_path: Path) -> None:
    target = tmp_path / "hub"
    target.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", target], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        put_in_place(made(tmp_path), target)
        assert content(target) == {"keys/a.key", "study.toml"}
    finally:
        subprocess.run(["umount", target], check=True)


def test_parts_of_what_was_killed_go_and_nothing_else(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / ".part-file").write_text("half")
    (tmp_path / "whole").write_text("kept")
    remove_parts(tmp_path)
    assert content(tmp_path) == {"whole"}
