"""A small run to be kept, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.learning.checkpoint import (
    parts_of,
    save_checkpoint,
)
from pipeline.learning.loop import Learner
from pipeline.learning.schedule import WarmupCosine


def trained(steps: int = 3, **parts: Any) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, betas=(0.8, 0.9), fused=True)
    schedule = WarmupCosine(peak=0.1, steps=9)
    ours = Learner(module=module, optimizer=optimizer, schedule=schedule, **parts)
    for _ in range(steps):
        step(ours)
    return ours


def step(ours: Learner) -> None:
    ours.module(torch.randn(2, 3, 8, 8)).square().mean().backward()
    ours.optimizer.step()
    ours.optimizer.zero_grad()


def save(run_dir: Path, *steps: int, keep: int = 9) -> Path:
    ours = trained()
    for number in steps:
        path = save_checkpoint(run_dir, parts_of(ours), state={"step": number}, keep=keep)
    return path
