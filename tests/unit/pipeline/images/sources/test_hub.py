"""Datasets of the Hugging Face library, as they are saved to a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from dreamshard.errors import ConfigError
from dreamshard.foreign.guard import CannotReadError
from pipeline.images.source import ImageSource, SourceConfig, open_source
from pipeline.images.sources.hub import _mark
from tests.unit.pipeline.images.sources_tools import encoded

datasets: Any = pytest.importorskip("datasets")


def saved(path: Path, split: str | None) -> Path:
    cells = [{"bytes": encoded(value), "path": None} for value in (1, 2)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": cells, "label": [1, 0]}
    datasets.Dataset.from_dict(columns, features=features, split=split).save_to_disk(str(path))
    return path


def opened(path: Path, **settings: str) -> ImageSource:
    return open_source(SourceConfig(kind="hf", path=str(path), **settings))  # type: ignore[arg-type]


def test_one_dataset_is_of_the_split_that_it_was_saved_of(tmp_path: Path) -> None:
    """Another split asked for would be answered with this one: training images judged as test."""
    path = saved(tmp_path / "train", "train")
    assert [record.label for record in opened(path).read([0, 1])] == [1, 0]
    with pytest.raises(ConfigError, match=r"source.split: got test of .* of split train, allowed"):
        opened(path, split="test")
    plain = saved(tmp_path / "plain", None)
    assert len(opened(plain, split="test")) == 2  # what a heldout source is called by default
    with pytest.raises(ConfigError, match="got validation of .* saved without a split"):
        opened(plain, split="validation")


def test_a_column_of_a_name_of_ones_own_must_be_there(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", None)
    for setting in ("label_column", "mask_column"):
        with pytest.raises(ConfigError, match=rf"source.{setting}: got lable.*Did you mean label"):
            opened(path, **{setting: "lable"})


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_looked_at_is_not_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its evidence would be that of an image that is not there, and the source another."""
    image = tmp_path / "one.png"
    assert _mark({"bytes": None, "path": str(image)}) == (0, 0)
    image.write_bytes(encoded(1))
    look = os.stat

    def fails(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(image):
            raise OSError(number, os.strerror(number), path)
        return look(path, **options)

    monkeypatch.setattr(os, "stat", fails)
    with pytest.raises(CannotReadError, match=r"one.png: cannot be read"):
        _mark({"bytes": None, "path": str(image)})
