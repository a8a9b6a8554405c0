"""Nothing below a root is written, renamed, touched or removed through a link."""

import contextlib
import errno
import os
import pickle
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from dreamshard.foreign.guard import CannotReadError
from storage.fs import beneath
from storage.fs.beneath import LinkError
from storage.fs.local import LocalFiles


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    """A root with a link `out` to a victim's folder and files of its own."""
    victim = tmp_path / "victim"
    (victim / "photos").mkdir(parents=True)
    (victim / "empty").mkdir()
    (victim / "photos" / "a").write_text("precious")
    root = tmp_path / "root"
    (root / "own").mkdir(parents=True)
    (root / "own" / "file").write_text("mine")
    (root / "out").symlink_to(victim)
    (root / "own" / "deep").symlink_to(victim / "photos")
    return LocalFiles(root)


def snapshot(folder: Path) -> list[tuple[str, bytes, int]]:
    found = sorted(folder.rglob("*"))
    return [(str(p), p.read_bytes() if p.is_file() else b"", p.lstat().st_mtime_ns) for p in found]


CHANGES: list[Callable[[LocalFiles], object]] = [
    lambda f: f.write("out/x", b"1"),
    lambda f: f.write("out/photos/a", b"1"),
    lambda f: f.write("out/new/x", b"1", if_absent=True),
    lambda f: f.open_new("own/deep/x"),
    lambda f: f.rename("own/file", "out/photos/a"),
    lambda f: f.rename("out/photos/a", "own/stolen"),
    lambda f: f.link("own/file", "own/deep/b"),
    lambda f: f.link("own/deep/a", "own/b"),
    lambda f: f.remove("out/photos/a"),
    lambda f: f.remove("own/deep/a"),
    lambda f: f.remove_tree("out/photos"),
    lambda f: f.touch("out/photos/a"),
    lambda f: f.touch("own/deep/a"),
    lambda f: f.sync_folders(["out/photos/a"]),
    lambda f: f.write("../victim/x", b"1"),
    lambda f: f.remove("own/../../victim/photos/a"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_no_change_goes_through_a_link(files: LocalFiles, tmp_path: Path, number: int) -> None:
    before = snapshot(tmp_path / "victim")
    with pytest.raises((LinkError, OSError), match=r"got (a link|the name)"):
        CHANGES[number](files)
    assert snapshot(tmp_path / "victim") == before
    assert (tmp_path / "root" / "own" / "file").read_text() == "mine"


def test_prune_and_trees_leave_what_a_link_leads_to(files: LocalFiles, tmp_path: Path) -> None:
    before = snapshot(tmp_path / "victim")
    files.prune("out")
    files.prune("own")
    files.prune("")
    assert files.remove_tree("own") == 2  # the file and the link: neither is followed
    files.remove_tree("out")
    assert not os.path.lexists(files.path("out"))  # of a link the link went
    assert snapshot(tmp_path / "victim") == before


def test_a_link_in_place_of_a_file_is_replaced_or_removed_itself(
    files: LocalFiles, tmp_path: Path
) -> None:
    before = snapshot(tmp_path / "victim")
    for name in ("own/a", "own/b"):
        Path(files.path(name)).symlink_to(tmp_path / "victim" / "photos" / "a")
    files.write("own/a", b"new")
    assert files.remove("own/b") and not os.path.lexists(files.path("own/b"))
    assert files.read("own/a") == b"new" and not os.path.islink(files.path("own/a"))
    assert snapshot(tmp_path / "victim") == before


def test_put_locked_follows_no_link(files: LocalFiles, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    before = snapshot(tmp_path / "victim")
    with pytest.raises(LinkError):
        files.write("out/x", b"1", if_absent=True)
    assert files.write("own/x", b"1", if_absent=True) and files.read("own/x") == b"1"
    assert snapshot(tmp_path / "victim") == before


def test_a_folder_swapped_for_a_link_on_the_way_is_not_followed(
    files: LocalFiles, tmp_path: Path, monkeypatch
) -> None:
    before, make = snapshot(tmp_path / "victim"), os.mkdir

    def swap(name: str, *args: object, **more: int) -> None:
        make(name, **more)
        os.rmdir(files.path("race"))
        os.symlink(tmp_path / "victim", files.path("race"))

    monkeypatch.setattr(os, "mkdir", swap)
    with pytest.raises(LinkError), beneath.folder(files.url, "race", make=True):
        raise AssertionError("opened")
    assert snapshot(tmp_path / "victim") == before


def test_walks_follow_no_link_and_name_it(files: LocalFiles) -> None:
    assert sorted(files.walk("")) == ["out", "own/deep", "own/file"]
    assert list(files.walk("out")) == [] and list(files.walk("own/deep")) == []
    assert sorted(files.specials()) == [("out", "a link"), ("own/deep", "a link")]
    assert files.is_link("out") and files.is_link("own/deep/a") and not files.is_link("own/file")


def test_pipes_devices_sockets_and_loops_are_named_and_never_waited_for(
    files: LocalFiles, tmp_path: Path
) -> None:
    os.mkfifo(files.path("own/pipe"))
    os.symlink("/dev/zero", files.path("own/zero"))
    os.symlink("loop", files.path("own/loop"))
    os.symlink("nowhere", files.path("own/gone"))
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        os.chdir(tmp_path)  # a socket's path is short
        server.bind("root/own/sock")
    started = time.monotonic()
    for name in ("pipe", "zero", "loop", "gone", "sock", "deep"):
        for look in (files.read, lambda key: files.fetched(key).__enter__()):
            with pytest.raises(DataError, match=name):
                look(f"own/{name}")
        with contextlib.suppress(DataError):
            files.size(f"own/{name}")
        files.stamp(f"own/{name}")
    assert time.monotonic() - started < 5
    named = {key: what for key, what in files.specials() if key.startswith("own/")}
    assert named["own/pipe"] == "a pipe" and named["own/sock"] == "a socket"
    assert named["own/loop"] == named["own/gone"] == named["own/zero"] == "a link"


@pytest.mark.parametrize("ask", ["names", "size", "read"])
def test_behind_a_link_that_leads_nowhere_nothing_is_taken_for_missing(
    files: LocalFiles, ask: str
) -> None:
    os.symlink("/nowhere/at/all", files.path("far"))
    with pytest.raises(LinkError, match="leads nowhere"):
        getattr(files, ask)("far")
    with pytest.raises(LinkError, match="leads nowhere"):
        getattr(files, ask)("far/below")
    assert files.names("own/none") == [] and files.size("own/none") is None


def test_reading_follows_links_and_a_root_may_be_one(files: LocalFiles, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    alias = LocalFiles(tmp_path / "alias")
    assert alias.read("out/photos/a") == b"precious" and alias.size("own/deep/a") == 8
    assert alias.write("own/new/x", b"1") and alias.read("own/new/x") == b"1"
    assert alias.is_link("") and not files.is_link("")


def test_errors_are_sorted_into_damage_and_refusals_to_read() -> None:
    for number in (errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM):
        error = OSError(number, os.strerror(number))
        assert isinstance(beneath.refused("p", "read", error), CannotReadError)
        assert beneath.is_unreadable(error)
    assert isinstance(beneath.refused("p", "read", MemoryError()), CannotReadError)
    assert beneath.is_unreadable(MemoryError()) and beneath.is_unreadable(CannotReadError("x"))
    for number in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        error = OSError(number, os.strerror(number))
        assert not isinstance(beneath.refused("p", "read", error), CannotReadError)
        assert not beneath.is_unreadable(error)
    for kind in (PermissionError, TimeoutError, ConnectionResetError):  # as stores raise them
        assert beneath.is_unreadable(kind("x"))
    assert not beneath.is_unreadable(OSError("not a Parquet file"))
    assert not beneath.is_unreadable(ValueError("x")) and not beneath.is_unreadable(DataError("x"))


def test_a_link_error_travels(tmp_path: Path) -> None:
    error = pickle.loads(pickle.dumps(LinkError(str(tmp_path), "a pipe")))
    assert str(error) == str(LinkError(str(tmp_path), "a pipe")) and "a pipe" in str(error)
    assert beneath.kind_of(stat.S_IFREG) == "a file" and beneath.kind_of(0) == "something unknown"
