"""The exchange folder: what each side may do with it, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import FederationError, ProtocolError, RoundError
from site_agent import exchange as module
from site_agent.exchange import MAX_BLOCK, MAX_CALL, MAX_CALLS, MAX_RESULTS, Exchange, SiteStatus

HOSTILE_NAMES = [
    "",
    "../../etc/passwd",
    "a" * 63,
    "a" * 65,
    "A" * 64,
    "g" * 64,
    f"{'a' * 64}\n",
    f"{'a' * 63}/",
]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return Exchange(tmp_path / "exchange")


def files(exchange: Exchange) -> set[str]:
    return {str(p.relative_to(exchange.root)) for p in exchange.root.rglob("*") if p.is_file()}


def sealed(exchange: Exchange, tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "release"
    path.write_bytes(data)
    name, size = exchange.put_sealed(path)
    assert size == len(data)
    assert not path.exists()
    return name


def test_a_second_exchange_over_the_same_folder_sees_the_same(exchange: Exchange) -> None:
    exchange.put_call(b"call")
    assert Exchange(exchange.root).calls() == [b"call"]


def test_the_group_reads_files_and_nobody_else(exchange: Exchange, tmp_path: Path) -> None:
    exchange.put_call(b"call")
    exchange.set_status(SiteStatus(round="r-1", state="preparing"))
    sealed(exchange, tmp_path, b"bytes")
    exchange.put_result_block(sha(b"result"), 6, 0, b"result")
    modes = {stat.S_IMODE(p.stat().st_mode) for p in exchange.root.rglob("*") if p.is_file()}
    assert modes == {0o640}
    assert all(p.stat().st_mode & 0o007 == 0 for p in [exchange.root, *exchange.root.iterdir()])


# --- Calls ---------------------------------------------------------------------------------------------


def test_a_call_is_kept_once(exchange: Exchange) -> None:
    for data in (b"first", b"second", b"first"):
        exchange.put_call(data)
    assert sorted(exchange.calls()) == [b"first", b"second"]
    exchange.drop_call(b"first")
    exchange.drop_call(b"first")
    assert exchange.calls() == [b"second"]


def test_calls_are_bounded_in_size_and_number(exchange: Exchange) -> None:
    exchange.put_call(bytes(MAX_CALL))
    with pytest.raises(ProtocolError, match="65537 bytes"):
        exchange.put_call(bytes(MAX_CALL + 1))
    for i in range(MAX_CALLS - 1):
        exchange.put_call(b"%d" % i)
    with pytest.raises(RoundError, match="16 calls wait"):
        exchange.put_call(b"one more")
    exchange.put_call(b"0")  # known already, so it is no further call
    assert len(exchange.calls()) == MAX_CALLS


def test_a_link_among_the_calls_is_not_followed(exchange: Exchange, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (exchange.root / "calls" / f"{'a' * 64}.json").symlink_to(secret)
    assert exchange.calls() == []


# --- Status --------------------------------------------------------------------------------------------


def test_status_is_none_until_it_is_set(exchange: Exchange) -> None:
    assert exchange.status("r-1") is None
    status = SiteStatus(round="r-1", state="refused", detail="not this time")
    exchange.set_status(status)
    assert exchange.status("r-1") == status
    assert exchange.status("r-2") is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 33, "r 1"])
def test_a_round_that_is_no_identifier_is_refused(exchange: Exchange, name: str) -> None:
    with pytest.raises(ProtocolError, match="round's name"):
        exchange.status(name)


def test_a_damaged_status_is_a_protocol_error(exchange: Exchange) -> None:
    (exchange.root / "status" / "r-1.json").write_text('{"round": "r-1", "state": "tired"}')
    with pytest.raises(ProtocolError):
        exchange.status("r-1")


def test_a_sealed_file_goes_when_its_round_names_another_or_none(exchange: Exchange, tmp_path: Path) -> None:
    first = sealed(exchange, tmp_path, b"first")
    exchange.set_status(SiteStatus(round="r-1", state="sealed", sha256=first, size=5))
    second = sealed(exchange, tmp_path, b"second")
    exchange.set_status(SiteStatus(round="r-1", state="sealed", sha256=second, size=6))
    assert {name for name in files(exchange) if "sealed/" in name} == {f"sealed/{second}.sealed"}
    exchange.set_status(SiteStatus(round="r-1", state="delivered", sha256=sha(b"result"), receipt="{}"))
    assert not [name for name in files(exchange) if "sealed/" in name]


def test_clear_forgets_a_round_and_no_other(exchange: Exchange, tmp_path: Path) -> None:
    for name in ("r-1", "r-2"):
        digest = sealed(exchange, tmp_path, name.encode())
        exchange.set_status(SiteStatus(round=name, state="sealed", sha256=digest, size=3))
    exchange.put_call(b"no call that anybody signed")
    exchange.clear("r-1")
    exchange.clear("r-1")
    left = {
        f"sealed/{sha(b'r-2')}.sealed",
        "status/r-2.json",
        f"calls/{sha(b'no call that anybody signed')}.json",
    }
    assert files(exchange) == left


# --- Sealed blocks out ---------------------------------------------------------------------------------


def test_blocks_of_a_sealed_file(exchange: Exchange, tmp_path: Path) -> None:
    data = os.urandom(1000)
    name = sealed(exchange, tmp_path, data)
    assert b"".join(exchange.read_block(name, i, 300) for i in range(0, 1000, 300)) == data
    assert exchange.read_block(name, 5000, 10) == b""


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_only_a_digest_names_a_file(exchange: Exchange, name: str) -> None:
    with pytest.raises(ProtocolError, match="64 hex digits"):
        exchange.read_block(name, 0, 10)
    with pytest.raises(ProtocolError, match="64 hex digits"):
        exchange.put_result_block(name, 10, 0, b"x")


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, 0), (0, -1), (0, MAX_BLOCK + 1)])
def test_a_range_beyond_the_limits_is_refused(
    exchange: Exchange, tmp_path: Path, offset: int, size: int
) -> None:
    name = sealed(exchange, tmp_path, b"data")
    with pytest.raises(ProtocolError):
        exchange.read_block(name, offset, size)


def test_what_is_not_there_or_not_a_file_is_not_read(exchange: Exchange, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (exchange.root / "sealed" / f"{'a' * 64}.sealed").symlink_to(secret)
    for digit in "ab":
        with pytest.raises(RoundError, match=f"no sealed file {digit * 12}") as caught:
            exchange.read_block(digit * 64, 0, 10)
        assert str(tmp_path) not in str(caught.value)


# --- Result blocks in ----------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 250), max_size=20))
def test_a_sender_that_follows_the_answers_brings_any_file(
    tmp_path: Path, data: bytes, cuts: list[int]
) -> None:
    """Whatever blocks came before, in whatever order, going on at the answer ends with the whole file."""
    exchange = Exchange(tmp_path / sha(data + bytes(str(cuts), "ascii")))
    name = sha(data)
    for cut in cuts:
        if cut < len(data):
            held = exchange.put_result_block(name, len(data), cut, data[cut : cut + 30])
            assert 0 <= held <= len(data)
    held = exchange.put_result_block(name, len(data), 0, b"")
    while held < len(data):
        held = exchange.put_result_block(name, len(data), held, data[held : held + 50])
    assert [p.read_bytes() for p in exchange.results()] == [data]
    assert exchange.put_result_block(name, len(data), 0, b"") == len(data)


def test_a_result_with_another_digest_is_dropped(exchange: Exchange) -> None:
    name = sha(b"the truth")
    assert exchange.put_result_block(name, 9, 0, b"not ") == 4
    with pytest.raises(ProtocolError, match="another digest"):
        exchange.put_result_block(name, 9, 4, b"the t")
    assert files(exchange) == set()
    assert exchange.put_result_block(name, 9, 0, b"the truth") == 9


@pytest.mark.parametrize(
    ("total", "offset", "size"),
    [(0, 0, 0), (-1, 0, 0), (5, 0, 6), (5, -1, 2), (5, 4, 2), (module.MAX_RESULT + 1, 0, 1)],
)
def test_a_block_beyond_the_limits_is_refused(exchange: Exchange, total: int, offset: int, size: int) -> None:
    with pytest.raises(ProtocolError):
        exchange.put_result_block("a" * 64, total, offset, bytes(size))
    assert files(exchange) == set()


def test_one_unfinished_result_and_four_whole_ones(exchange: Exchange) -> None:
    exchange.put_result_block("a" * 64, 10, 0, b"half")
    exchange.put_result_block("b" * 64, 10, 0, b"half")
    assert files(exchange) == {f"results/{'b' * 64}.part"}
    for i in range(MAX_RESULTS):
        exchange.put_result_block(sha(b"%d" % i), 1, 0, b"%d" % i)
    with pytest.raises(RoundError, match="4 results wait"):
        exchange.put_result_block("c" * 64, 10, 0, b"half")
    exchange.results()[0].unlink()
    assert exchange.put_result_block("c" * 64, 10, 0, b"half") == 4


def test_a_full_disk_leaves_the_bytes_that_were_held(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sha(b"0123456789")
    exchange.put_result_block(name, 10, 0, b"0123")
    write = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > 4:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:2], offset)

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            exchange.put_result_block(name, 10, 4, b"456789")
    assert exchange.put_result_block(name, 10, 0, b"") == 4
    assert exchange.put_result_block(name, 10, 4, b"456789") == 10


def test_a_link_in_the_place_of_a_part_is_not_written_through(exchange: Exchange, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    (exchange.root / "results" / f"{'a' * 64}.part").symlink_to(target)
    with pytest.raises((OSError, FederationError)):
        exchange.put_result_block("a" * 64, 10, 0, b"half")
    assert target.read_bytes() == b""
