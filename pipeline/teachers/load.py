"""The table of teacher families, and the one way to describe or load a teacher."""

from __future__ import annotations

import difflib
import functools
from typing import cast

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import trusted
from pipeline.teachers.base import Mode, Teacher, TeacherClass, TeacherConfig, TeacherSpec
from pipeline.teachers.interpreted.teacher import InterpretedTeacher, attach
from storage.schema import Pins

TEACHERS: dict[str, str] = {
    "noise": "pipeline.teachers.noise:NoiseTeacher",
    "diffusers": "pipeline.teachers.diffusion.teacher:DiffusionTeacher",
    "biggan": "pipeline.teachers.gan.biggan.family:BigGANTeacher",
}
"""Short name -> `module:Class`. Modules are imported only when a config names them."""


def teacher_class(kind: str) -> TeacherClass:
    """Find the class behind a `kind`: a short name of `TEACHERS` or `module:Class`."""
    target = TEACHERS.get(kind, kind)
    if not trusted.is_import_path(target):
        close = difflib.get_close_matches(kind, TEACHERS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Or give an import path module:Class."
        raise ConfigError(Problem("kind", kind, " | ".join(TEACHERS) + " | module:Class", hint))
    try:
        return cast(TeacherClass, trusted.find(kind, table=TEACHERS))
    except (ImportError, AttributeError) as error:
        what = f"{target} ({error})"
        hint = "Check the spelling and that the module is on PYTHONPATH."
        if kind in TEACHERS:
            hint = "Install what it needs: pip install 'dreamshard[pipeline]'."
        raise ConfigError(Problem("kind", what, "a class that can be imported", hint)) from error


def describe_teacher(
    config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None = None
) -> TeacherSpec:
    """Answer what a teacher would record, before anything is loaded or spent.

    Raises:
        ConfigError: every problem of the request, keys starting with `teacher.`.
    """
    try:
        cls = teacher_class(config.kind)
        if mode not in cls.modes:
            allowed = f"{' | '.join(cls.modes)} for this teacher"
            raise ConfigError(Problem("kind", f"{config.kind} for {mode}", allowed))
        if config.interpreter:
            return attach(cls, config, mode=mode, image_size=image_size).spec
        return cls.describe(config, mode=mode, image_size=image_size)
    except ConfigError as error:
        raise error.under("teacher") from error


def load_teacher(
    config: TeacherConfig,
    *,
    mode: Mode,
    seed: int,
    pins: Pins,
    image_size: tuple[int, int] | None = None,
) -> Teacher:
    """Load a teacher's weights, ready to run micro-batches of `pins.micro_batch` rows.

    Raises:
        ConfigError: as `describe_teacher`.
        TeacherError: if its files are missing, damaged or do not fit the architecture.
    """
    spec = describe_teacher(config, mode=mode, image_size=image_size)
    build = teacher_class(config.kind)
    if config.interpreter:
        build = functools.partial(InterpretedTeacher, build)
    teacher = build(config, mode=mode, image_size=image_size, seed=seed, pins=pins)
    if teacher.levels != spec.levels or teacher.fingerprint != spec.fingerprint:
        raise TeacherError(
            f"teacher.path: {config.path or config.kind} is not what was described before loading "
            f"(levels {[level.name for level in teacher.levels]}, expected "
            f"{[level.name for level in spec.levels]}). Did its files change during the run?"
        )
    return teacher
