"""Flips and crops that image and recorded maps undergo together.

Cropping keeps every cell's features: those the teacher gave it, having seen the whole image.
Mirroring does not: a teacher's features of a mirrored image are not its features mirrored. Those of
a transformer know where their patches are; a convolution's filters have a left and a right as well.
Measured on a 4.4 M-parameter UNet trained on mirrored CIFAR-10 images (64 images, t = 0 and 50):
the mean cosine of mirrored maps with the mirrored image's own is 0.65 to 0.91, where another draw
of the noise has 0.86 to 1.00. The exact way is to record flipped samples
(`dreamshard encode --image.flip random`).

Shapes: B samples, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dreamshard.errors import Problem
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.train import DataConfig
    from distill.data.sets import TrainingSet
    from distill.data.source import Source

MIRRORING = ("adm", "unet", "latent", "stylegan2", "biggan", "bigbigan", "ssgan")
"""Kinds of teachers, as datasets record them, for which mirroring is at least not refused; all the
networks of a family (`ssgan.discriminator`) are alike in this."""


@dataclass(frozen=True)
class Pairs:
    """Flip and crop batches of a run.

    Args:
        seed: of the run; with a sample's position in the stream it decides flip and crop, so that
            they are the same at any number of ranks and after a resume.
        rank: this rank's number.
        strides: of the maps, by level name; 0 for levels that are no maps.
        mirror: mirror half of the samples.
        size, crop: (H, W) in pixels, whole and cropped; None: no crop.
        grid: pixels that a crop's corner is a multiple of.
    """

    seed: int
    rank: int
    strides: Mapping[str, int]
    mirror: bool
    size: tuple[int, int]
    crop: tuple[int, int] | None
    grid: int

    def __call__(
        self, images: Tensor, targets: Mapping[str, Tensor], *, position: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch flipped and cropped.

        Args:
            images: (B, 3, H, W).
            targets: level name to (B, C, H/stride, W/stride).
            position: of the global batch's first sample in the endless stream.
        """
        places = np.uint64(position + self.rank * len(images)) + np.arange(
            len(images), dtype=np.uint64
        )
        # Levels without a place in the image (soft labels of classes) stay as they are.
        maps = {"": images} | {n: v for n, v in targets.items() if self.strides.get(n)}
        if self.crop is not None:
            tops, lefts = (self._corners(places, axis) for axis in (0, 1))
            maps = {
                name: _cut(values, tops, lefts, size=self.crop, stride=self.strides.get(name, 1))
                for name, values in maps.items()
            }
        if self.mirror:
            coin = torch.from_numpy((_mix(places, self.seed, 2) >> np.uint64(63)) == 1)
            chosen = coin.to(images.device).view(-1, 1, 1, 1)
            maps = {name: torch.where(chosen, v.flip(-1), v) for name, v in maps.items()}
        return maps.pop(""), {**targets, **maps}

    def _corners(self, places: np.ndarray, axis: int) -> list[int]:
        """Draw where each sample's crop begins along an axis, in pixels."""
        assert self.crop is not None
        choices = (self.size[axis] - self.crop[axis]) // self.grid + 1
        drawn = (_mix(places, self.seed, axis) >> np.uint64(11)) % np.uint64(choices)
        return (drawn.astype(np.int64) * self.grid).tolist()


def open_pairs(training_set: TrainingSet, *, rank: int) -> Pairs | None:
    """Return what flips and crops a run's batches; None if nothing is asked for."""
    if not training_set.mirror and training_set.crop is None:
        return None
    strides = {level.name: level.stride for level in training_set.levels}
    return Pairs(
        seed=training_set.seed,
        rank=rank,
        strides=strides,
        mirror=training_set.mirror,
        size=training_set.source.image_size,
        crop=training_set.crop,
        grid=max([1, *strides.values()]),
    )


def cropped(level: Level, crop: tuple[int, int] | None) -> Level:
    """Return a level as it is after a crop of (H, W) pixels."""
    if crop is None or not level.stride:
        return level
    height, width = (side // level.stride for side in crop)
    return replace(level, shape=(level.shape[0], height, width))


def pair_problems(config: DataConfig, *, source: Source, levels: Sequence[Level]) -> list[Problem]:
    """Say why a dataset cannot be flipped or cropped as asked.

    Args:
        config: flip and crop.
        source: whose recipe names the teacher.
        levels: to be flipped and cropped with the images; none for methods without a teacher.
    """
    problems = []
    teacher = source.recipe.content.get("teacher")
    kind = str(teacher.get("kind", "unknown")) if isinstance(teacher, dict) else "unknown"
    if config.flip == "mirror" and levels and kind.partition(".")[0] not in MIRRORING:
        allowed = f"none: the cached features of a {kind!r} teacher do not mirror with the image"
        hint = "Record mirrored samples instead: `dreamshard encode --image.flip random`."
        problems.append(Problem("data.flip", "'mirror'", allowed, hint))
    if len(config.crop) == 2:
        grid = max([1, *(level.stride for level in levels)])  # labels of images have stride 0
        height, width = source.image_size
        fits = config.crop[0] <= height and config.crop[1] <= width
        if not fits or config.crop[0] % grid or config.crop[1] % grid:
            allowed = f"multiples of {grid} (the largest stride), at most {height} and {width}"
            problems.append(Problem("data.crop", str(config.crop), allowed))
    return problems


def _cut(
    values: Tensor, tops: list[int], lefts: list[int], *, size: tuple[int, int], stride: int
) -> Tensor:
    """Cut a window out of each map: corners and (H, W) in pixels, maps of that stride."""
    height, width = size[0] // stride, size[1] // stride
    parts = [
        row[:, top // stride : top // stride + height, left // stride : left // stride + width]
        for row, top, left in zip(values, tops, lefts, strict=True)
    ]
    order = torch.channels_last if _is_channels_last(values) else torch.contiguous_format
    return torch.stack(parts).contiguous(memory_format=order)


def _is_channels_last(values: Tensor) -> bool:
    return values.is_contiguous(memory_format=torch.channels_last)


def _mix(places: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """Hash positions to uniform uint64 (splitmix64's finaliser over seed, purpose and position)."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + purpose * 0xD1B54A32D192ED03) % 2**64)
    value = (places + start) * np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
