"""Plan without the teacher or the images: what a recipe says of them stands in for them.

`dreamshard plan` prints samples, shards and bytes before weights and data are fetched. A recipe
then says itself how many channels its levels have and how many images there are:

    assume:
      channels: {s32: 1024, s16: 1024, s8: 512, s4: 512}
      samples: 1281167

Encode and synthesize do not look at it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, Problem
from pipeline.request.config import EncodeConfig, PipelineConfig
from storage.schema import Level

if TYPE_CHECKING:
    from pipeline.images.inputs import Input
    from pipeline.teachers.base import TeacherSpec


class AssumedImages:
    """Stand in for the images of a source that is not there; only their number is known."""

    mode = "encode"
    has_masks = False

    def __init__(self, config: EncodeConfig) -> None:
        self.num_samples = config.assume.samples * config.image.views
        self.has_labels = config.assume.labels

    def source(self) -> dict[str, object]:
        """Say that nothing is known."""
        return {"kind": "assumed"}

    def image_rule(self) -> dict[str, object]:
        """Say nothing of how images are prepared."""
        return {}

    def prefix_digest(self, count: int) -> str:
        """Return a digest that no dataset has."""
        return f"assumed-{count}"


def teacher_is_missing(config: PipelineConfig) -> bool:
    """Tell whether the plan has to go by `assume.channels`."""
    paths = [config.teacher.path, config.teacher.interpreter]
    return bool(config.assume.channels) and any(p and not _is_there(p) for p in paths)


def images_are_missing(config: PipelineConfig) -> bool:
    """Tell whether the plan has to go by `assume.samples`."""
    source = getattr(config, "source", None)
    if source is None or not config.assume.samples:
        return False
    return bool(source.path) and not _is_there(source.path)


def _is_there(path: str) -> bool:
    return "://" in path or "*" in path or Path(path).exists()


def assumed_spec(config: PipelineConfig) -> TeacherSpec:
    """Describe a teacher as `assume` does.

    Raises:
        ConfigError: levels that are no strides, that it names no channels of, or no image size.
    """
    from pipeline.teachers.base import TeacherSpec

    image = getattr(config, "image", None)
    side = config.assume.image_size
    size = (image.shape if image is not None else None) or (side, side)
    if not all(size):
        raise ConfigError(
            Problem("assume.image_size", "0", "pixels, as there is no teacher to ask")
        )
    path = config.teacher.path if not _is_there(config.teacher.path) else config.teacher.interpreter
    note = f"{path} is not there: its levels are those that `assume` names"
    return TeacherSpec(
        levels=_levels(config, size),
        image_size=size,
        fingerprint={"kind": "assumed"},
        mode_settings={},
        has_labels=config.assume.labels,
        notes=(note,),
    )


def _levels(config: PipelineConfig, size: tuple[int, int]) -> tuple[Level, ...]:
    from pipeline.teachers.request import expand_levels

    taps: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, channels in config.assume.channels.items():
        if match := re.fullmatch(r"s([1-9]\d*)", name):
            stride = int(match[1])
            taps[name] = ((channels, size[0] // stride, size[1] // stride), stride)
    teacher = config.teacher
    soft = replace(teacher, levels=teacher.soft_labels, timesteps=[], pool="none")
    steps = max(teacher.timesteps, default=0) + 1  # no schedule to check them against
    try:
        features = expand_levels(teacher, taps=taps, aliases={}, num_timesteps=steps)
        labels = expand_levels(soft, taps=taps, aliases={}, num_timesteps=None)
    except ConfigError as error:
        raise error.under("teacher") from error
    return (*features, *(replace(level, kind="soft_label") for level in labels))


def assumed_images(config: EncodeConfig) -> Input:
    """Stand in for the images."""
    images: object = AssumedImages(config)
    return images  # type: ignore[return-value]
