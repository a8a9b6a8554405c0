"""Training data: which dataset and levels, and batches of them on the training device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from distill.dequantise import open_dequantisers
from distill.methods import method_class
from distill.paired import cropped, open_pairs, pair_problems
from distill.tables import load_part
from distill.upload import Uploader
from dreamshard.errors import ConfigError, Problem
from dreamshard.rng import generator
from storage.catalog import find_dataset
from storage.chunk_files import ReadableSnapshot
from storage.join import join
from storage.reader import BatchReader
from storage.rows import read_rows
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
class Choice:
    """Say what a method takes of a dataset.

    Args:
        levels: the teacher's levels.
        labels: the samples' labels.
        share: of each class's samples, those drawn for `seed` (0..1]; only with labels.
        seed: of the draw.
        classes: of the method's classifier; 0: it has none.
    """

    levels: bool = True
    labels: bool = False
    share: float = 1.0
    seed: int = 0
    classes: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """Hold what a run trains on.

    Args:
        dataset: the recorded features.
        snapshot: the state of the dataset that the run keeps to its end.
        levels: those to distil as the student sees them (cropped), finest first.
        joined: datasets of the same samples, whose levels the snapshot shows as well.
        choice: what of the dataset the method takes.
        crop: (H, W) in pixels of the random part that the student sees; None: the whole.
    """

    dataset: Dataset
    snapshot: Snapshot
    levels: tuple[Level, ...]
    joined: tuple[Dataset, ...] = ()
    choice: Choice = Choice()
    crop: tuple[int, int] | None = None

    @property
    def finest(self) -> int:
        """Stride of the finest soft label of maps, in pixels; 0 without any."""
        soft = [level.stride for level in self.levels if level.kind == "soft_label"]
        return min((stride for stride in soft if stride), default=0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images a student sees, in pixels."""
        return self.crop or self.dataset.image_size

    @property
    def recorded(self) -> dict[str, Level]:
        """The levels as the dataset has them, by name."""
        datasets = (self.dataset, *self.joined)
        by_name = {level.name: level for one in datasets for level in one.levels}
        return {level.name: by_name[level.name] for level in self.levels}

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self._all_labels().max()) + 1

    def reading(self) -> ReadableSnapshot:
        """Return the snapshot to read, which shows only the share of samples that was chosen."""
        if self.choice.share == 1.0:
            return self.snapshot
        kept = labelled_share(self._all_labels(), share=self.choice.share, seed=self.choice.seed)
        subset: Any = Subset(self.snapshot, kept)  # the rest of the protocol is the snapshot's
        return subset

    def check_labels(self) -> None:
        """Refuse labels that the method's classifier has no output for.

        Raises: ConfigError naming them.
        """
        shown = self.reading().valid
        labels = self._all_labels()[shown]
        beyond = np.unique(labels[(labels < 0) | (labels >= self.choice.classes)])
        if not len(beyond):
            return
        listed = ", ".join(map(str, beyond[:5].tolist())) + (" ..." if len(beyond) > 5 else "")
        hint = "Set supervised.classes, or supervised.label_share below 1 to leave out -1 (none)."
        allowed = f"0..{self.choice.classes - 1}"
        raise ConfigError(Problem("supervised.classes", f"labels {listed}", allowed, hint))

    def _all_labels(self) -> np.ndarray:
        return read_rows(self.snapshot, "label", np.arange(self.snapshot.num_samples))

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


class Subset:
    """Show some samples of a snapshot to a reader.

    Args:
        snapshot: what is read.
        kept: bool (num_samples,), the samples to show, as far as they are valid.
    """

    def __init__(self, snapshot: Snapshot, kept: np.ndarray) -> None:
        self._snapshot = snapshot
        self.valid = snapshot.valid & kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)


