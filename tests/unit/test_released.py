"""What a site remembers of its releases: whole, private, promoted at most once, refused when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import FederationError, UsageError
from site_agent import released
from site_agent.changes import Fingerprints
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import Reference
from tests.property.test_gate_laws import events
from tests.property.test_sticky_laws import same

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
PATIENTS = Fingerprints(np.array([1, 2**63, 2**64 - 1], np.uint64), np.array([0, 5, 2**63 + 1], np.uint64))


def reference(n: int = 24) -> Reference:
    codes = tuple(f"ICD10CM:ä {i:02d}" for i in range(n))
    return Reference(codes, count_pairs(*events(1, 100, 24, 8), 24) if n else PairCounts.none(0), 11)


def keep(home: Path, digest: str, made: Reference | None = None) -> None:
    released.keep_candidate(
        home, digest, reference=made or reference(), patients=PATIENTS, rules={"counting.rule": "window"}
    )


def test_round_trip(tmp_path: Path) -> None:
    keep(tmp_path, A)
    released.promote(tmp_path, A)
    (found,) = released.remembered(tmp_path)
    assert (found.number, found.digest) == (1, A)
    assert found.rules() == {"counting.rule": "window"}
    for name in ("whole", "days"):
        np.testing.assert_array_equal(getattr(found.fingerprints(), name), getattr(PATIENTS, name))
    back, made = found.reference(), reference()
    assert (back.codes, back.floor) == (made.codes, made.floor)
    assert same(back.counts, made.counts)


def test_a_reference_without_codes(tmp_path: Path) -> None:
    keep(tmp_path, A, reference(0))
    released.promote(tmp_path, A)
    assert released.remembered(tmp_path)[0].reference().codes == ()


def test_only_this_user_may_read(tmp_path: Path) -> None:
    released.site_salt(tmp_path)
    keep(tmp_path, A)
    released.promote(tmp_path, A)
    for path in [tmp_path / "released", *(tmp_path / "released").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_promotion_is_idempotent_and_in_order(tmp_path: Path) -> None:
    for digest in (A, B):
        keep(tmp_path, digest)
        released.promote(tmp_path, digest)
        released.promote(tmp_path, digest)
    assert [(r.number, r.digest) for r in released.remembered(tmp_path)] == [(1, A), (2, B)]
    released.promote(tmp_path, A)  # sent again: it stays where it was
    assert [r.digest for r in released.remembered(tmp_path)] == [A, B]
    first, second = released.remembered(tmp_path)
    assert not (first.folder / "counts.safetensors").exists()
    assert len(first.fingerprints().whole) == 3
    assert second.reference().codes == reference().codes


def test_a_candidate_of_another_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no record of what release aaaa"):
        released.promote(tmp_path, A)
    keep(tmp_path, A)
    keep(tmp_path, B)
    with pytest.raises(UsageError, match="no record of what release aaaa"):
        released.promote(tmp_path, A)
    assert released.remembered(tmp_path) == []
    released.promote(tmp_path, B)
    assert [r.digest for r in released.remembered(tmp_path)] == [B]


def test_a_kill_before_the_rename_leaves_the_reference_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, A)
    released.promote(tmp_path, A)
    keep(tmp_path, B)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            released.promote(tmp_path, B)
        with pytest.raises(KeyboardInterrupt):
            keep(tmp_path, C)
    assert [r.digest for r in released.remembered(tmp_path)] == [A]
    released.promote(tmp_path, B)
    assert [r.digest for r in released.remembered(tmp_path)] == [A, B]
    assert not list((tmp_path / "released").glob(".part-*"))


@pytest.mark.parametrize("name", ["about.json", "patients.safetensors", "counts.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x80\x04K\x01.", b"\x93NUMPY\x01\x00"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    keep(tmp_path, A)
    released.promote(tmp_path, A)
    (found,) = released.remembered(tmp_path)
    path = found.folder / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(FederationError, match="Restore the folder from a backup"):
        (found.rules(), found.fingerprints(), found.reference())


def test_arrays_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    made = reference()
    keep(tmp_path, A, Reference(made.codes[:-1], made.counts, made.floor))
    released.promote(tmp_path, A)
    with pytest.raises(FederationError, match="cannot be used"):
        released.remembered(tmp_path)[0].reference()


def test_the_salt_is_made_once_and_missed_when_gone(tmp_path: Path) -> None:
    salt = released.site_salt(tmp_path)
    assert released.site_salt(tmp_path) == salt
    assert len(salt) == 32
    keep(tmp_path, A)
    released.promote(tmp_path, A)
    (tmp_path / "released" / "salt").unlink()
    with pytest.raises(FederationError, match="it is gone"):
        released.site_salt(tmp_path)
    (tmp_path / "released" / "salt").write_bytes(b"short")
    with pytest.raises(FederationError, match="5 bytes"):
        released.site_salt(tmp_path)


def test_about_holds_no_count(tmp_path: Path) -> None:
    keep(tmp_path, A)
    text = json.loads((tmp_path / "released" / f"candidate-{A}" / "about.json").read_text())
    assert text == {"rules": {"counting.rule": "window"}}
