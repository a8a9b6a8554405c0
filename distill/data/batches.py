"""Training batches: read, brought to the device, decoded and normalised there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data.dequantise import Dequantiser
from distill.data.paired import open_pairs
from distill.data.sets import NUMBER, REAL, TrainingSet
from distill.data.upload import Uploader
from distill.students.normalise import Normaliser
from storage.batches.filler import Share

IMAGE = "image"


@dataclass(frozen=True)
class Batch:
    """Hold one rank's share of one step, on its device.

    Args:
        images: float32 (B, 3, H, W), normalised.
        targets: level name to float32 (B, C, h, w); "label" and NUMBER to int64 (B,), and REAL
            to float32 (B, 3, H, W), normalised, where asked for.
        index: int64 (B,) on the host, sample numbers in the dataset.
    """

    images: Tensor
    targets: dict[str, Tensor]
    index: np.ndarray


class Batches:
    """Prepare one rank's share of every global batch.

    The order is that of the endless stream of positions: sample p of the whole run is the same at
    any number of ranks, and the position is all that a resumed run needs.

    Args:
        training_set: what to read.
        share: which part of every batch, and where in the stream to begin.
        mean, std: normalisation of the images, per channel, of pixels in 0..1.
        device: where batches go.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        share: Share,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._device = device
        source = training_set.source
        self._decoders = {
            name: Dequantiser(level, source.codec(name), device=device)
            for name, level in training_set.recorded.items()
        }
        self._pairs = open_pairs(training_set, rank=share.rank)
        self._normalise = Normaliser(mean, std, device=device)
        self._reader = source.read(
            [level.name for level in training_set.levels],
            share=share,
            seed=training_set.seed,
            labels=training_set.needs.labels,
            kept=training_set.kept,
        )
        self._numbered = training_set.needs.numbers
        self._real = None
        if training_set.real is not None:  # in an order of its own
            seed = training_set.seed + 1
            self._real = training_set.real.read([], share=share, seed=seed)
        self._upload = Uploader(device, pin=getattr(self._reader, "reuses_memory", False))

    @property
    def position(self) -> int:
        """Samples of the stream consumed so far, over all ranks."""
        return self._reader.position

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for data so far: to be read, and to be on its way to the device."""
        beside = 0.0 if self._real is None else self._real.wait_s
        return self._reader.wait_s + self._upload.wait_s + beside

    def next(self) -> Batch:
        """Wait for the next batch, bring it to the device and normalise it there."""
        self._upload.settle()  # the reader fills the buffers again that it gave out before
        rows = self._reader.next()
        assert rows.image is not None
        uploaded = self._upload({IMAGE: rows.image, **rows.levels})
        images = self._normalise(uploaded.pop(IMAGE))
        targets = {name: _in_order(decode(uploaded)) for name, decode in self._decoders.items()}
        if self._pairs is not None:
            images, targets = self._pairs(images, targets, position=rows.position)
        if self._real is not None:
            pixels = self._real.next().image
            assert pixels is not None
            targets[REAL] = self._normalise(torch.from_numpy(pixels))
        if self._numbered:
            targets[NUMBER] = torch.from_numpy(rows.index.astype(np.int64)).to(self._device)
        if rows.label is not None:
            targets["label"] = torch.from_numpy(rows.label).to(self._device, copy=True)
        return Batch(images=images, targets=targets, index=rows.index.copy())

    def close(self) -> None:
        """Stop reading ahead."""
        self._upload.close()
        self._reader.close()
        if self._real is not None:
            self._real.close()


def _in_order(values: Tensor) -> Tensor:
    """Lay maps channels last, as images are; soft labels of whole images have no order."""
    return values.to(memory_format=torch.channels_last) if values.dim() == 4 else values
