"""`dreamshard inspect teacher PATH --choose`: read a teacher everywhere, name the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dreamshard.config.yaml12 import dump_yaml
from dreamshard.errors import ConfigError, Problem
from dreamshard.progress import Progress
from pipeline.teachers.base import Scalar
from pipeline.teachers.diffusion.checkpoints import kind_of
from pipeline.teachers.diffusion.teacher import DiffusionTeacher
from pipeline.teachers.door import open_teacher
from pipeline.teachers.inspecting.choose import (
    Curves,
    candidate_taps,
    candidate_timesteps,
    format_curves,
    number_of_turns,
    read_curves,
)
from pipeline.teachers.recording.teacher import NetworkDescription

BATCH = 32
"""Images of a pass (count)."""
FEWEST = 32
"""Images that say anything (count)."""


def check(path: str, *, kind: str, images: str) -> None:
    """Refuse what cannot be chosen from before anything is read.

    Raises: ConfigError for a teacher without timesteps, or no images.
    """
    kind = kind or kind_of(Path(path))
    if kind != "diffusers":
        hint = "It is read at no timestep: leave --choose out, and take --samples 8 to look inside."
        raise ConfigError(
            Problem("choose", f"a teacher of kind {kind}", "a diffusion teacher", hint)
        )
    if not images:
        hint = "Such as --images FOLDER, a Parquet file, or digits; labels are used if it has them."
        raise ConfigError(Problem("images", "nothing", "images to look at, with --choose", hint))


def choose(
    path: str,
    known: NetworkDescription,
    images: np.ndarray,
    labels: np.ndarray | None,
    *,
    levels: Sequence[str] | None,
    timesteps: Sequence[int] | None,
    settings: Mapping[str, Scalar],
    image_size: tuple[int, int] | None,
) -> str:
    """Look at images at every candidate tap and timestep; return what there is to say.

    Args:
        path: of the teacher.
        known: its description.
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), or None.
        levels, timesteps: candidates; None for the usual ones.
        settings: as `teacher.settings`.
        image_size: (H, W) asked for, or None.

    Raises:
        ConfigError: too few images, or a network without timesteps.
    """
    import torch

    steps = known.num_timesteps
    if steps is None:
        hint = "Its clean features are read as they are: leave --choose out."
        raise ConfigError(Problem("choose", "a teacher without timesteps", "one with", hint))
    if len(images) < FEWEST:
        raise ConfigError(Problem("samples", str(len(images)), f"{FEWEST} images or more"))
    teacher = cast(
        DiffusionTeacher,
        open_teacher(
            path,
            levels=list(levels or candidate_taps(known)),
            timesteps=list(timesteps or candidate_timesteps(steps)),
            mode="encode",
            image_size=image_size,
            micro_batch=BATCH,
            device="cuda" if torch.cuda.is_available() else "cpu",
            threads=0,
            seed=int(cast(int, settings.get("seed", 0))),
            settings={name: value for name, value in settings.items() if name != "seed"},
        ),
    )
    total = len(images) * number_of_turns(images, labels)
    with Progress("choose", total=total) as progress:
        curves = read_curves(teacher, images, labels, batch=BATCH, progress=progress.update)
    return "\n".join([format_curves(curves), *_conclusion(path, curves, len(images))])


def _conclusion(path: str, curves: Curves, count: int) -> list[str]:
    tap, timestep = curves.best()
    by = "the linear probe" if curves.accuracy else "how well turned images are told apart"
    told = [f"best by {by} on {count} images: {tap} at t = {timestep}"]
    if curves.memorised():
        told.append(
            f"warning: {tap} gets worse with every level of noise, from the first on. Networks "
            "that generalise have their best in between: this one may have memorised its images. "
            "Give images it has not seen, or train on more of them."
        )
    section = {"kind": "diffusers", "path": path, "levels": [tap], "timesteps": [timestep]}
    return [*told, "", dump_yaml({"teacher": section}).rstrip()]
