"""What is shown while a teacher trains: sample grids, the loss curve, the proxy distance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamshard.progress import stage
from pipeline import quality

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dreamshard.runfolder import RunFolder
    from pipeline.teachers.schedules import Schedule

Sampler = Callable[[range], np.ndarray]
"""Numbers of samples -> images, uint8 (N, H, W, 3)."""
BATCH = 64
"""Samples drawn at once for the distance (count)."""


class ProxyDistance:
    """Measure how far drawn samples are from the training images.

    Args:
        extractor: name, as `quality.open_extractor` takes it.
        images: training images, uint8 (N, H, W, 3); as many samples are drawn.
    """

    def __init__(self, extractor: str, images: np.ndarray) -> None:
        self._extract = quality.open_extractor(extractor)
        self._count = len(images)
        self._reference = self._extract(images)

    def measure(self, draw: Sampler) -> dict[str, float]:
        """Draw samples and return `proxy_fd` and `proxy_kd`."""
        starts = range(0, self._count, BATCH)
        parts = [draw(range(start, min(start + BATCH, self._count))) for start in starts]
        found = self._extract(np.concatenate(parts))
        return {
            "proxy_fd": quality.frechet_distance(self._reference, found),
            "proxy_kd": quality.kernel_distance(self._reference, found),
        }


def log_distance(
    record: RunFolder, step: int, distance: ProxyDistance, draw: Sampler
) -> dict[str, float]:
    """Measure the distance at a step, log it, say it, and return it."""
    found = distance.measure(draw)
    record.log(step=step, **found)
    stage(f"step {step}: proxy Fréchet distance {found['proxy_fd']:.4g}")
    return found


def draw(
    network: nn.Module, schedule: Schedule, x: Tensor, labels: Tensor | None, *, steps: int
) -> Tensor:
    """Draw images with DDIM from standard normal noise.

    Args:
        network: a `UNet2DModel`.
        x: (N, 3, H, W), on the network's device.
        labels: int64 (N,), or None.
        steps: of the sampler (count), spread evenly over the schedule.

    Returns:
        uint8 (N, 3, H, W).
    """
    import torch

    from pipeline.teachers import sampling

    def denoise(x_t: Tensor, timestep: int) -> Tensor:
        told = torch.full((len(x),), float(schedule.time[timestep]), device=x.device)
        scaled = schedule.model_input(x_t, timestep)
        return network(scaled, told, class_labels=labels, return_dict=False)[0]

    grid = [int(t) for t in np.linspace(0, len(schedule) - 1, steps + 1)[1:]]
    with torch.inference_mode():
        x0 = sampling.sample(schedule, denoise, x, grid, sampling.SamplerSettings())
    return ((x0.clip(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def draw_loss_curve(folder: Path) -> None:
    """Write `loss.png` from a run's metrics.jsonl; nothing where matplotlib is not installed."""
    points, file = [], folder / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        entry = json.loads(line)
        if "loss" in entry:
            points.append((entry["step"], entry["loss"]))
    if not points:
        return
    try:
        from dreamshard.charts import LIGHT, loss_curves

        picture = loss_curves({"Pretraining": {"loss": points}}, LIGHT)
    except ImportError:
        return
    part = folder / ".loss.png.partial"
    part.write_bytes(picture)
    part.replace(folder / "loss.png")
