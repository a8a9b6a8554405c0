"""`dreamshard.load_teacher(path, **settings)`: a teacher in one line, for notebooks and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.base import Mode, Scalar, Teacher, TeacherConfig
from pipeline.teachers.diffusion.request import NO_CLASS
from pipeline.teachers.load import teacher_class
from pipeline.teachers.recording.teacher import NetworkTeacher
from storage.schema import Pins

USUAL_STRIDES = ("s4", "s8", "s16", "s32")
USUAL_TIMESTEP = 150
"""DreamTeacher's noise level for general images (appendix, table 17)."""


def open_teacher(
    path: str | Path,
    *,
    kind: str = "diffusers",
    part: str = "",
    levels: Sequence[str] | None = None,
    timesteps: Sequence[int] | None = None,
    draws: int = 1,
    pool: str = "none",
    mode: Mode | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    micro_batch: int = 16,
    compute_dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    settings: Mapping[str, Scalar] | None = None,
    **further: Scalar,
) -> Teacher:
    """Load a teacher from a folder or a checkpoint; for the rest see `dreamshard.load_teacher`.

    Args:
        part: which network of a family that has several; "" for the usual one of the mode.
        draws: independent noise draws per image, each a level of its own.
        pool: none or gap.
        compute_dtype: float32, bfloat16 or float16.
        threads: CPU threads; 0 leaves torch's number alone.
        settings: as `teacher.settings`; some have the name of an argument here (`image_size`).
            Without `class_label`, a class-conditional diffusion network gets no class, and a
            generator draws one per sample.
        further: more of them.

    Returns:
        a teacher (`levels`, `image_size`, `fingerprint`, `encode`, `synthesize`); diffusion
        teachers also have `schedule`, `denoise` and `activations`, for looking inside.

    Raises:
        ConfigError: a setting is unknown, contradicts the weights, or is needed and missing.
        TeacherError: the files are damaged, hostile or of no known network.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    cls = teacher_class(kind, part=part)
    mode = mode or cls.modes[0]
    cls = teacher_class(kind, mode=mode, part=part)
    config = TeacherConfig(
        kind=kind,
        path=str(path),
        part=part,  # type: ignore[arg-type]
        draws=draws,
        pool=pool,  # type: ignore[arg-type]
        compute_dtype=compute_dtype,  # type: ignore[arg-type]
        settings={**(settings or {}), **further},
    )
    if "seed" in getattr(cls, "SETTINGS", {}):  # of random weights, where they are asked for
        config.settings["seed"] = seed
    if isinstance(cls, type) and issubclass(cls, NetworkTeacher):
        _fill_in(config, cast(type[NetworkTeacher], cls), size, mode)
    config.levels = config.levels if levels is None else list(levels)
    config.timesteps = config.timesteps if timesteps is None else list(timesteps)
    _check_choices(config, device)
    pins = Pins(
        micro_batch=micro_batch, compute_dtype=compute_dtype, device=device, threads=threads
    )
    return cls(config, mode=mode, image_size=size, seed=seed, pins=pins)


def _fill_in(
    config: TeacherConfig, cls: type[NetworkTeacher], size: tuple[int, int] | None, mode: Mode
) -> None:
    """Choose levels, timesteps and class for a request that names none, by what the path holds."""
    try:
        known = cls.look_up(config, size)[0]
    except ConfigError:  # told with every other problem, when it is loaded
        return
    config.levels = [name for name in USUAL_STRIDES if name in known.aliases] or [*known.aliases]
    if known.num_timesteps is not None:
        config.timesteps = [min(USUAL_TIMESTEP, known.num_timesteps - 1)]
        if known.classes and mode == "encode":
            # The pipeline asks for a label; looking inside, labels are given to each call.
            config.settings.setdefault("class_label", NO_CLASS)


def _check_choices(config: TeacherConfig, device: str) -> None:
    problems: list[Problem | str] = list(config.problems())
    for name, value, allowed in (
        ("pool", config.pool, ("none", "gap")),
        ("compute_dtype", config.compute_dtype, ("float32", "bfloat16", "float16")),
        ("device", device.partition(":")[0], ("cpu", "cuda")),
    ):
        if value not in allowed:
            problems.append(Problem(name, str(value), " | ".join(allowed)))
    if problems:
        raise ConfigError(problems)
