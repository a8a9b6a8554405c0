"""Blocks reserved ahead are part of no file, and are given back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.fs import sink as files_module
from storage.fs.local import LocalFiles
from storage.fs.reserve import reserve


def test_a_file_has_the_bytes_written_and_no_more_blocks(tmp_path: Path) -> None:
    sink = LocalFiles(tmp_path).create("a/b")
    piece = bytes(range(256)) * 256
    for _ in range(3):
        sink.write(piece)
    sink.write_many([piece, b"end"])
    sink.seal(fsync=True)
    path = tmp_path / "a/b"
    assert path.read_bytes() == piece * 4 + b"end"
    assert path.stat().st_blocks * 512 < len(piece) * 8


def test_a_file_grows_past_what_was_reserved_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_RESERVED_BYTES", 100_000)
    calls: list[tuple[int, int]] = []

    def note(descriptor: int, start: int, size: int) -> bool:
        calls.append((start, size))
        return reserve(descriptor, start, size)

    monkeypatch.setattr(files_module, "reserve", note)
    sink = LocalFiles(tmp_path).create("a")
    for _ in range(5):
        sink.write(b"x" * 40_000)
    sink.write(b"y" * 10)  # too few to be worth a call
    sink.seal(fsync=False)
    assert calls == [(0, 100_000), (80_000, 100_000), (160_000, 100_000)]
    assert (tmp_path / "a").read_bytes() == b"x" * 200_000 + b"y" * 10


def test_where_nothing_can_be_reserved_writing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "reserve", lambda *_: False)
    sink = LocalFiles(tmp_path).create("a")
    sink.write(b"x" * 100_000)
    sink.seal(fsync=False)
    assert (tmp_path / "a").stat().st_size == 100_000
    read_only = os.open(tmp_path / "a", os.O_RDONLY)
    assert not reserve(read_only, 0, 1 << 20)
    os.close(read_only)
