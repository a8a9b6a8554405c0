"""Batches of labelled images on a device: normalised as a student wants them, in a seeded order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from distill.students.normalise import Normaliser
from dreamshard.rng import generator
from pipeline.images.labelled import LabelledImages, LazyImages
from pipeline.images.pair import compact, require_labels

if TYPE_CHECKING:
    from distill.students.student import Student

Images = LabelledImages | LazyImages


def normalised(images: np.ndarray, *, student: Student, device: torch.device) -> Tensor:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) on a device, normalised for a student."""
    return Normaliser(student.mean, student.std, device=device)(images)


def endless_rows(rows: np.ndarray, *, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield batches of row numbers without end: every row once per epoch, reshuffled each.

    Batches straddle epochs; a batch larger than the set repeats rows.

    Args:
        rows: int64 (N,), to choose from.
        batch_size: rows per batch.
        seed: of the order.
    """
    waiting = np.empty(0, np.int64)
    epoch = 0
    while True:
        while len(waiting) < batch_size:
            order = generator(seed, epoch, 0, "evaluation-order").permutation(len(rows))
            waiting = np.concatenate([waiting, rows[order]])
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def class_labels(train: Images, heldout: Images) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the labels of both splits as classes 0..K-1, int64 (N,) and (M,), and K.

    Raises:
        DataError: images without labels, one class alone, held-out classes that no training image
            has.
    """
    both = []
    for split, images in (("train", train), ("heldout", heldout)):
        both.append(require_labels(images.labels, key=f"{split}_images"))
    known, judged, classes = compact(*both, keys=("train_images", "heldout_images"))
    return known, judged, len(classes)


def ordered_rows(total: int, *, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the row numbers 0..total-1 in order, the last batch as short as it is."""
    for first in range(0, total, batch_size):
        yield np.arange(first, min(first + batch_size, total))
