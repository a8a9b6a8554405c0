"""Which levels a run trains on, and what it is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from distill.configs.mix import (
    LabelPartConfig,
    MixConfig,
    SimilarityPartConfig,
    SupervisedPartConfig,
)
from distill.configs.train import DataConfig
from distill.data.open import open_training_set
from distill.data.sets import Needs
from distill.methods.build import method_class
from dreamshard.errors import ConfigError, Problem
from storage.dataset import Dataset
from tests.unit.distill.small_data import make_dataset


def test_all_feature_maps_are_taken_finest_first(dataset: Dataset) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    assert [level.name for level in training_set.levels] == ["up.1.t100", "up.0.t100"]
    assert training_set.strides == (2, 4)


def test_wrong_levels_size_and_range_are_reported_at_once(dataset: Dataset) -> None:
    config = DataConfig(
        dataset=dataset.url, levels=["up.7.t100"], image_size=[32, 32], pixel_range="-1..1"
    )
    with pytest.raises(ConfigError) as caught:
        open_training_set(config)
    text = str(caught.value)
    assert "3 problems" in text
    assert "data.levels: got 'up.7.t100', allowed up.0.t100, up.1.t100" in text
    assert "data.image_size: got [32, 32], allowed [16, 16]" in text
    assert "data.pixel_range: got '-1..1', allowed '0..255'" in text


def test_a_dataset_without_labels_cannot_be_learned_from(tmp_path: Path) -> None:
    unlabelled = make_dataset(tmp_path, num_samples=4, labels=False)
    with pytest.raises(ConfigError, match=r"data\.dataset: got .*a dataset with labels"):
        open_training_set(DataConfig(dataset=unlabelled.url), needs=Needs(labels=True))


def test_what_else_does_not_fit_is_told_with_what_is_missing(tmp_path: Path) -> None:
    unlabelled = make_dataset(tmp_path, num_samples=4, labels=False)
    kind = method_class("mix")
    mix = MixConfig(
        similarity=SimilarityPartConfig(weight=1.0, level="up.0.t100"),
        label=LabelPartConfig(weight=1.0),
        supervised=SupervisedPartConfig(weight=1.0),
    )
    with pytest.raises(ConfigError) as caught:
        open_training_set(
            DataConfig(dataset=unlabelled.url),
            needs=kind.needs(mix),
            settle=partial(kind.settled, mix),
        )
    keys = [problem.key for problem in caught.value.problems if isinstance(problem, Problem)]
    assert keys == ["data.dataset", "data.dataset", "mix.similarity.queue"]
