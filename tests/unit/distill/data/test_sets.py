"""Labels: which are learned, and which a classifier has no output for."""

from __future__ import annotations

import numpy as np
import pytest

from distill.configs.train import DataConfig
from distill.data.open import open_training_set
from distill.data.sets import Needs, TrainingSet, labelled_share
from dreamshard.errors import ConfigError
from storage.dataset import Dataset


def test_a_share_of_the_labels_is_of_each_class_and_nested() -> None:
    labels = np.array([0] * 40 + [1] * 20 + [-1] * 10 + [2] * 3)
    few, more = (labelled_share(labels, share=share, seed=1) for share in (0.1, 0.5))
    assert [int(few[labels == value].sum()) for value in (0, 1, -1, 2)] == [4, 2, 0, 1]
    assert int(more[labels == 0].sum()) == 20 and (more | ~few).all()
    assert not np.array_equal(few, labelled_share(labels, share=0.1, seed=2))


def test_labels_beyond_the_classifier_are_refused_before_training(dataset: Dataset) -> None:
    config = DataConfig(dataset=dataset.url)  # its labels are 0, 1, 2
    needs = Needs(kinds=(), labels=True, classes=2)
    with pytest.raises(ConfigError, match=r"supervised\.classes: got labels 2, allowed 0\.\.1"):
        open_training_set(config, needs=needs)
    enough = open_training_set(config, needs=Needs(kinds=(), labels=True, classes=3))
    assert enough.num_classes == 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(64, -1), "data.dataset: got a dataset with labels of no sample alone"),
        (np.full(64, 3), "data.dataset: got a dataset with labels 3 alone, allowed two classes"),
        (np.arange(64) % 3 - 1, r"got labels -1, allowed 0\.\.1\..*label_share below 1"),
        (np.arange(64) * 1_000_003, "got 64 classes numbered up to 63,000,189.*from 0"),
    ],
)
def test_labels_that_no_classifier_can_learn_are_refused(
    labels: np.ndarray, message: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingSet, "labels", labels)
    config = DataConfig(dataset=dataset.url)
    with pytest.raises(ConfigError, match=message):
        open_training_set(config, needs=Needs(kinds=(), labels=True))
