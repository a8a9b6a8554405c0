"""Whatever a store or its library raises while a source is listed is an error of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from dreamshard.config import check
from dreamshard.errors import ConfigError, DataError, DreamshardError
from pipeline.images.source import SourceConfig, open_source
from pipeline.request.config import EncodeConfig


class NoCredentialsError(Exception):
    """As botocore's."""


class EndpointConnectionError(Exception):
    """As botocore's."""


class ClientError(Exception):
    """As botocore's."""


class BrokenStore(AbstractFileSystem):
    """Fail at whatever is asked, with `error`."""

    protocol = "broken"
    cachable = False
    error: Exception = OSError()

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        raise self.error

    def info(self, path: str, **_: Any) -> Any:
        raise self.error

    def isdir(self, path: str) -> bool:
        raise self.error

    def exists(self, path: str, **_: Any) -> bool:
        raise self.error

    def find(self, path: str, *_: Any, **__: Any) -> Any:
        raise self.error

    def glob(self, path: str, *_: Any, **__: Any) -> Any:
        raise self.error


fsspec.register_implementation("broken", BrokenStore, clobber=True)

FAILURES = [
    (NoCredentialsError("Unable to locate credentials"), "Give credentials"),
    (EndpointConnectionError("Could not connect to the endpoint URL"), "endpoint"),
    (PermissionError("Forbidden"), "grant list and read"),
    (ClientError("An error occurred (AccessDenied) when calling ListObjectsV2"), "grant list"),
    (ClientError("An error occurred (403) when calling HeadObject"), "grant list"),
    (ClientError("An error occurred (NoSuchBucket) when calling"), "bucket's and the folder's"),
    (FileNotFoundError("bucket"), "bucket's and the folder's"),
    (TimeoutError(), "network"),
    (ConnectionResetError("reset"), "network"),
    (RuntimeError(""), "no reason given"),
    (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "UnicodeDecodeError"),
]


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
@pytest.mark.parametrize(("error", "advice"), FAILURES, ids=lambda one: str(one)[:40])
def test_what_a_store_raises(
    kind: str, error: Exception, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokenStore, "error", error)
    for path in ("broken://bucket/x", "broken://bucket/x*.tar"):
        with pytest.raises(DataError) as caught:
            open_source(SourceConfig(kind=kind, path=path), key="train_images")
        text = str(caught.value)
        assert text.startswith(f"train_images: got {type(error).__name__} while listing {path}")
        assert advice in text


@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet", "torchvision"])
@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.tar", "s3x://b/x", "\0", "x" * 5000])
def test_a_path_that_is_none(kind: str, path: str, tmp_path: Path) -> None:
    name = "CIFAR10" if kind == "torchvision" else ""
    with pytest.raises(DreamshardError):
        open_source(SourceConfig(kind=kind, path=path, name=name))


def test_a_name_that_is_not_utf8_is_named_by_its_setting() -> None:
    path = os.fsdecode(b"caf\xe9")
    _, problems = check(EncodeConfig, {"source": {"kind": "folder", "path": path}, "name": "a"})
    (problem,) = problems
    assert problem.key == "source.path" and "\\udce9" in problem.got and "UTF-8" in problem.allowed
    _, problems = check(EncodeConfig, {"teacher": {"levels": ["s4", path]}})
    assert [problem.key for problem in problems] == ["teacher.levels.1"]


def test_files_whose_names_are_not_utf8_are_listed_and_read(tmp_path: Path) -> None:
    from PIL import Image

    for number, name in enumerate((b"caf\xe9.png", "ñandú.png".encode())):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "x.png")
        os.rename(os.fsencode(tmp_path / "x.png"), os.path.join(os.fsencode(tmp_path), name))
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path)))
    keys = [source.entry(index)[0] for index in range(2)]
    assert "".join(keys).encode("utf-8") and any("\\xe9" in key for key in keys)
    assert all(record.data for record in source.read([0, 1]))


def test_a_setting_of_nothing_is_told_before_any_listing() -> None:
    with pytest.raises(ConfigError, match=r"train_images\.path: got nothing"):
        open_source(SourceConfig(), key="train_images")
