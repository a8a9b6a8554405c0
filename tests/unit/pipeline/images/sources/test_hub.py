"""Datasets of the Hugging Face library, as they are saved to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreamshard.errors import ConfigError
from pipeline.images.source import ImageSource, SourceConfig, open_source
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
