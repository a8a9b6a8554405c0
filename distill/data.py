"""Training data: which dataset and levels, and batches of them on the training device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.dequantise import open_dequantisers
from dreamshard.errors import ConfigError, Problem
from storage.catalog import find_dataset
from storage.reader import BatchReader
from storage.schema import Level

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import TrainState
    from distill.config import DataConfig, TrainConfig
    from distill.students import Student
    from storage.dataset import Dataset, Snapshot


@dataclass(frozen=True)
class TrainingSet:
    """Hold what a run trains on.

    Args:
        dataset: the recorded features.
        snapshot: the state of the dataset that the run keeps to its end.
        levels: those to distil, finest first.
    """

    dataset: Dataset
    snapshot: Snapshot
    levels: tuple[Level, ...]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images a student sees, in pixels."""
        return self.dataset.image_size

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels, ascending, each once."""
        return tuple(sorted({level.stride for level in self.levels}))

    def at(self, version: str) -> TrainingSet:
        """Return the same at another version of the dataset, where a resumed run began."""
        if version == self.snapshot.version:
            return self
        return replace(self, snapshot=self.dataset.snapshot(version=version))


@dataclass(frozen=True)
class Batch:
    """Hold one rank's share of one step, on its device.

    Args:
        images: float32 (B, 3, H, W), normalised.
        targets: level name to float32 (B, C, h, w).
        index: int64 (B,) on the host, sample numbers in the dataset.
    """

    images: Tensor
    targets: dict[str, Tensor]
    index: np.ndarray


class ShardBatches:
    """Read one rank's share of every global batch from a dataset's shards.

    The order is that of the endless stream of positions: sample p of the whole run is the same at
    any number of ranks, and the position is all that a resumed run needs.

    Args:
        training_set: what to read.
        config: of the run: batch size, seed of the order, threads, memory order.
        student: whose normalisation the images get.
        accelerator: which device, and which share of every batch.
        state: where in the endless stream of samples to begin.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        config: TrainConfig,
        student: Student,
        accelerator: Accelerator,
        state: TrainState,
    ) -> None:
        self._device = device = accelerator.device
        self._order = torch.channels_last if config.channels_last else torch.contiguous_format
        by_name = {level.name: level for level in training_set.levels}
        self._decoders = open_dequantisers(training_set.snapshot, by_name, device=device)
        per_channel = (1, 3, 1, 1)
        self._shift = torch.tensor([255 * m for m in student.mean], device=device).view(per_channel)
        self._scale = torch.tensor([255 * s for s in student.std], device=device).view(per_channel)
        self._reader = BatchReader(
            training_set.snapshot,
            levels=list(by_name),
            batch_size=config.part_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=config.seed,
            shuffle=config.data.shuffle,
            depth=1,  # a batch is copied before the next one is asked for
            prefetch=config.data.prefetch,
            threads=config.data.threads,
            start=state.position,
            allow_holes=config.data.allow_holes,
        )

    @property
    def position(self) -> int:
        """Samples of the stream consumed so far, over all ranks."""
        return self._reader.position

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for data so far."""
        return self._reader.wait_s

    def next(self) -> Batch:
        """Wait for the next batch, bring it to the device and normalise it there."""
        rows = self._reader.next()
        assert rows.image is not None
        pixels = torch.from_numpy(rows.image).to(self._device)
        # (B, H, W, 3) seen as (B, 3, H, W) is channels_last already: one pass makes it float.
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._order)
        images.sub_(self._shift).div_(self._scale)
        targets = {
            name: decode(rows.levels).to(memory_format=self._order)
            for name, decode in self._decoders.items()
        }
        return Batch(images=images, targets=targets, index=rows.index.copy())

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()


BATCHES = {"shards": ShardBatches}
"""Sources of batches by `data.kind`; all are built and used alike."""


def open_training_set(config: DataConfig) -> TrainingSet:
    """Find the dataset at its latest version, choose the levels, and refuse what does not fit.

    Args:
        config: which dataset and levels, and what is expected of it.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one.
        ConfigError: levels it has not, or that are no maps; another size or pixel range.
    """
    dataset = find_dataset(config.dataset)
    problems = _image_problems(config, dataset)
    names = config.levels or [lv.name for lv in dataset.levels if _is_map(lv)]
    by_name = {level.name: level for level in dataset.levels}
    maps = [name for name, level in by_name.items() if _is_map(level)]
    for name in names:
        if name not in maps:
            got = f"{name!r} (not a map)" if name in by_name else repr(name)
            allowed = ", ".join(maps) or "none: this dataset has no feature maps"
            problems.append(Problem("data.levels", got, allowed))
    if not names:
        problems.append(Problem("data.dataset", dataset.url, "a dataset with feature maps"))
    if problems:
        raise ConfigError(problems)
    levels = sorted((by_name[name] for name in names), key=lambda level: level.stride)
    return TrainingSet(dataset=dataset, snapshot=dataset.snapshot(), levels=tuple(levels))


def _is_map(level: Level) -> bool:
    return level.kind == "feature" and len(level.shape) == 3 and level.stride > 0


def _image_problems(config: DataConfig, dataset: Dataset) -> list[Problem]:
    found = []
    size = list(dataset.image_size)
    hint = "Choose another dataset, or change what the recipe expects."
    if config.image_size and config.image_size != size:
        allowed = f"{size}, the size of {dataset.url}"
        found.append(Problem("data.image_size", str(config.image_size), allowed, hint))
    image = dataset.recipe.content.get("image")
    recorded = str(image.get("range", "")) if isinstance(image, dict) else ""
    if config.pixel_range and config.pixel_range != recorded:
        allowed = f"{recorded!r}, the pixel range of {dataset.url}"
        found.append(Problem("data.pixel_range", repr(config.pixel_range), allowed, hint))
    return found
