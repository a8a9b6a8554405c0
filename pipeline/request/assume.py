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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dreamshard.errors import ConfigError, Problem
from pipeline.images.inputs import LatentInput
from pipeline.request.config import AssumeConfig, DatasetRequest
from pipeline.teachers.base import Mode, TeacherConfig, TeacherSpec
from pipeline.teachers.request import Recordable, expand_levels
from storage.schema import Level


class AssumedImages(LatentInput):
    """Stand in for the images of a source that is not there; only their number is known."""

    mode: Mode = "encode"

    def __init__(self, assume: AssumeConfig, *, image_size: tuple[int, int], views: int) -> None:
        super().__init__(image_size=image_size, has_labels=assume.labels)
        self.num_samples: int | None = assume.samples * views

    def source(self) -> dict[str, object]:
        """Say that nothing is known."""
        return {"kind": "assumed"}

    def image_rule(self) -> dict[str, object]:
        """Say nothing of how images are prepared."""
        return {}

    def prefix_digest(self, count: int) -> str:
        """Return a digest that no dataset has."""
        return f"assumed-{count}"


def teacher_is_missing(request: DatasetRequest, assume: AssumeConfig) -> bool:
    """Tell whether the plan has to go by `assume.channels`."""
    paths = [request.teacher.path, request.teacher.interpreter]
    return bool(assume.channels) and any(p and not _is_there(p) for p in paths)


def images_are_missing(request: DatasetRequest, assume: AssumeConfig) -> bool:
    """Tell whether the plan has to go by `assume.samples`."""
    path = request.source.path if request.source is not None else ""
    return bool(assume.samples and path) and not _is_there(path)


def _is_there(path: str) -> bool:
    return "://" in path or "*" in path or Path(path).exists()


def assumed_spec(request: DatasetRequest, assume: AssumeConfig) -> TeacherSpec:
    """Describe a teacher as `assume` does.

    Raises:
        ConfigError: levels that are no strides, that it names no channels of, or no image size.
    """
    size = request.image.shape or (assume.image_size, assume.image_size)
    if not all(size):
        raise ConfigError(
            Problem("assume.image_size", "0", "pixels, as there is no teacher to ask")
        )
    teacher = request.teacher
    path = teacher.path if not _is_there(teacher.path) else teacher.interpreter
    note = f"{path} is not there: its levels are those that `assume` names"
    return TeacherSpec(
        levels=_levels(teacher, assume.channels, size),
        image_size=size,
        fingerprint={"kind": "assumed"},
        mode_settings={},
        has_labels=assume.labels,
        notes=(note,),
    )


def _levels(
    teacher: TeacherConfig, channels: Mapping[str, int], size: tuple[int, int]
) -> tuple[Level, ...]:
    taps: dict[str, Recordable] = {}
    for name, count in channels.items():
        if match := re.fullmatch(r"s([1-9]\d*)", name):
            stride = int(match[1])
            taps[name] = Recordable((count, size[0] // stride, size[1] // stride), stride)
    soft = replace(teacher, levels=teacher.soft_labels, timesteps=[], pool="none")
    steps = max(teacher.timesteps, default=0) + 1  # no schedule to check them against
    features, unknown = expand_levels(teacher, taps=taps, aliases={}, num_timesteps=steps)
    labels, wrong = expand_levels(soft, taps=taps, aliases={}, num_timesteps=None)
    if unknown or wrong:
        raise ConfigError([*unknown, *wrong]).under("teacher")
    return (*features, *(replace(level, kind="soft_label") for level in labels))