def labelled_share(labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Draw a share of each class's samples, at least one of each.

    Args:
        labels: int64 (N,); -1 for none, which is never drawn.
        share: of each class's samples (0..1].
        seed: of the draw; a larger share of the same seed has the smaller one's samples.

    Returns:
        bool (N,).
    """
    kept = np.zeros(len(labels), bool)
    for value in np.unique(labels[labels >= 0]).tolist():
        members = generator(seed, value, 0, "label-share").permutation(
            np.flatnonzero(labels == value)
        )
        kept[members[: max(1, round(share * len(members)))]] = True
    return kept


@dataclass(frozen=True)
class Batch:
    """Hold one rank's share of one step, on its device.

    Args:
        images: float32 (B, 3, H, W), normalised.
        targets: level name to float32 (B, C, h, w); "label" to int64 (B,) where asked for.
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
        self._upload = Uploader(device)
        self._order = torch.channels_last if config.channels_last else torch.contiguous_format
        by_name = training_set.recorded
        self._decoders = open_dequantisers(training_set.snapshot, by_name, device=device)
        self._pairs = open_pairs(training_set, config=config, rank=accelerator.process_index)
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
            training_set.reading(),
            levels=[level.name for level in training_set.levels],
            labels=training_set.choice.labels,
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
            pin=self._upload.pin,
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
        self._upload.settle()  # the reader fills the buffers again that it gave out before
        rows = self._reader.next()
        assert rows.image is not None
        found = self._upload({"image": rows.image, **rows.levels})
        pixels = torch.as_tensor(found.pop("image"), device=self._device)
        # (B, H, W, 3) seen as (B, 3, H, W) is channels_last already: one pass makes it float.
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._order)
        images.sub_(self._shift).div_(self._scale)
        targets = {
            name: _in_order(decode(found), self._order) for name, decode in self._decoders.items()
        }
        if self._pairs is not None:
            images, targets = self._pairs(images, targets, position=rows.position)
        if rows.label is not None:
            targets["label"] = torch.from_numpy(rows.label).to(self._device, copy=True)
        return Batch(images=images, targets=targets, index=rows.index.copy())

    def close(self) -> None:
        """Stop reading ahead."""
        self._upload.close()
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


def choice_of(config: TrainConfig) -> Choice:
    """Say what a run's method takes of its dataset.

    Raises:
        ConfigError: a method that cannot be imported.
    """
    needs = method_class(config).needs
    supervised = config.method == "supervised"
    return Choice(
        levels="levels" in needs,
        labels="labels" in needs,
        share=config.supervised.label_share if supervised else 1.0,
        seed=config.seed,
        classes=config.supervised.classes if supervised else 0,
    )


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


def open_training_set(
    config: DataConfig, *, kinds: Sequence[str] = ("feature",), choose: Choice | None = None
) -> TrainingSet:
    """Find the dataset at its latest version, choose the levels, and refuse what does not fit.

    Args:
        config: which dataset and levels, which datasets join it, and what is expected of them.
        kinds: of levels that the method distils: feature (maps), soft_label; one of each at least.
        choose: what else the method takes; None: the levels alone.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one; a stream's source
            that is empty or damaged.
        ConfigError: levels it has not, or of another kind; no labels; another size or pixel range;
            datasets that are not of the same samples; flips or crops that its levels do not allow.
    """
    choice = choose or Choice()
    dataset = find_dataset(config.dataset) if config.kind == "shards" else _open_stream(config)
    levels, problems = ([], [])
    others = [find_dataset(name) for name in config.join]
    if choice.levels:
        levels, problems = _choose_levels(config, (dataset, *others), kinds=kinds)
    problems = [*_image_problems(config, dataset), *problems]
    problems += pair_problems(config, dataset=dataset, levels=levels)
    if choice.labels and not dataset.about.labels:
        allowed = "a dataset with labels, as the method learns classes"
        problems.append(Problem("data.dataset", dataset.url, allowed))
    if problems:
        raise ConfigError(problems)
    crop = (config.crop[0], config.crop[1]) if config.crop else None
    found = TrainingSet(
        dataset=dataset,
        snapshot=_open_snapshot((dataset, *others)),
        levels=tuple(cropped(level, crop) for level in levels),
        joined=tuple(others),
        choice=choice,
        crop=crop,
    )
    if choice.classes and config.kind == "shards":
        found.check_labels()
    return found


def _choose_levels(
    config: DataConfig, datasets: Sequence[Dataset], *, kinds: Sequence[str]
) -> tuple[list[Level], list[Problem]]:
    """Return the levels asked for, finest first, and what is wrong with the request."""
    problems = []
    by_name = {level.name: level for one in datasets for level in one.levels}
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
            problems.append(Problem("data.dataset", datasets[0].url, allowed, KIND_HINTS[kind]))
    return sorted(chosen, key=lambda level: level.stride), problems


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
