"""Objects: what is tried again, what is not, and what a lost answer means."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamshard.errors import DataError
from storage.fs import objects
from storage.fs.objects import Objects, is_transient


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    monkeypatch.setattr(objects, "BACKOFF_S", 0.001)
    return Objects(f"memory:/{tmp_path}")


def broken(store: Objects, name: str, errors: list[Exception], monkeypatch) -> list[str]:
    """Make a method of the file system fail as often as there are errors."""
    fs, calls = store._open(), []
    real: Callable = getattr(type(fs), name)

    def call(self, *args, **settings):
        calls.append(name)
        if errors:
            raise errors.pop(0)
        return real(self, *args, **settings)

    monkeypatch.setattr(type(fs), name, call)
    return calls


def test_objects_come_and_go(store: Objects, tmp_path: Path) -> None:
    assert store.info("a/b") is None and store.names("") == [] and list(store.walk("")) == []
    store.put("a/b", b"one")
    store.put("a/c/d", b"two")
    assert (store.names("a"), store.names("a/b")) == (["b", "c"], [])
    assert sorted(store.walk("")) == ["a/b", "a/c/d"]
    assert store.get("a/b", limit=3) == b"one"
    with pytest.raises(DataError, match="got 3 bytes, allowed 2"):
        store.get("a/b", limit=2)
    first = store.info("a/b")
    store.put("a/b", b"uno")
    second = store.info("a/b")
    assert first is not None and second is not None and first.identity != second.identity
    store.download("a/b", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"uno"
    assert store.upload(str(tmp_path / "copy"), "e").size == 3
    assert (store.remove("a/b"), store.remove("a/b"), store.has_folder("a")) == (True, False, True)
    with pytest.raises(FileNotFoundError):
        store.get("a/b", limit=9)


def test_the_first_put_stays(store: Objects) -> None:
    assert store.put_new("k", b"one", folder="t")
    assert not store.put_new("k", b"two", folder="t")
    assert store.put_new(
        "k", b"one", folder="t"
    )  # these bytes are there, whoever's request brought them
    assert store.get("k", limit=9) == b"one"


def test_a_put_whose_answer_was_lost_finds_itself(store: Objects, monkeypatch) -> None:
    fs = store._open()
    real = type(fs).pipe_file

    def put_and_lose(self, path, value, mode="overwrite", **settings):
        real(self, path, value, mode=mode, **settings)
        monkeypatch.setattr(type(fs), "pipe_file", real)
        raise TimeoutError

    monkeypatch.setattr(type(fs), "pipe_file", put_and_lose)
    assert store.put_new("k", b"mine", folder="t")


def test_a_store_without_conditional_puts_is_looked_at_before_and_after(
    store: Objects, monkeypatch
) -> None:
    real = type(store._open()).pipe_file

    def refuse(self, path, value, mode="overwrite", **settings):
        if mode == "create":
            raise OSError(errno.ENOSYS, "not implemented")
        real(self, path, value)

    monkeypatch.setattr(type(store._open()), "pipe_file", refuse)
    assert store.put_new("k", b"one", folder="t")
    assert not store.put_new("k", b"two", folder="t")


def test_what_the_network_does_is_tried_again(store: Objects, monkeypatch) -> None:
    store.put("k", b"value")
    errors: list[Exception] = [TimeoutError(), ConnectionResetError(), OSError(errno.EBUSY, "503")]
    calls = broken(store, "cat_file", errors, monkeypatch)
    assert store.get("k", limit=9) == b"value"
    assert len(calls) == 4


def test_it_ends_as_an_error_that_names_the_object(store: Objects, monkeypatch) -> None:
    store.put("k", b"value")
    calls = broken(store, "cat_file", [TimeoutError("slow")] * 99, monkeypatch)
    with pytest.raises(DataError, match=r"/k: cannot read: TimeoutError: slow\. Tried 6 times"):
        store.get("k", limit=9)
    assert len(calls) == objects.ATTEMPTS


def test_a_body_cut_short_is_tried_again(store: Objects, monkeypatch, tmp_path: Path) -> None:
    store.put("k", b"0123456789")
    fs, real = store._open(), type(store._open()).cat_file
    bodies = [b"01234", b""]
    monkeypatch.setattr(
        type(fs), "cat_file", lambda self, path: bodies.pop() if bodies else real(self, path)
    )
    assert store.get("k", limit=99) == b"0123456789"
    assert not bodies


def test_refusals_are_final(store: Objects, monkeypatch) -> None:
    store.put("k", b"value")
    calls = broken(store, "cat_file", [PermissionError("denied")], monkeypatch)
    with pytest.raises(DataError, match=r"cannot read: PermissionError.*credentials"):
        store.get("k", limit=9)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TimeoutError(), True),
        (BrokenPipeError(), True),
        (OSError(errno.EIO, "later"), True),
        (OSError(errno.EINVAL, "never"), False),
        (FileNotFoundError(), False),
        (FileExistsError(), False),
        (TypeError("a mistake of ours"), False),
    ],
)
def test_what_may_help_is_told_from_what_does_not(error: Exception, again: bool) -> None:
    assert is_transient(error) == again


def test_schemes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ftp://host/x: got a ftp:// URL, allowed .*s3://"):
        Objects("ftp://host/x")
