"""The batches that a run gets of its dataset, at any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig
from distill.data.batches import Batches
from distill.data.open import open_training_set
from distill.data.sets import Needs, TrainingSet
from storage.batches.filler import Share
from storage.dataset import Dataset
from tests.unit.distill.small_data import LEVELS, make_batch


def batches_of(
    training_set: TrainingSet, *, rank: int = 0, world_size: int = 1, start: int = 0
) -> Batches:
    return Batches(
        training_set,
        share=Share(batch_size=8, rank=rank, world_size=world_size, start=start),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.5, 1.0),
        device=torch.device("cpu"),
    )


def test_batches_hold_what_was_recorded(dataset: Dataset) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    batches = batches_of(training_set)
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


def test_a_batch_outlives_the_readers_reused_memory(dataset: Dataset) -> None:
    batches = batches_of(open_training_set(DataConfig(dataset=dataset.url)))
    first = batches.next()
    before = {name: value.clone() for name, value in first.targets.items()}
    images, index = first.images.clone(), first.index.copy()
    for _ in range(12):
        batches.next()
    assert all(torch.equal(before[name], value) for name, value in first.targets.items())
    assert torch.equal(images, first.images) and np.array_equal(index, first.index)
    batches.close()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_share_the_very_batches_of_one_rank(dataset: Dataset, ranks: int) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    whole = batches_of(training_set)
    shares = [batches_of(training_set, rank=r, world_size=ranks) for r in range(ranks)]
    for _ in range(10):  # past the end of the first epoch
        parts = [share.next().index for share in shares]
        assert len({len(part) for part in parts}) == 1
        assert np.array_equal(np.concatenate(parts), whole.next().index)
        assert {share.position for share in shares} == {whole.position}
    for reader in (whole, *shares):
        reader.close()


def test_a_resume_at_another_number_of_ranks_goes_on_with_the_same_samples(
    dataset: Dataset,
) -> None:
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    whole = batches_of(training_set)
    for _ in range(5):
        whole.next()
    resumed = [
        batches_of(training_set, rank=r, world_size=2, start=whole.position) for r in range(2)
    ]
    expected = whole.next().index
    assert np.array_equal(np.concatenate([share.next().index for share in resumed]), expected)
    for reader in (whole, *resumed):
        reader.close()


def test_time_spent_waiting_is_counted(dataset: Dataset) -> None:
    batches = batches_of(open_training_set(DataConfig(dataset=dataset.url)))
    batches.next()
    assert 0 < batches.waited_s < 60
    batches.close()


def test_labels_come_with_the_batch_and_only_of_the_share(dataset: Dataset) -> None:
    needs = Needs(kinds=(), labels=True, share=0.25)
    training_set = open_training_set(DataConfig(dataset=dataset.url), needs=needs)
    assert training_set.levels == () and training_set.num_classes == 3
    batches = batches_of(training_set)
    seen: set[int] = set()
    for _ in range(12):
        batch = batches.next()
        assert list(batch.targets) == ["label"]
        assert np.array_equal(batch.targets["label"].numpy(), batch.index % 3)
        seen |= set(batch.index.tolist())
    assert len(seen) == 16, "a quarter of 64"
    batches.close()
