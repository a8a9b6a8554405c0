"""Training data: which dataset and levels, and batches of them on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from distill.dequantise import open_dequantisers
from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem
from storage.catalog import find_dataset
from storage.join import join
from storage.reader import BatchReader
from storage.schema import Level

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import TrainState
    from distill.config import DataConfig, TrainConfig
    from distill.students import Student
    from storage.dataset import Dataset, Snapshot

KIND_WORDS = {"feature": "map", "soft_label": "soft label"}
KIND_HINTS = {
    "feature": "Choose a dataset with feature maps.",
    "soft_label": "Record them with `dreamshard encode --teacher.interpreter FOLDER`, into a "
    "dataset of their own if you like, and name it in data.join.",
}


@dataclass(frozen=True)
class TrainingSet:
    """Hold what a run trains on.

    Args:
        dataset: the recorded features.
        snapshot: the state of the dataset that the run keeps to its end.
        levels: those to distil, finest first.
        joined: datasets of the same samples, whose levels the snapshot shows as well.
    """

    dataset: Dataset
    snapshot: Snapshot
    levels: tuple[Level, ...]
    joined: tuple[Dataset, ...] = ()

    @property
    def finest(self) -> int:
        """Stride of the finest soft label of maps, in pixels; 0 without any."""
        soft = [level.stride for level in self.levels if level.kind == "soft_label"]
        return min((stride for stride in soft if stride), default=0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images a student sees, in pixels."""
        return self.dataset.image_size

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the feature maps, ascending, each once."""
        maps = [level for level in self.levels if level.kind == "feature"]
        return tuple(sorted({level.stride for level in maps}))

    def at(self, version: str) -> TrainingSet:
        """Return the same at another version of the dataset, where a resumed run began."""
        if version == self.snapshot.version:
            return self
        return replace(self, snapshot=_open_snapshot((self.dataset, *self.joined), version))


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
        self._reader = self._open_reader(
            training_set, config=config, accelerator=accelerator, state=state
        )

    def _open_reader(
        self,
        training_set: TrainingSet,
        *,
        config: TrainConfig,
        accelerator: Accelerator,
        state: TrainState,
    ) -> BatchReader:
        return BatchReader(
            training_set.snapshot,
            levels=[level.name for level in training_set.levels],
            batch_size=config.batch_size,
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
            name: _in_order(decode(rows.levels), self._order)
            for name, decode in self._decoders.items()
        }
        return Batch(images=images, targets=targets, index=rows.index.copy())

    def close(self) -> None:
        """Stop reading ahead."""
        self._reader.close()


def _in_order(values: Tensor, order: torch.memory_format) -> Tensor:
    """Bring maps into a memory order; soft labels of whole images have none."""
    return values.to(memory_format=order) if values.dim() == 4 else values


BATCHES = {
    "shards": "distill.data:ShardBatches",
    "stream": "distill.online:StreamBatches",
    "live": "distill.online:LiveBatches",
}
"""Sources of batches by `data.kind`; all are built and used alike."""


def open_batches(
    training_set: TrainingSet,
    *,
    config: TrainConfig,
    student: Student,
    accelerator: Accelerator,
    state: TrainState,
) -> ShardBatches:
    """Open the source of batches that `data.kind` names; arguments as those of `ShardBatches`."""
    source = load_part(config.data.kind, table=BATCHES)
    return source(
        training_set, config=config, student=student, accelerator=accelerator, state=state
    )


def open_training_set(config: DataConfig, *, kinds: Sequence[str] = ("feature",)) -> TrainingSet:
    """Find the dataset at its latest version, choose the levels, and refuse what does not fit.

    Args:
        config: which dataset and levels, which datasets join it, and what is expected of them.
        kinds: of levels that the method distils: feature (maps), soft_label; one of each at least.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one; a stream's source
            that is empty or damaged.
        ConfigError: levels it has not, or of another kind; another size or pixel range; datasets
            that are not of the same samples.
    """
    dataset = find_dataset(config.dataset) if config.kind == "shards" else _open_stream(config)
    others = [find_dataset(name) for name in config.join]
    problems = _image_problems(config, dataset)
    by_name = {level.name: level for one in (dataset, *others) for level in one.levels}
    usable = [name for name, level in by_name.items() if _is_usable(level, kinds)]
    names = config.levels or usable
    words = " or ".join(KIND_WORDS[kind] for kind in kinds)
    for name in names:
        if name not in usable:
            got = f"{name!r} (not a {words})" if name in by_name else repr(name)
            allowed = ", ".join(usable) or f"none: this dataset has no {words}s"
            problems.append(Problem("data.levels", got, allowed))
    chosen = [by_name[name] for name in names if name in usable]
    for kind in kinds:
        if len(chosen) == len(names) and not any(level.kind == kind for level in chosen):
            allowed = f"at least one {KIND_WORDS[kind]}"
            problems.append(Problem("data.dataset", dataset.url, allowed, KIND_HINTS[kind]))
    if problems:
        raise ConfigError(problems)
    levels = sorted(chosen, key=lambda level: level.stride)
    snapshot = _open_snapshot((dataset, *others))
    return TrainingSet(dataset, snapshot, tuple(levels), tuple(others))


def _open_stream(config: DataConfig) -> Dataset:
    from distill.online import open_stream

    # It has what a run asks of a dataset, and no files.
    return cast("Dataset", open_stream(config))


def _open_snapshot(datasets: Sequence[Dataset], version: str | None = None) -> Snapshot:
    """Show a dataset, or several of the same samples as one."""
    if len(datasets) == 1:
        return datasets[0].snapshot(version=version)
    return cast("Snapshot", join(datasets, version=version))  # readers take it as they take one


def _is_usable(level: Level, kinds: Sequence[str]) -> bool:
    if level.kind not in kinds:
        return False
    return level.kind == "soft_label" or (len(level.shape) == 3 and level.stride > 0)


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
