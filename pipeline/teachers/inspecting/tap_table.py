"""The table of a teacher's taps: what can be recorded, how large it is and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError
from pipeline.teachers.base import Scalar, TeacherConfig
from pipeline.teachers.diffusion.checkpoints import kind_of
from pipeline.teachers.load import teacher_class
from pipeline.teachers.recording.teacher import NetworkDescription, NetworkTeacher


@dataclass(frozen=True)
class TapRow:
    """One line of the table.

    Args:
        name: of the tap, as `teacher.levels` takes it.
        aliases: further names, such as `s8`.
        shape: (C, H, W) per image, or that of what is no map.
        stride: image pixels per cell; 0 for what is no map.
        megabytes: of one image's record.
        cost: share of the whole forward pass needed to reach it, 0 .. 1; None if not asked for.
        gflops: floating-point operations per image up to it, in 10^9; None likewise.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    stride: int
    megabytes: float
    cost: float | None = None
    gflops: float | None = None


def tap_table(
    path: str,
    *,
    kind: str = "",
    part: str = "",
    settings: Mapping[str, Scalar] | None = None,
    image_size: tuple[int, int] | None = None,
    costs: bool = False,
) -> tuple[NetworkDescription, list[TapRow]]:
    """List what a diffusion teacher or a generator can record, in the order it is computed.

    Args:
        path: folder or checkpoint, as `teacher.path`.
        kind: as `teacher.kind`; "" to tell from the path.
        part: as `teacher.part`.
        settings: as `teacher.settings`; guided-diffusion's flags among them.
        image_size: (height, width) in pixels; None for the network's own, as for generators.
        costs: also count operations; this reads the weights, but computes nothing.

    Raises:
        ConfigError, TeacherError: as when the teacher is loaded.
    """
    kind = kind or kind_of(Path(path))
    cls = cast(type[NetworkTeacher], teacher_class(kind, part=part))
    config = TeacherConfig(kind=kind, path=path, settings=dict(settings or {}))
    description, _, problems = cls.look_up(config, image_size)
    if problems:
        raise ConfigError(problems)
    flops = _count(description) if costs else {}
    rows = []
    for tap in description.taps:
        shape = tap.shape(description.image_size)
        spent = flops.get(tap.name)
        rows.append(
            TapRow(
                name=tap.name,
                aliases=tuple(a for a, name in description.aliases.items() if name == tap.name),
                shape=shape,
                stride=tap.stride,
                megabytes=math.prod(shape) * np.dtype(tap.dtype).itemsize / 1e6,
                cost=None if spent is None else spent / flops["output"],
                gflops=None if spent is None else spent / 1e9,
            )
        )
    return description, rows


def format_table(rows: list[TapRow]) -> str:
    """Format the table as text, one line per tap."""
    lines = [
        f"{'tap':<18} {'alias':<8} {'channels':>8} {'map':>9} {'stride':>6} {'MB':>8} {'cost':>6}"
    ]
    for row in rows:
        channels, cells = row.shape[0], "x".join(map(str, row.shape[1:])) or "-"
        cost = "" if row.cost is None else f"{row.cost:.0%}"
        lines.append(
            f"{row.name:<18} {','.join(row.aliases):<8} {channels:>8} {cells:>9} "
            f"{row.stride:>6} {row.megabytes:>8.3f} {cost:>6}"
        )
    return "\n".join(lines)


def _count(description: NetworkDescription) -> dict[str, int]:
    """Count operations per image on the meta device, where nothing is computed."""
    import torch

    network = description.read(torch.float32)
    torch.nn.Module.to(network.module, device="meta")
    told = description.example("meta")
    with torch.inference_mode():
        return description.costs(network, told)
