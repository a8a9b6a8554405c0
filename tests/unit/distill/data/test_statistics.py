"""What a level's stored values tell before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.configs.train import DataConfig
from distill.data.open import open_training_set
from distill.data.statistics import constant_levels
from storage.schema import FeatureBatch
from tests.unit.distill import small_data


@pytest.mark.parametrize("value, said", [("zero", "0 everywhere"), ("map", "the same values")])
def test_a_level_that_is_the_same_for_every_image_is_said(
    value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_batch = small_data.make_batch

    def dead(index: np.ndarray) -> FeatureBatch:
        batch = make_batch(index)
        maps = batch.levels["up.0.t100"]
        batch.levels["up.0.t100"] = np.zeros_like(maps)
        if value == "map":
            batch.levels["up.0.t100"] += np.arange(4, dtype=maps.dtype)
        return batch

    monkeypatch.setattr(small_data, "make_batch", dead)
    dataset = small_data.make_dataset(tmp_path)
    (line,) = constant_levels(open_training_set(DataConfig(dataset=dataset.url)))
    assert line.startswith(f"WARNING: up.0.t100 holds {said} in all 16 samples looked at")


def test_of_levels_that_vary_nothing_is_said(tmp_path: Path) -> None:
    dataset = small_data.make_dataset(tmp_path)
    assert constant_levels(open_training_set(DataConfig(dataset=dataset.url))) == []
