"""Content tells images apart, not names, times or places."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dreamshard.foreign.guard import CannotReadError
from pipeline.images import evidence
from pipeline.images.evidence import sample, sample_bytes, sample_file, sample_files, spread
from pipeline.images.listing import Passed, open_filesystem, walk


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def digests(path: Path) -> list[int]:
    filesystem, root = open_filesystem(str(path))
    return sample_files(root, walk(filesystem, root, Passed())).tolist()


@pytest.mark.parametrize("size", [0, 1, 5_000, evidence.WHOLE, evidence.WHOLE + 1, 1_000_000])
def test_bytes_arrays_and_files_have_one_digest(size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "f").write_bytes(data)
    assert sample_bytes(data) == sample_file(str(tmp_path / "f"), size)
    if size:
        for place in (0, size - 1):
            other = bytearray(data)
            other[place] ^= 1
            assert sample_bytes(bytes(other)) != sample_bytes(data)
    assert sample_bytes(np.zeros((2, 3), np.uint8)) != sample_bytes(np.zeros((3, 2), np.uint8))


def test_a_large_image_is_read_in_a_few_blocks() -> None:
    asked: list[int] = []
    sample(10**9, lambda offset, length: asked.append(length) or b"")
    assert sum(asked) == 2 * evidence.EDGE + evidence.INNER_BLOCKS * evidence.INNER


def test_copies_and_touched_files_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.bmp").write_bytes(bytes([number]) * 100)
    before = digests(folder)
    assert len(set(before)) == 3 and digests(folder) == before
    os.utime(folder / "1.bmp")
    shutil.copytree(folder, tmp_path / "b")
    assert digests(folder) == before and digests(tmp_path / "b") == before
    (folder / "1.bmp").write_bytes(bytes([9]) * 100)
    after = digests(folder)
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "1.bmp").write_bytes(b"1")
    before = digests(folder)
    monkeypatch.setattr(evidence, "sample_file", lambda path, size: pytest.fail("read"))
    assert digests(folder) == before


def test_a_damaged_cache_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "1.bmp").write_bytes(b"1")
    before = digests(folder)
    (cache,) = (tmp_path / "cache").rglob("*.npy")
    for damage in (b"", b"\x93NUMPY", cache.read_bytes()[:-3]):
        cache.write_bytes(damage)
        assert digests(folder) == before


def test_the_samples_of_a_shorter_source_are_among_those_of_a_longer() -> None:
    for count in (0, 1, 31, 32, 33, 1000, 10**6):
        chosen = spread(count)
        assert chosen == [number for number in spread(10 * count + 1) if number < count]
    assert len(spread(10**6)) < 200


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ESTALE])
def test_what_the_machine_refuses_tells_no_source_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "f").write_bytes(b"x")

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(evidence.os, "open", refuse)
    with pytest.raises(CannotReadError, match="cannot be read"):
        sample_file(str(tmp_path / "f"), 1)
    monkeypatch.undo()
    assert sample_file(str(tmp_path / "gone"), 1) == 0
