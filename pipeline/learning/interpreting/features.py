"""The features that an interpreter is fitted to: computed once, kept in memory as float16."""

from __future__ import annotations

from collections.abc import Mapping
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


def compute_views(
    teacher: Teacher,
    data: LabelledImages,
    *,
    total: int,
    noisings: int,
    mirror: bool,
    micro_batch: int,
    progress: Progress,
) -> FeatureViews:
    """Run a frozen teacher over labelled images, once per noise draw and mirroring.

    Args:
        teacher: loaded, to be given whole micro-batches.
        data: N images.
        total: images of the source, so that no two views share their noise.
        noisings: noise draws per image.
        mirror: add the mirrored images, with as many draws of their own.
        micro_batch: images per call; the last call is padded.
        progress: counts images.
    """
    views = noisings * (2 if mirror else 1)
    mirrored = np.arange(views) >= noisings
    levels = {
        level.name: np.empty((views, len(data), *level.shape), np.float16)
        for level in teacher.levels
    }
    for view in range(views):
        images = data.images[:, :, ::-1] if mirrored[view] else data.images
        for first in range(0, len(data), micro_batch):
            rows = np.minimum(np.arange(first, first + micro_batch), len(data) - 1)
            count = min(micro_batch, len(data) - first)
            indices = data.numbers[rows] + view * total
            batch = teacher.encode(np.ascontiguousarray(images[rows]), indices)
            for name, kept in levels.items():
                kept[view, first : first + count] = batch.levels[name][:count]
            progress.update(count)
    return FeatureViews(levels, mirrored)
