"""What is shown while a teacher trains: samples, the loss curve, the proxy distance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dreamshard import rng
from dreamshard.foreign.text import parse_json
from dreamshard.pictures import image_grid
from dreamshard.progress import stage
from dreamshard.runfolder import RunFolder
from pipeline.images import quality
from pipeline.learning.pretraining.data import TrainingImages
from pipeline.teachers.diffusion import sampling
from pipeline.teachers.diffusion.schedules import Schedule
from pipeline.teachers.pixels import to_uint8

BATCH = 64
"""Samples drawn at once for the distance (count)."""
CELL = 48
"""Small samples are enlarged to about this side (pixels)."""


@dataclass(frozen=True)
class Sampler:
    """Draw numbered samples of a network, the same ones at any time of its training.

    Args:
        network: a `UNet2DModel` on its device.
        schedule: that it is trained on.
        size: (H, W) of the samples in pixels.
        classes: that it is conditioned on (count), taken in turns; 0 for none.
        steps: of DDIM (count), spread evenly over the schedule.
        seed: of the noise.
    """

    network: nn.Module
    schedule: Schedule
    size: tuple[int, int]
    classes: int
    steps: int
    seed: int

    def __call__(self, numbers: range) -> np.ndarray:
        """Return the samples of these numbers, uint8 (N, H, W, 3)."""
        device = next(self.network.parameters()).device
        noise = rng.normal(self.seed, numbers, 0, "pretrain-grid", (3, *self.size))
        x = torch.from_numpy(noise).to(device).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(numbers.start, numbers.stop, device=device)
        labels = labels % self.classes if self.classes else None
        images = draw(self.network, self.schedule, x, labels, steps=self.steps)
        return images.cpu().numpy()


class ProxyDistance:
    """Measure how far drawn samples are from the training images.

    Args:
        extract: turns images into the features compared.
        images: training images, uint8 (N, H, W, 3); as many samples are drawn.
    """

    def __init__(self, extract: quality.Extractor, images: np.ndarray) -> None:
        self._extract = extract
        self._reference = self._extract(images)

    def measure(self, sample: Callable[[range], np.ndarray]) -> dict[str, float]:
        """Draw samples; return `proxy_fd`, `proxy_kd` and, by Inception, `inception_score`."""
        count = len(self._reference)
        parts = [sample(range(at, min(at + BATCH, count))) for at in range(0, count, BATCH)]
        drawn = self._extract(np.concatenate(parts))
        figures = {
            "proxy_fd": quality.frechet_distance(self._reference, drawn),
            "proxy_kd": quality.kernel_distance(self._reference, drawn),
        }
        if (logits := getattr(self._extract, "logits", None)) is not None:
            figures["inception_score"] = quality.inception_score(logits(drawn))[0]
        return figures


class Watch:
    """Show how a teacher in training draws, and measure it.

    Args:
        sampler: of the network.
        images: that it is trained on.
        folder: of the run.
        crop: side of the windows that it sees (pixels); 0 for whole images.
        extract: opened features of the distance; None where none is measured.
        samples: that the distance compares (count).
    """

    def __init__(
        self,
        sampler: Sampler,
        images: TrainingImages,
        folder: Path,
        *,
        crop: int,
        extract: quality.Extractor | None,
        samples: int,
    ) -> None:
        self._sampler, self._images, self._folder, self._crop = sampler, images, folder, crop
        self._extract, self._samples = extract, samples
        self._distance: ProxyDistance | None = None

    def draw(self, count: int, path: Path) -> None:
        """Draw this many samples into a PNG, and the loss so far beside the run's record."""
        draw_grid(self._sampler(range(count)), path)
        draw_loss_curve(self._folder)

    def measure(self, step: int, record: RunFolder) -> dict[str, float]:
        """Measure the samples' distance to the training images, log it, say it, return it."""
        if self._distance is None:
            images = self._images.plain(self._samples)
            if side := self._crop:  # windows from the middle: samples are windows, too
                top, left = ((length - side) // 2 for length in images.shape[1:3])
                images = images[:, top : top + side, left : left + side]
            assert self._extract is not None, "opened where distances are measured"
            self._distance = ProxyDistance(self._extract, images)
        figures = self._distance.measure(self._sampler)
        record.log(step=step, **figures)
        stage(f"step {step}: proxy Fréchet distance {figures['proxy_fd']:.4g}")
        return figures


def draw(
    network: nn.Module, schedule: Schedule, x: Tensor, labels: Tensor | None, *, steps: int
) -> Tensor:
    """Draw images with DDIM from standard normal noise.

    Args:
        network: a `UNet2DModel`.
        schedule: that it was trained on.
        x: (N, 3, H, W), on the network's device.
        labels: int64 (N,), or None.
        steps: of the sampler (count), spread evenly over the schedule.

    Returns:
        uint8 (N, H, W, 3).
    """

    def denoise(x_t: Tensor, timestep: int) -> Tensor:
        told = torch.full((len(x),), float(schedule.time[timestep]), device=x.device)
        scaled = schedule.model_input(x_t, timestep)
        return network(scaled, told, class_labels=labels, return_dict=False)[0]

    grid = [int(t) for t in np.linspace(0, len(schedule) - 1, steps + 1)[1:]]
    with torch.inference_mode():
        x0 = sampling.sample(schedule, denoise, x, grid, sampling.SamplerSettings())
    return to_uint8(x0)


def draw_grid(images: np.ndarray, path: Path) -> None:
    """Write images uint8 (N, H, W, 3) as one PNG, a square grid with small ones enlarged."""
    height, width = images.shape[1:3]
    cell = width * max(1, CELL // max(height, width))
    columns = math.ceil(math.sqrt(len(images)))
    path.write_bytes(image_grid(images, columns=columns, cell_px=cell, gap_px=1))


def draw_loss_curve(folder: Path) -> None:
    """Write `loss.png` from a run's metrics.jsonl; nothing where matplotlib is not installed."""
    points, file = [], folder / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        entry = parse_json(line, where=str(file), infinite=True)
        if "loss" in entry:
            points.append((entry["step"], entry["loss"]))
    try:
        from dreamshard.charts import LIGHT, loss_curves
    except ImportError:
        return
    if points:
        picture = loss_curves({"Pretraining": {"loss": points}}, LIGHT)
        (folder / "loss.png").write_bytes(picture)
