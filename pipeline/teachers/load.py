"""The table of teacher families, and the one way to describe or load a teacher."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
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
    "bigbigan": "pipeline.teachers.gan.bigbigan.family:BigBiGANTeacher",
    "ssgan": "pipeline.teachers.gan.ssgan.family:SSGANTeacher",
    "stylegan2": "pipeline.teachers.gan.stylegan2.family:StyleGAN2Teacher",
    "encoder": "pipeline.teachers.posthoc.teacher:EncoderTeacher",
    "timm": "pipeline.teachers.timm.teacher:TimmTeacher",
    "student": "pipeline.teachers.timm.student:StudentTeacher",
}
"""Short name -> `module:Class`. Modules are imported only when a config names them."""
WITH_WEIGHTS = frozenset(TEACHERS) - {"noise", "timm"}
"""Families that are nothing without their files; timm says itself what it can do without any."""
PARTS: dict[str, dict[str, str]] = {
    "biggan": {
        "discriminator": "pipeline.teachers.gan.biggan.discriminator:BigGANDiscriminatorTeacher",
    },
    "bigbigan": {"encoder": "pipeline.teachers.gan.bigbigan.encoder:BigBiGANEncoderTeacher"},
    "ssgan": {
        "discriminator": "pipeline.teachers.gan.ssgan.discriminator:SSGANDiscriminatorTeacher",
    },
    "stylegan2": {
        "discriminator": "pipeline.teachers.gan.stylegan2.family:StyleGAN2DiscriminatorTeacher",
    },
}
"""Short name -> part -> `module:Class`, for families of several networks; the class of `TEACHERS`
is their generator."""


def parts_of(kind: str) -> dict[str, TeacherClass]:
    """Return the networks of a family by part, the usual one first; "" for a family of one."""
    first = _find(kind, kind, TEACHERS)
    if kind not in PARTS:
        return {"": first}
    others = PARTS[kind]
    return {"generator": first, **{part: _find(kind, part, others) for part in others}}


def teacher_class(kind: str, *, mode: Mode | None = None, part: str = "") -> TeacherClass:
    """Find the class behind a request.

    Args:
        kind: a short name of `TEACHERS` or `module:Class`.
        mode: what it has to do; None for whatever it can.
        part: which network of the family; "" for the first that can do it.

    Raises:
        ConfigError: there is none; keys as in `TeacherConfig`.
    """
    known = parts_of(kind)
    if "" in known:
        chosen = known[""]
        if part and kind in TEACHERS:
            raise ConfigError(Problem("part", part, f"nothing: {kind} is one network"))
    elif part and part not in known:
        raise ConfigError(Problem("part", part, f"{' | '.join(known)} for {kind}"))
    else:
        able = (cls for cls in known.values() if mode is None or mode in cls.modes)
        chosen = known[part] if part else next(able, known["generator"])
    if mode is not None and mode not in chosen.modes:
        got = f"{kind} ({part}) for {mode}" if part else f"{kind} for {mode}"
        key, allowed = ("part" if part else "kind"), f"{' | '.join(chosen.modes)} for this teacher"
        raise ConfigError(Problem(key, got, allowed))
    return chosen


def _find(kind: str, name: str, table: Mapping[str, str]) -> TeacherClass:
    target = table.get(name, kind)
    if not trusted.is_import_path(target):
        close = difflib.get_close_matches(kind, TEACHERS, n=1)
        hint = f"Did you mean {close[0]}?" if close else "Or give an import path module:Class."
        raise ConfigError(Problem("kind", kind, " | ".join(TEACHERS) + " | module:Class", hint))
    try:
        return cast(TeacherClass, trusted.find(name, table=table))
    except (ImportError, AttributeError) as error:
        what = f"{target} ({error})"
        hint = "Check the spelling and that the module is on PYTHONPATH."
        if kind in TEACHERS:
            hint = "Install what it needs: pip install dreamshard."
        raise ConfigError(Problem("kind", what, "a class that can be imported", hint)) from error


def describe_teacher(
    config: TeacherConfig, *, mode: Mode, image_size: tuple[int, int] | None = None
) -> TeacherSpec:
    """Answer what a teacher would record, before anything is loaded or spent.

    Raises:
        ConfigError: every problem of the request, keys starting with `teacher.`.
    """
    try:
        cls = teacher_class(config.kind, mode=mode, part=config.part)
        if not config.path and config.kind in WITH_WEIGHTS:
            allowed = f"the folder, file or URL of a {config.kind} teacher's weights"
            raise ConfigError(Problem("path", "nothing", allowed))
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
    build = teacher_class(config.kind, mode=mode, part=config.part)
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
