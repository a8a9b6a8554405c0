"""Which dataset and levels a run trains on, and the batches it gets of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig
from distill.data.open import (
    Choice,
    ShardBatches,
    TrainingSet,
    labelled_share,
    open_training_set,
)
from distill.training.state import TrainState
from dreamshard.errors import ConfigError, DataError
from storage.dataset import Dataset
from tests.unit.distill.small_data import LEVELS, make_batch, make_dataset

HALF = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))


def rank(number: int = 0, of: int = 1) -> Any:
    return SimpleNamespace(
        device=torch.device("cpu"), process_index=number, num_processes=of, is_main_process=True
    )


def batches_of(training_set: TrainingSet, configure, *, who: Any = None, start: int = 0, **changes):
    student: Any = HALF
    return ShardBatches(
        training_set,
        config=configure(**changes),
        student=student,
        accelerator=who or rank(),
        state=TrainState(position=start),
    )


def test_all_feature_maps_are_taken_finest_first(dataset: Dataset) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    assert [level.name for level in training_set.levels] == ["up.1.t100", "up.0.t100"]
    assert training_set.strides == (2, 4)


def test_a_dataset_is_found_by_name_under_its_root(dataset: Dataset) -> None:
    found = open_training_set(DataConfig(dataset=f"{Path(dataset.url).parent}/boxes"))
    assert found.dataset.url == dataset.url


def test_a_name_that_fits_several_datasets_lists_them(tmp_path: Path) -> None:
    first = make_dataset(tmp_path, num_samples=4)
    second = make_dataset(tmp_path, num_samples=4, samples_per_unit=8)
    with pytest.raises(DataError) as caught:
        open_training_set(DataConfig(dataset=f"{tmp_path}/boxes"))
    assert all(Path(found.url).name in str(caught.value) for found in (first, second))


def test_a_missing_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/nothing"):
        open_training_set(DataConfig(dataset=f"{tmp_path}/nothing"))


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


def test_batches_hold_what_was_recorded(dataset: Dataset, configure) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    batches = batches_of(training_set, configure)
    batch = batches.next()
    recorded = make_batch(np.arange(16))
    row = int(np.flatnonzero(batch.index < 16)[0])
    number = int(batch.index[row])
    for level in LEVELS:
        stored = torch.from_numpy(recorded.levels[level.name][number]).float()
        assert torch.equal(batch.targets[level.name][row], stored)
    assert recorded.image is not None
    pixels = torch.from_numpy(recorded.image[number]).permute(2, 0, 1) / 255
    expected = (pixels - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(batch.images[row], expected)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.dtype == torch.float32
    batches.close()


def test_a_batch_outlives_the_readers_reused_memory(dataset: Dataset, configure) -> None:
    batches = batches_of(open_training_set(DataConfig(dataset=dataset.url)), configure)
    first = batches.next()
    before = {name: value.clone() for name, value in first.targets.items()}
    images, index = first.images.clone(), first.index.copy()
    for _ in range(12):
        batches.next()
    assert all(torch.equal(before[name], value) for name, value in first.targets.items())
    assert torch.equal(images, first.images) and np.array_equal(index, first.index)
    batches.close()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_very_batches_of_one_rank(dataset: Dataset, configure, ranks: int) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    whole = batches_of(training_set, configure)
    shares = [batches_of(training_set, configure, who=rank(r, ranks)) for r in range(ranks)]
    for _ in range(10):  # past the end of the first epoch
        parts = [share.next().index for share in shares]
        assert len({len(part) for part in parts}) == 1
        assert np.array_equal(np.concatenate(parts), whole.next().index)
        assert {share.position for share in shares} == {whole.position}
    for reader in (whole, *shares):
        reader.close()


def test_a_resume_at_another_number_of_ranks_goes_on_with_the_same_samples(
    dataset: Dataset, configure
) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    whole = batches_of(training_set, configure)
    for _ in range(5):
        whole.next()
    resumed = [
        batches_of(training_set, configure, who=rank(r, 2), start=whole.position) for r in range(2)
    ]
    expected = whole.next().index
    assert np.array_equal(np.concatenate([share.next().index for share in resumed]), expected)
    for reader in (whole, *resumed):
        reader.close()


def test_time_spent_waiting_is_counted(dataset: Dataset, configure) -> None:
    batches = batches_of(open_training_set(DataConfig(dataset=dataset.url)), configure)
    batches.next()
    assert 0 < batches.waited_s < 60
    batches.close()


def test_a_share_of_the_labels_is_of_each_class_and_nested() -> None:
    labels = np.array([0] * 40 + [1] * 20 + [-1] * 10 + [2] * 3)
    few, more = (labelled_share(labels, share=share, seed=1) for share in (0.1, 0.5))
    assert [int(few[labels == value].sum()) for value in (0, 1, -1, 2)] == [4, 2, 0, 1]
    assert int(more[labels == 0].sum()) == 20 and (more | ~few).all()
    assert not np.array_equal(few, labelled_share(labels, share=0.1, seed=2))


def test_labels_come_with_the_batch_and_only_of_the_share(dataset: Dataset, configure) -> None:
    choice = Choice(levels=False, labels=True, share=0.25, seed=0)
    training_set = open_training_set(DataConfig(dataset=dataset.url), choose=choice)
    assert training_set.levels == () and training_set.num_classes == 3
    batches = batches_of(training_set, configure)
    seen: set[int] = set()
    for _ in range(12):
        batch = batches.next()
        assert list(batch.targets) == ["label"]
        assert np.array_equal(batch.targets["label"].numpy(), batch.index % 3)
        seen |= set(batch.index.tolist())
    assert len(seen) == 16, "a quarter of 64"
    batches.close()


def test_a_dataset_without_labels_cannot_be_learned_from(tmp_path: Path) -> None:
    unlabelled = make_dataset(tmp_path, num_samples=4, labels=False)
    with pytest.raises(ConfigError, match=r"data\.dataset: got .*a dataset with labels"):
        open_training_set(DataConfig(dataset=unlabelled.url), choose=Choice(labels=True))


def test_labels_beyond_the_classifier_are_refused_before_training(dataset: Dataset) -> None:
    config = DataConfig(dataset=dataset.url)  # its labels are 0, 1, 2
    choose = Choice(levels=False, labels=True, classes=2)
    with pytest.raises(ConfigError, match=r"supervised\.classes: got labels 2, allowed 0\.\.1"):
        open_training_set(config, choose=choose)
    enough = open_training_set(config, choose=Choice(levels=False, labels=True, classes=3))
    assert enough.num_classes == 3
