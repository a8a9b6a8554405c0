"""Pretrainings of a diffusion teacher that take under a second."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from pipeline.images.source import ImageConfig, SourceConfig
from pipeline.learning.pretraining import state
from pipeline.learning.pretraining.config import PretrainConfig, UNetConfig


def tiny(out: Path, **changes: object) -> PretrainConfig:
    """A run of under a second."""
    values: dict[str, object] = {
        "out": str(out),
        "source": SourceConfig(kind="digits"),
        "image": ImageConfig(size=16, views=2, flip="random"),
        "unet": UNetConfig(block_out_channels=[8, 8], norm_num_groups=4),
        "steps": 4,
        "batch_size": 4,
        "warmup_steps": 1,
        "num_samples": 4,
        "sample_steps": 2,
        "threads": 1,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    return PretrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / state.WEIGHTS)
