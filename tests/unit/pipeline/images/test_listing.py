"""What a listing finds, follows, skips and says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError, DataError
from pipeline.images.listing import Passed, find_files, is_hidden, key_of, open_filesystem, walk


def names(path: Path, passed: Passed, **settings: bool) -> list[str]:
    filesystem, root = open_filesystem(str(path))
    return [file.name for file in walk(filesystem, root, passed, **settings)]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_hidden_names_are_counted_wherever_they_stand(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/.2.png", ".git/3.png", "__MACOSX/a/._1.png", "a/@eaDir/1.png"):
        touch(tmp_path / name)
    passed = Passed()
    assert names(tmp_path, passed) == ["a/1.png"]
    assert passed.counts == {"hidden files or folders": 4}
    assert "such as" in passed.lines()[0]
    assert is_hidden("x/.y/z") and not is_hidden("x.y/z")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    far = touch(tmp_path / "far" / "cat" / "1.png").parent
    near = tmp_path / "near"
    near.mkdir()
    (near / "cat").symlink_to(far)
    (near / "one.png").symlink_to(far / "1.png")
    (near / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (near / "up").symlink_to(near)
    (near / "a").symlink_to(near / "b")
    (near / "b").symlink_to(near / "a")
    passed = Passed()
    assert names(near, passed) == ["a", "b", "cat/1.png", "gone.png", "one.png"]
    assert passed.counts == {"links to a folder that holds them": 1}


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.png")
    passed = Passed()
    assert names(tmp_path, passed) == []
    assert passed.counts == {"pipes, sockets and devices": 1}


def test_unreadable_folders_are_an_error_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a" / "1.png")
    touch(tmp_path / "b" / "2.png")
    real = os.scandir

    def scandir(path: str):  # type: ignore[no-untyped-def]
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("pipeline.images.listing.os.scandir", scandir)
    with pytest.raises(DataError, match=r"1 folder\(s\) that cannot be read, such as b/"):
        names(tmp_path, Passed())
    passed = Passed()
    assert names(tmp_path, passed, allow_unreadable=True) == ["a/1.png"]
    assert passed.counts == {"unreadable folders": 1}


def test_keys_are_text_whatever_the_name(tmp_path: Path) -> None:
    touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))
    (name,) = names(tmp_path, Passed())
    assert key_of(name) == "caf\\xe9.png" and key_of("plain.png") == "plain.png"


def test_container_files_by_file_folder_and_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "my [set]" / "0.tar")
    touch(tmp_path / "my [set]" / "1.tar.gz")
    (tmp_path / "linked").symlink_to(tmp_path / "my [set]")

    def find(path: str) -> list[str]:
        _, root, files = find_files(path, (".tar",), Passed())
        return [f"{root}/{file.name}" for file in files]

    inside = str(tmp_path / "my [set]" / "0.tar")
    assert find(str(tmp_path / "my [set]")) == find(inside) == [inside]
    assert find(str(tmp_path / "*" / "*.tar")) == [str(tmp_path / "linked" / "0.tar"), inside]
    assert len(find(str(tmp_path))) == 2
    for path, hint in (
        (f"{inside}::{inside}", "glob pattern"),
        (str(tmp_path / "s-{0..3}.tar"), "Brace patterns"),
        (str(tmp_path / "nothing*.tar"), "Check --source.path"),
    ):
        with pytest.raises(ConfigError, match=hint):
            find(path)
    passed = Passed()
    find_files(str(tmp_path / "my [set]"), (".tar",), passed)
    assert list(passed.examples.values()) == ["1.tar.gz"]
