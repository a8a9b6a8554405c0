"""Crops and flips: geometry, masks that follow their images, order of batches."""

from __future__ import annotations

import numpy as np
import torch

from distill.bench.augment import crop_and_flip
from distill.bench.batches import endless_rows


def ramp(count: int = 64) -> torch.Tensor:
    """Images whose channels are their own coordinates, 0..1."""
    lines = (torch.arange(16) + 0.5) / 16
    down, right = torch.meshgrid(lines, lines, indexing="ij")
    return torch.stack([down, right, torch.ones_like(down)]).expand(count, -1, -1, -1).clone()


def test_whole_images_are_only_mirrored() -> None:
    images = ramp()
    found, _ = crop_and_flip(images, smallest=1.0, generator=torch.Generator().manual_seed(0))
    same = (found - images).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (found - images.flip(-1)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((same ^ mirrored).all()) and 16 < int(mirrored.sum()) < 48


def test_crops_stay_inside_and_have_the_areas_asked_for() -> None:
    found, _ = crop_and_flip(
        ramp(500), smallest=0.25, flip=False, generator=torch.Generator().manual_seed(1)
    )
    height = found[:, 0, -1, 0] - found[:, 0, 0, 0]
    width = found[:, 1, 0, -1] - found[:, 1, 0, 0]
    area = (height * width) / (15 / 16) ** 2
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert float(area.min()) > 0.24 and float(area.max()) <= 1.0001
    assert 0.5 < float(area.mean()) < 0.7, "uniform in 0.25..1, some cut by the image's edge"
    assert len({round(float(value), 4) for value in area}) > 400, "every sample has its own"


def test_masks_follow_their_images() -> None:
    images = ramp()
    masks = (images[:, 1] > 0.5).long()
    found, moved = crop_and_flip(
        images, masks, smallest=0.3, generator=torch.Generator().manual_seed(2)
    )
    assert moved is not None and moved.dtype == torch.int64
    clear = (found[:, 1] - 0.5).abs() > 0.04  # away from the border of the two classes
    assert torch.equal(moved[clear], (found[:, 1] > 0.5).long()[clear])


def test_every_row_comes_once_an_epoch_and_batches_straddle() -> None:
    rows = np.array([3, 5, 8, 9, 11])
    order = endless_rows(rows, batch_size=2, seed=0)
    flat = np.concatenate([next(order) for _ in range(5)])
    assert sorted(flat[:5]) == sorted(flat[5:]) == sorted(rows)
    large = next(endless_rows(rows, batch_size=7, seed=0))
    assert len(large) == 7 and set(large) == set(rows)
