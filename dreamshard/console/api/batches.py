"""Batches of features for a training loop of one's own, in torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.dequantise import Dequantiser
from distill.data.shards import Subset
from dreamshard.errors import ConfigError, DataError, Problem
from storage.batches.reader import BatchReader
from storage.codecs.arrays import IMAGE, LABEL
from storage.level_names import ByLevel, choose_levels
from storage.snapshot import Snapshot


@dataclass(frozen=True)
class TorchBatch:
    """Hold B samples.

    Args:
        images: float32 (B, 3, H, W) in 0..1; None where images are not stored.
        levels: float32 (B, *level.shape), by level name, tap or stride.
        label: int64 (B,), -1 = none; None where the dataset has no labels.
        index: int64 (B,), the samples' numbers in the dataset.
    """

    images: Tensor | None
    levels: ByLevel[Tensor]
    label: Tensor | None
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


class TorchBatches:
    """Give one pass over some samples each time it is iterated; see `Samples.torch`.

    Args:
        snapshot: what is read.
        index: int64 (N,), the samples; those that are not valid are left out.
        batch_size, levels, shuffle, seed, device, drop_last, threads: see `Samples.torch`.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        index: np.ndarray,
        batch_size: int,
        levels: Sequence[str] | None,
        shuffle: bool,
        seed: int,
        device: str | torch.device,
        drop_last: bool,
        threads: int,
    ) -> None:
        chosen, wrong = list(snapshot.levels), []
        if levels is not None:
            chosen, wrong = choose_levels(snapshot.levels, levels, key="levels")
        counts = {"batch_size": batch_size, "threads": threads}
        wrong += [Problem(key, str(n), "1 or more") for key, n in counts.items() if n < 1]
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            wrong.append(Problem("device", str(device), "cpu, as no CUDA device is visible"))
        numbers, times = np.unique(index, return_counts=True)
        if (times > 1).any():
            got = f"sample {numbers[times > 1][0]} {times.max()} times"
            wrong.append(Problem("samples", got, "each once: a pass reads every sample once"))
        if wrong:
            raise ConfigError([*wrong])
        kept = np.zeros(snapshot.num_samples, bool)
        kept[index] = True
        self._kept = kept & snapshot.valid
        self.num_samples = int(self._kept.sum())
        if not self.num_samples:
            raise DataError(f"{snapshot.url}: got no usable sample among {len(index):,}.")
        self._snapshot, self.levels = snapshot, tuple(chosen)
        self._device, self._shuffle, self._seed = torch.device(device), shuffle, seed
        self.batch_size, self._drop_last, self._threads = batch_size, drop_last, threads
        self._decoders = {
            level.name: Dequantiser(level, snapshot.codec(level.name), device=self._device)
            for level in chosen
            if "float" in level.dtype
        }
        self.passes = 0
        """Passes begun so far; each has an order of its own."""

    def __len__(self) -> int:
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (1 if rest and not self._drop_last else 0)

    def __iter__(self) -> Iterator[TorchBatch]:
        first = self.passes * self.num_samples if self._shuffle else 0
        self.passes += 1
        has = self._snapshot.array_names
        view: Any = Subset(self._snapshot, self._kept)
        with BatchReader(
            view,
            levels=[level.name for level in self.levels],
            batch_size=self.batch_size,
            seed=self._seed,
            shuffle="full" if self._shuffle else "none",
            images=IMAGE in has,
            labels=LABEL in has,
            copy=True,
            start=first,
            threads=self._threads,
        ) as reader:
            for number in range(len(self)):
                left = self.num_samples - number * self.batch_size
                yield self._tensors(reader.next(), min(left, self.batch_size))

    def _tensors(self, rows: Any, count: int) -> TorchBatch:
        """Bring the first `count` rows to the device; the others are the next pass's."""
        arrays = {name: values[:count] for name, values in rows.levels.items()}
        features = {}
        for level in self.levels:
            decode = self._decoders.get(level.name)
            plain = torch.from_numpy(arrays[level.name]) if decode is None else decode(arrays)
            features[level.name] = plain.to(self._device)
        images = None
        if rows.image is not None:
            stored = torch.from_numpy(rows.image[:count]).to(self._device)
            images = stored.permute(0, 3, 1, 2).float().div_(255)
        label = None
        if rows.label is not None:
            label = torch.from_numpy(rows.label[:count]).to(self._device)
        index = torch.from_numpy(rows.index[:count].copy())
        return TorchBatch(images, ByLevel(features, self.levels), label, index)
