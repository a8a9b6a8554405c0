"""Tiny networks, saved as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import dreamshard
from pipeline.teachers.base import Mode, Scalar, TeacherConfig
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from storage.schema import Pins

UNET = {
    "sample_size": 16,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight a random value, zero-initialised ones included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


@pytest.fixture(scope="session")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet2DModel folder as save_pretrained writes it, with its scheduler."""
    from diffusers import DDPMScheduler, UNet2DModel

    folder = tmp_path_factory.mktemp("unet")
    module = UNet2DModel(**UNET)  # type: ignore[arg-type]
    randomize(module)
    module.save_pretrained(folder)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")
    return folder


def pins(**changes: object) -> Pins:
    """Pins of a test: four rows, one thread."""
    values = {"micro_batch": 4, "compute_dtype": "float32", "device": "cpu", "threads": 1}
    return Pins(**{**values, **changes})  # type: ignore[arg-type]


def make_teacher(
    path: Path,
    *,
    levels: list[str],
    timesteps: list[int],
    mode: Mode = "encode",
    seed: int = 0,
    draws: int = 1,
    pool: str = "none",
    **settings: Scalar,
) -> DiffusionTeacher:
    """Load a teacher as the pipeline does."""
    config = TeacherConfig(
        path=str(path),
        levels=levels,
        timesteps=timesteps,
        draws=draws,
        pool=pool,  # type: ignore[arg-type]
        settings=settings,
    )
    return DiffusionTeacher(config, mode=mode, image_size=None, seed=seed, pins=pins())


def make_images(count: int = 4, size: int = 16, seed: int = 0) -> np.ndarray:
    """Random images, uint8 (N, size, size, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def open_teacher(path: Path, **settings: Any) -> DiffusionTeacher:
    """Load a teacher through the public door."""
    return cast(DiffusionTeacher, dreamshard.load_teacher(str(path), **settings))
