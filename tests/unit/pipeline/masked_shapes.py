"""A source of squares on a ground, with masks; and a small diffusion teacher, untrained."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SIDE = 16
VOID = 9


def png(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def shapes(
    count: int, *, seed: int = 0, side: int = SIDE
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Return (image, mask, label): a bright square (1) or a dark one (2) on grey (0), void rim."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        kind = int(rng.integers(1, 3))
        image = rng.integers(110, 140, (side, side, 3), dtype=np.uint8)
        mask = np.zeros((side, side), np.uint8)
        top, left = rng.integers(0, side // 2, 2)
        high, wide = rng.integers(side // 4, side // 2, 2)
        region = slice(top, top + high), slice(left, left + wide)
        image[region] = rng.integers(225, 256) if kind == 1 else rng.integers(0, 30)
        mask[region] = kind
        mask[0, :] = VOID
        found.append((image, mask, kind - 1))
    return found


def write_shapes(
    path: Path, *, count: int = 12, seed: int = 0, masks: bool = True, side: int = SIDE
) -> Path:
    rows = shapes(count, seed=seed, side=side)
    columns: dict[str, list[object]] = {
        "key": [f"shape-{number}" for number in range(count)],
        "image": [png(image) for image, _, _ in rows],
        "label": [label for _, _, label in rows],
    }
    if masks:
        columns["mask"] = [png(mask) for _, mask, _ in rows]
    pq.write_table(pa.table(columns), path)
    return path


def write_teacher(folder: Path) -> Path:
    """Save a UNet of random weights with maps of stride 1, 2 and 4."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    UNet2DModel(
        sample_size=SIDE,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    ).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder
