"""Training images kept on the training device, and everything random drawn there.

A GPU trains a small UNet on tens of thousands of images a second, more than any host prepares one
by one. Here the whole set lies on the device as uint8, and flips, noise and noise levels come from
generators keyed by (seed, step): an interrupted run goes on exactly, and every process draws the
whole global batch's numbers and takes its share, so that their number does not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard import rng
from dreamshard.errors import ConfigError, Problem
from pipeline.pretrain_config import PretrainConfig
from pipeline.pretraining.objective import P_MEAN, P_STD, NoiseLevels
from pipeline.teachers.schedules import Schedule

if TYPE_CHECKING:
    import torch

    from pipeline.pretraining.data import TrainingImages


def problems(config: PretrainConfig) -> list[Problem]:
    """List what the device cannot do with images: jittered views and windows."""
    found = []
    if config.image.views > 1:
        hint = "Set image.views to 1, or draws to host."
        found.append(Problem("image.views", f"{config.image.views} with draws device", "1", hint))
    if config.crop:
        hint = "Set crop to 0, or draws to host."
        found.append(Problem("crop", f"{config.crop} with draws device", "0", hint))
    return found


class ResidentImages:
    """Hold a set of images on a device and hand out batches of it.

    Args:
        images: decoded and kept already; what cannot be decoded never comes up.
        config: decides flips, batch size and seed.
        device: where they lie.

    Raises: ConfigError if the set is too large to be kept, or a setting needs the host.
    """

    def __init__(
        self, images: TrainingImages, *, config: PretrainConfig, device: torch.device
    ) -> None:
        import torch

        found: list[Problem | str] = list(problems(config))
        if images.kept is None:
            allowed = "a set whose decoded images fit into 2 GB"
            found.append(Problem("draws", "device", allowed, "Set draws to host."))
        if found or images.kept is None:
            raise ConfigError(found)
        self._pixels = torch.from_numpy(images.kept).to(device)
        labels = images.labels
        self._labels = None if labels is None else torch.from_numpy(labels).to(device)
        self._config, self._device = config, device

    def batch(self, samples: np.ndarray, positions: range, *, labels: bool) -> dict[str, Any]:
        """Return one rank's share of a global batch, drawn on the device.

        Args:
            samples: int64 (B,), which image each position shows.
            positions: B places in the endless stream, all of one global batch.
            labels: hand out labels, too.

        Returns:
            images float32 (B, 3, H, W) in [-1, 1], noise float32 likewise, labels int64 (B,) or
            None.
        """
        import torch

        config = self._config
        step, share = self._places(positions)
        rows = torch.from_numpy(samples).to(self._device, non_blocking=True)
        pixels = self._pixels[rows].permute(0, 3, 1, 2)
        images = pixels.to(torch.float32) / 127.5 - 1
        draw = generator(config.seed, step, "pretrain-batch", device=self._device)
        whole = (config.batch_size, *images.shape[1:])
        noise = torch.randn(whole, generator=draw, device=self._device)[share]
        if config.image.flip != "none":
            coin = torch.rand(config.batch_size, generator=draw, device=self._device)[share] < 0.5
            images = torch.where(coin[:, None, None, None], images.flip(3), images)
        told = self._labels[rows] if labels and self._labels is not None else None
        return {"images": images, "noise": noise, "labels": told}

    def draw_levels(self, schedule: Schedule, *, seed: int, positions: range) -> NoiseLevels:
        """Draw the noise levels of one rank's share, as `objective.draw_levels` does.

        They are drawn at once for the global batch: a generator a position costs a GPU's time.
        """
        step, share = self._places(positions)
        draw, count = rng.generator(seed, step, 0, "pretrain-levels"), self._config.batch_size
        if schedule.prediction == "edm":
            sigma = np.exp(P_MEAN + P_STD * draw.standard_normal(count))[share]
            return NoiseLevels(np.ones_like(sigma), sigma, np.log(sigma) / 4)
        steps = draw.integers(len(schedule), size=count)[share]
        return NoiseLevels(schedule.signal[steps], schedule.noise[steps], schedule.time[steps])

    def _places(self, positions: range) -> tuple[int, slice]:
        """Return the step that positions belong to, and their places in its global batch."""
        step, place = divmod(positions.start, self._config.batch_size)
        return step, slice(place, place + len(positions))


def generator(seed: int, step: int, purpose: str, *, device: Any) -> torch.Generator:
    """Return a generator on a device that depends on nothing but (seed, step, purpose)."""
    import torch

    number = int(rng.generator(seed, step, 0, purpose).integers(2**62))
    return torch.Generator(device=device).manual_seed(number)
