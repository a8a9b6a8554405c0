"""Batches of training images and noise on the device, each a function of its positions alone."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamshard import rng
from pipeline.learning.device import sent
from pipeline.learning.pretraining.data import TrainingImages
from pipeline.teachers.pixels import signed
from storage.batches.positions import PositionStream

AHEAD = 2
"""Batches prepared ahead of the network (count)."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step, on the device.

    Args:
        images: float32 (B, 3, H, W) in -1..1.
        noise: float32 (B, 3, H, W), standard normal; nothing (0) where none is asked for.
        labels: int64 (B,), or None.
        positions: of the share in the endless stream.
    """

    images: Tensor
    noise: Tensor
    labels: Tensor | None
    positions: range


@dataclass(frozen=True)
class Batches:
    """Prepare one rank's share of every global batch.

    Args:
        images: what positions show.
        seed: of the images' order and the noise.
        batch_size: images of a step over all ranks (count).
        rank, ranks: this process and how many there are.
        device: where batches go.
        labels: give the images' labels, too.
        noise: give standard normal numbers of the images' shape, too.
    """

    images: TrainingImages
    seed: int
    batch_size: int
    rank: int
    ranks: int
    device: torch.device
    labels: bool
    noise: bool = True

    def between(self, done: int, end: int) -> Generator[Batch, None, None]:
        """Yield the batches of the steps after `done` up to `end`, prepared ahead in threads."""
        share = self.batch_size // self.ranks
        valid = self.images.valid
        stream = PositionStream(num_samples=len(valid), valid=valid, seed=self.seed)
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="batches") as pool:
            waiting = []
            for step in range(done, end):
                start = step * self.batch_size + share * self.rank
                waiting.append(pool.submit(self._load, stream, range(start, start + share)))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()

    def _load(self, stream: PositionStream, positions: range) -> Batch:
        samples = stream.samples(positions.start, len(positions))
        images, labels = self.images.batch(samples, positions)
        noise = np.zeros(0, np.float32)
        if self.noise:
            noise = rng.normal(self.seed, positions, 0, "pretrain-noise", (3, *images.shape[1:3]))
        told = labels if self.labels else None
        return Batch(
            images=signed(sent(images, self.device)),
            noise=sent(noise, self.device),
            labels=None if told is None else sent(told, self.device),
            positions=positions,
        )
