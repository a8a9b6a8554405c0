"""Which levels, timestep, size and student fit a teacher: a line of a table per family.

To add a family: a `Preset` in `FAMILIES` under its description's name. To add a student: its
strides in `STUDENTS`. Whatever is in neither table is looked up from the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.base import Scalar, TeacherConfig

SHIPPED = Path(__file__).resolve().parents[3] / "recipes" / "cifar10" / "teacher"
"""The small CIFAR-10 teacher, beside the packages in a checkout as in an installation."""
SHIPPED_SIZE = 32
LARGEST_FOR_SHIPPED = 96
"""Median short side up to which images are brought to the shipped teacher's 32 pixels."""
MOST_LEVELS = 4
PRETRAIN_SIZE = 64


@dataclass(frozen=True)
class Preset:
    """Say what to ask of a family's teacher.

    Args:
        timestep: where it records; None for families without timesteps.
        why: of that timestep.
        size: pixels where the network's own size is not told.
        settings: `teacher.settings` that it needs.
        part: which of the family's networks looks at images; "" where there is one.
        note: what is told of the choice, beside the family.
    """

    timestep: int | None
    why: str
    size: int = 0
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    part: str = ""
    note: str = ""


PIXELS = Preset(
    50, "little noise: best of those tried with pixel-space teachers (README, CIFAR-10)"
)
LATENT = Preset(150, "what DreamTeacher takes for general images (appendix, table 17)", size=512)
NO_STEPS = Preset(None, "")
PLAIN_NETWORK = "a network that looks: no noise, no timestep; a plain transformer has one stride"
DISCRIMINATOR = (
    "of its networks the discriminator looks at images; `dreamshard synthesize` records the "
    "generator's own"
)
FAMILIES: dict[str, Preset] = {
    "unet": PIXELS,
    "adm": PIXELS,
    "latent": LATENT,
    "dit": Preset(LATENT.timestep, LATENT.why, size=256),
    "sit": Preset(LATENT.timestep, LATENT.why, size=256),
    "sd3": Preset(LATENT.timestep, LATENT.why, size=1024),
    "flux": Preset(LATENT.timestep, LATENT.why, size=1024),
    "timm": Preset(None, "", note=PLAIN_NETWORK),
    "stylegan2.discriminator": Preset(None, "", part="discriminator", note=DISCRIMINATOR),
}
"""Family of a network's description -> what to ask of it."""
STUDENTS: dict[str, tuple[int, ...]] = {
    "resnet18": (2, 4, 8, 16, 32),
    "resnet50": (2, 4, 8, 16, 32),
    "convnext_tiny": (4, 8, 16, 32),
    "cifar_resnet18": (1, 2, 4, 8),
}
"""Student -> its maps' strides, so that the usual ones need no torch to be known."""
USUAL = ("resnet18", "cifar_resnet18")
"""Students tried in this order where none is asked for: timm's, then ours for stride 1."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Hold what was chosen: the teacher, what it records, the student that learns it.

    Args:
        kind, path: of the teacher.
        family: what it is.
        size: height and width given to it, in pixels.
        levels: strides to record, as `teacher.levels` takes them, coarsest first.
        timestep: where; None where the family has none.
        why: of the timestep.
        settings: of the teacher.
        part: which of the teacher's networks; "" where there is one.
        note: what is told of the choice; may be empty.
        student: name.
        strides: of the student's maps: the levels', and deeper ones so that all of it is trained.
    """

    kind: str
    path: str
    family: str
    size: tuple[int, int]
    levels: tuple[str, ...]
    timestep: int | None
    why: str
    settings: Mapping[str, Scalar]
    student: str
    strides: tuple[int, ...]
    part: str = ""
    note: str = ""


def choose(path: Path, *, size: int, student: str, kind: str = "") -> Choice:
    """Choose levels, timestep and student for a teacher that is there.

    Args:
        path: of its weights.
        size: pixels asked for; 0 for the teacher's own.
        student: name asked for; "" for one that fits.
        kind: of teacher; "" to tell from the path.

    Raises:
        ConfigError, TeacherError: no teacher there, a size it does not take, or a student without
            a stride of its levels.
    """
    from pipeline.teachers.diffusion.checkpoints import kind_of
    from pipeline.teachers.load import teacher_class

    kind = kind or kind_of(path)
    cls: Any = cast(Any, teacher_class(kind, mode="encode"))
    config = TeacherConfig(kind=kind, path=str(path))
    try:
        known, _, problems = cls.look_up(config, (size, size) if size else None)
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        raise error.under("teacher") from error
    preset = FAMILIES.get(known.family, NO_STEPS if known.num_timesteps is None else LATENT)
    strides = {int(a[1:]) for a in known.aliases if a[:1] == "s" and a[1:].isdecimal()}
    side = min(known.image_size)
    strides = {stride for stride in strides if side // stride >= 2}
    name, common = fit_student(student, strides=strides, side=side)
    timestep = preset.timestep
    if timestep is not None and known.num_timesteps is not None:
        timestep = min(timestep, known.num_timesteps - 1)
    return Choice(
        kind=kind,
        path=str(path),
        family=known.family,
        size=tuple(known.image_size),
        levels=tuple(f"s{stride}" for stride in sorted(common, reverse=True)),
        timestep=timestep,
        why=preset.why,
        settings=dict(preset.settings),
        student=name,
        strides=whole_strides(name, common, side=side),
        part=preset.part,
        note=preset.note,
    )


def fit_student(name: str, *, strides: set[int], side: int) -> tuple[str, tuple[int, ...]]:
    """Return a student and the strides that it shares with the teacher, ascending.

    Raises:
        ConfigError: it shares none.
    """
    for candidate in (name,) if name else USUAL:
        shared = sorted(strides & set(strides_of(candidate, side)))
        if shared:
            return candidate, tuple(shared[-MOST_LEVELS:])
    have = ", ".join(f"{n} ({', '.join(map(str, s))})" for n, s in STUDENTS.items())
    allowed = f"a student with a map of stride {', '.join(map(str, sorted(strides))) or 'none'}"
    raise ConfigError(Problem("student", name or "none that fits", allowed, f"Some have: {have}."))


def strides_of(name: str, side: int) -> tuple[int, ...]:
    """Return every stride that a student can give."""
    if name in STUDENTS:
        return STUDENTS[name]
    from distill.configs.student import StudentConfig
    from distill.students.student import student_strides

    return student_strides(StudentConfig(name=name), image_size=(side, side))


def whole_strides(name: str, levels: Sequence[int], *, side: int) -> tuple[int, ...]:
    """Return the levels' strides and the student's deeper ones, so that no part stays untrained."""
    deeper = [s for s in strides_of(name, side) if s > max(levels) and math.ceil(side / s) >= 1]
    return tuple(sorted({*levels, *deeper}))


def choice_to_pretrain(folder: str, *, size: int, student: str) -> Choice:
    """Return what fits the teacher that `dreamshard pretrain` makes: strides 1, 2, 4 and 8."""
    name, common = fit_student(student, strides={1, 2, 4, 8}, side=size)
    return Choice(
        kind="diffusers",
        path=folder,
        family="unet",
        size=(size, size),
        levels=tuple(f"s{stride}" for stride in sorted(common, reverse=True)),
        timestep=PIXELS.timestep,
        why=PIXELS.why,
        settings={},
        student=name,
        strides=whole_strides(name, common, side=size),
    )
