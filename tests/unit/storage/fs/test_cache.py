"""The disk cache: whole and checked copies only, within the limit, for many processes."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamshard.errors import ConfigError, DataError
from storage.fs import cache as module
from storage.fs.cache import BYTES_VARIABLE, FOLDER_VARIABLE, DiskCache, shared_cache

FORK = multiprocessing.get_context("fork")


class Source:
    """A store of one kind of file: its bytes follow from its name."""

    def __init__(self, size: int = 100) -> None:
        self.size, self.fetched, self.garbled = size, [], 0

    def get(self, cache: DiskCache, name: str) -> bytes:
        wanted = self.content(name)

        def fetch(path: str) -> None:
            self.fetched.append(name)
            garbled = self.garbled > 0
            self.garbled -= garbled
            Path(path).write_bytes(wanted[: self.size // 2] if garbled else wanted)

        def check(path: str) -> str:
            return "" if Path(path).read_bytes() == wanted else "got other bytes"

        return Path(cache.path(name, fetch=fetch, check=check)).read_bytes()

    def content(self, name: str) -> bytes:
        return (name.encode() * self.size)[: self.size]


def copies(cache: DiskCache) -> list[Path]:
    return list((cache.folder / "copies").iterdir())


def test_a_file_is_got_once(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path), Source()
    assert [source.get(cache, "a") for _ in range(3)] == [source.content("a")] * 3
    assert source.fetched == ["a"]
    assert source.get(DiskCache(tmp_path), "a") == source.content("a")  # a later process
    assert source.fetched == ["a"]
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_copy_that_went_bad_is_got_again_by_the_next_process(tmp_path: Path) -> None:
    source = Source()
    source.get(cache := DiskCache(tmp_path), "a")
    copies(cache)[0].write_bytes(b"x" * 100)
    assert source.get(DiskCache(tmp_path), "a") == source.content("a")
    assert source.fetched == ["a", "a"]


def test_a_garbled_body_is_got_again_and_never_seen(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path), Source()
    source.garbled = 2
    assert source.get(cache, "a") == source.content("a")
    source.garbled = 99
    with pytest.raises(DataError, match=r"b: got other bytes \(3 times\)"):
        source.get(cache, "b")
    assert len(copies(cache)) == 1 and list((tmp_path / "partial").iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 8))
def test_what_was_used_last_stays_within_the_limit(names: list[int], room: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, source = DiskCache(folder, limit_bytes=room * 100), Source()
        recent: list[str] = []
        clock = 1_000_000_000
        for number in names:
            name = str(number)
            source.get(cache, name)
            clock += 1
            for copy in copies(cache):  # clocks of file systems are too coarse for a test
                if copy.read_bytes() == source.content(name):
                    os.utime(copy, (clock, clock))
            recent = [name, *[other for other in recent if other != name]][: max(1, room)]
            assert cache.size() <= max(1, room) * 100
        assert {copy.read_bytes() for copy in copies(cache)} == set(map(source.content, recent))


def test_a_copy_in_use_stays_readable_when_it_goes(tmp_path: Path) -> None:
    cache, source = DiskCache(tmp_path, limit_bytes=100), Source()
    path = cache.path("a", fetch=lambda p: Path(p).write_bytes(b"aa") and None, check=lambda _: "")
    with open(path, "rb") as file:
        source.get(cache, "b")
        assert not os.path.exists(path) and file.read() == b"aa"


def _use(folder: str, seed: int, results) -> None:
    cache, source = DiskCache(folder, limit_bytes=500), Source()
    good = 0
    for step in range(60):
        name = str((step * 7 + seed * 3) % 9)
        for _ in range(5):
            try:
                good += source.get(cache, name) == source.content(name)
                break
            except FileNotFoundError:  # went between being named and being opened
                continue
    results.put((good, len(source.fetched)))


def test_many_processes_share_one_folder(tmp_path: Path) -> None:
    results = FORK.Queue()
    users = [FORK.Process(target=_use, args=(str(tmp_path), n, results)) for n in range(3)]
    for user in users:
        user.start()
    told = [results.get(timeout=60) for _ in users]
    for user in users:
        user.join()
    assert [good for good, _ in told] == [60] * 3
    assert DiskCache(tmp_path).size() <= 500
    assert list((tmp_path / "partial").iterdir()) == []


def _wait_in_fetch(folder: str, started) -> None:
    def fetch(path: str) -> None:
        Path(path).write_bytes(b"half")
        started.set()
        time.sleep(60)

    DiskCache(folder).path("a", fetch=fetch, check=lambda _: "")


def test_a_killed_process_leaves_neither_lock_nor_copy(tmp_path: Path) -> None:
    started = FORK.Event()
    user = FORK.Process(target=_wait_in_fetch, args=(str(tmp_path), started))
    user.start()
    assert started.wait(30)
    user.kill()
    user.join()
    cache, source = DiskCache(tmp_path), Source()
    assert list((tmp_path / "partial").iterdir()) == []
    assert source.get(cache, "a") == source.content("a")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def fetch(path: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=f"No space left.*{BYTES_VARIABLE}"):
        DiskCache(tmp_path).path("a", fetch=fetch, check=lambda _: "")


def test_the_environment_sets_the_shared_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "c"))
    monkeypatch.setenv(BYTES_VARIABLE, "12")
    assert (shared_cache().folder, shared_cache().limit_bytes) == (tmp_path / "c", 12)
    assert shared_cache() is shared_cache()
    monkeypatch.setenv(BYTES_VARIABLE, "12 GB")
    with pytest.raises(ConfigError, match=BYTES_VARIABLE):
        shared_cache()
    monkeypatch.setenv(BYTES_VARIABLE, "12")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "c"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=FOLDER_VARIABLE):
        module.shared_cache()
