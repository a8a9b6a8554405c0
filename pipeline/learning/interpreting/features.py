"""The features that an interpreter is fitted to: computed once, kept in memory as float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import Progress
from pipeline.images.labelled import LabelledImages
from pipeline.teachers.base import Teacher
from storage.schema import Level

if TYPE_CHECKING:
    from torch import Tensor

GB = 1e9


@dataclass(frozen=True)
class FeatureViews:
    """Hold a teacher's levels of every labelled image, several times over.

    Args:
        levels: level name to float16 (V, N, C, h, w): V views of N images; the last half of the
            views are of the mirrored images, where there are any.
        mirrored: bool (V,), which views.
    """

    levels: Mapping[str, np.ndarray]
    mirrored: np.ndarray

    def batch(self, views: np.ndarray, rows: np.ndarray, *, device: str) -> dict[str, Tensor]:
        """Return float32 tensors (B, C, h, w) of B (view, image) pairs on a device."""
        import torch

        return {
            name: torch.from_numpy(values[views, rows]).to(device).float()
            for name, values in self.levels.items()
        }


def check_memory(levels: tuple[Level, ...], *, images: int, views: int, limit_gb: float) -> None:
    """Refuse to keep more than the memory allowed, before any is computed.

    Raises:
        ConfigError: with the arithmetic.
    """
    each = sum(2 * int(np.prod(level.shape)) for level in levels)
    total = each * images * views
    if total > limit_gb * GB:
        got = (
            f"{images} images x {views} views x {each / 1e6:.2f} MB of features = "
            f"{total / GB:.1f} GB"
        )
        hint = "Lower labelled, noisings or the number of teacher.levels, or raise memory_gb."
        raise ConfigError(Problem("memory_gb", got, f"at most {limit_gb:g} GB", hint))


def empty_views(levels: tuple[Level, ...], *, images: int, views: int) -> dict[str, np.ndarray]:
    """Return the arrays that `compute_views` fills, float16 (views, images, *level.shape)."""
    return {level.name: np.empty((views, images, *level.shape), np.float16) for level in levels}


def compute_views(
    teacher: Teacher,
    data: LabelledImages,
    *,
    levels: dict[str, np.ndarray],
    total: int,
    mirror: bool,
    micro_batch: int,
    progress: Progress,
    done: int = 0,
    after: Callable[[int], None] = lambda _: None,
) -> FeatureViews:
    """Run a frozen teacher over labelled images, once per noise draw and mirroring.

    Args:
        teacher: loaded, to be given whole micro-batches.
        data: N images.
        levels: arrays to fill, of `empty_views`.
        total: images of the source, so that no two views share their noise.
        mirror: the last half of the views are of the mirrored images.
        micro_batch: images per call; the last call is padded.
        progress: counts images.
        done: images computed before, over all views.
        after: called with the images computed, after every micro-batch but the last.
    """
    views = len(next(iter(levels.values())))
    mirrored = np.arange(views) >= (views // 2 if mirror else views)
    for view in range(views):
        images = data.images[:, :, ::-1] if mirrored[view] else data.images
        for first in range(0, len(data), micro_batch):
            count = min(micro_batch, len(data) - first)
            so_far = view * len(data) + first + count
            if so_far <= done:
                continue
            rows = np.minimum(np.arange(first, first + micro_batch), len(data) - 1)
            indices = data.numbers[rows] + view * total
            batch = teacher.encode(np.ascontiguousarray(images[rows]), indices)
            for name, kept in levels.items():
                kept[view, first : first + count] = batch.levels[name][:count]
            progress.update(count)
            if so_far < views * len(data):
                after(so_far)
    return FeatureViews(levels, mirrored)
