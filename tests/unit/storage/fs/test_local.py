import errno
import os
import threading
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.fs.local import LocalFiles
from tests.feature_store import fault, no_space


@pytest.fixture
def files(tmp_path: Path) -> LocalFiles:
    return LocalFiles(tmp_path / "root")


def test_write_read_list_remove(files: LocalFiles) -> None:
    assert files.names("a") == [] and files.size("a/b") is None and not files.remove("a/b")
    assert files.write("a/b", b"one")
    assert files.write("a/b", b"two")
    assert files.read("a/b") == b"two" and files.size("a/b") == 3
    assert files.names("a") == ["b"] and list(files.walk("a")) == ["a/b"]
    assert files.remove("a/b") and files.size("a/b") is None
    with pytest.raises(FileNotFoundError):
        files.read("a/b")


def test_put_if_absent_keeps_the_first(files: LocalFiles) -> None:
    assert files.write("k", b"first", if_absent=True)
    assert not files.write("k", b"second", if_absent=True)
    assert files.read("k") == b"first"
    assert list(files.walk("")) == ["k"]


def _race(files: LocalFiles) -> tuple[list[bool], bytes]:
    barrier, won = threading.Barrier(8), [False] * 8

    def put(i: int) -> None:
        barrier.wait()
        won[i] = files.write("k", bytes([i]) * 1000, if_absent=True)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, files.read("k")


def test_of_racing_puts_one_wins(files: LocalFiles) -> None:
    won, data = _race(files)
    assert sum(won) == 1 and data == bytes([won.index(True)]) * 1000


def test_put_if_absent_without_hard_links(files: LocalFiles, monkeypatch) -> None:
    def refuse(source: str, target: str, *, dst_dir_fd: int, **_: object) -> None:
        if os.access(target, os.F_OK, dir_fd=dst_dir_fd):
            raise FileExistsError(errno.EEXIST, "File exists")
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    won, data = _race(files)
    assert sum(won) == 1 and data == bytes([won.index(True)]) * 1000
    assert list(files.walk("")) == ["k"]


def test_streams_arrive_whole(files: LocalFiles) -> None:
    sink = files.create("staging/x")
    sink.write(b"abc")
    sink.write(memoryview(b"def"))
    identity = sink.seal(fsync=True)
    files.rename("staging/x", "data/c/0/0")
    assert files.read("data/c/0/0") == b"abcdef"
    assert files.identity("data/c/0/0") == identity
    files.sync_folders(["data/c/0/0"])


def test_a_file_too_long_for_a_record_is_refused(files: LocalFiles) -> None:
    files.write("k", b"x" * 100)
    with pytest.raises(DataError, match="got 100 bytes, allowed 10"):
        files.read("k", limit=10)


def test_refusals_of_the_system_say_what_to_do(files: LocalFiles) -> None:
    with fault(1, no_space()), pytest.raises(DataError, match="No space left.*same command again"):
        files.write("k", b"x")
    files.write("a", b"x")
    with pytest.raises(DataError, match="cannot"):
        files.write("a/b", b"x")  # a file where a folder is needed


def test_an_unwritable_root_is_a_data_error(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is unwritable for root")
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        LocalFiles(tmp_path / "root").write("k", b"x")


def test_empty_folders_are_pruned_and_others_stay(files: LocalFiles) -> None:
    files.write("a/b/c", b"x")
    os.makedirs(files.path("a/d/e"))
    files.prune("a")
    assert files.names("a") == ["b"]
    assert files.remove_tree("a") == 1 and files.names("a") == []


def test_the_file_systems_time_is_close_to_ours(files: LocalFiles) -> None:
    files.write("k", b"x")
    modified = files.modified("k")
    assert modified is not None and 0 <= files.now() - modified < 5
    assert list(files.walk("")) == ["k"]


def test_a_record_swept_while_its_writer_slept_is_written_again(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, sweeps = files.rename, [1, 1]

    def swept_first(source: str, target: str) -> None:
        if sweeps:
            sweeps.pop()
            files.remove(source)
        rename(source, target)

    monkeypatch.setattr(files, "rename", swept_first)
    assert files.write("k", b"value") and files.read("k") == b"value"
    sweeps += [1, 1, 1]
    with pytest.raises(DataError, match=r"removed 3 times.*same command again"):
        files.write("k", b"other")
    assert files.read("k") == b"value"
