"""Which dataset a run reads: by name, folder or URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.configs.train import DataConfig
from distill.data.open import open_training_set
from dreamshard.errors import DataError
from storage.dataset import Dataset
from tests.unit.distill.small_data import make_dataset


def test_a_dataset_is_found_by_name_under_its_root(dataset: Dataset) -> None:
    found = open_training_set(DataConfig(dataset=f"{Path(dataset.url).parent}/boxes"))
    assert found.source.url == dataset.url


def test_a_name_that_fits_several_datasets_lists_them(tmp_path: Path) -> None:
    first = make_dataset(tmp_path, num_samples=4)
    second = make_dataset(tmp_path, num_samples=4, samples_per_unit=8)
    with pytest.raises(DataError) as caught:
        open_training_set(DataConfig(dataset=f"{tmp_path}/boxes"))
    assert all(Path(found.url).name in str(caught.value) for found in (first, second))


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/nothing"):
        open_training_set(DataConfig(dataset=f"{tmp_path}/nothing"))
