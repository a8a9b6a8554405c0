"""Build the method that a run names, and the student that its levels ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill.configs.methods import METHODS, SupervisedConfig
from distill.students.student import build_student, nearest_strides, student_strides
from distill.students.trial import check_takes
from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.data.sets import TrainingSet
    from distill.methods.base import Method


def method_class(name: str) -> type[Method]:
    """Import a method's class: of the table, or module:Class.

    Raises:
        ConfigError: a path that does not lead to one.
    """
    try:
        return load_part(name, table=METHODS)
    except (ImportError, AttributeError) as error:
        got = f"{name!r} ({error})"
        raise ConfigError(Problem("method", got, "a class that can be imported")) from error


def build_method(
    method: type[Method],
    settings: Any,
    *,
    student: StudentConfig,
    training_set: TrainingSet,
    seed: int,
) -> Method:
    """Build the student that the levels ask for, and the method around it.

    Args:
        method: what to build.
        settings: its own section; None for a method without one.
        student: which backbone.
        training_set: what is trained on.
        seed: of the student's initial weights; the method's own come from the number after it.

    Raises:
        ConfigError: a student without the levels' strides or resolutions, listing both sides; one
            that does not take the images.
    """
    if isinstance(settings, SupervisedConfig) and not settings.classes:
        settings = replace(settings, classes=training_set.num_classes)
    strides: Sequence[int] = student.strides or _strides(
        student, training_set, bridged=getattr(settings, "bridge", "none") != "none"
    )
    image_size = training_set.image_size
    network = build_student(student, strides=strides, seed=seed, image_size=image_size)
    check_takes(network, name=student.name, image_size=image_size)
    return method(
        settings,
        student=network,
        levels=training_set.levels,
        image_size=image_size,
        seed=seed + 1,
    )


def _strides(
    student: StudentConfig, training_set: TrainingSet, *, bridged: bool
) -> tuple[int, ...]:
    """Choose the strides of a student's maps: those of the levels.

    A method that bridges resolutions gets the student's nearest strides instead; without feature
    maps, all that the student has from the finest soft label on; for a method without a teacher,
    the deepest.
    """
    levels = training_set.strides
    if levels and not bridged:
        return levels
    offered = student_strides(student, image_size=training_set.image_size)
    if not training_set.needs.kinds:
        return offered[-1:]
    if levels:
        return tuple(sorted(set(nearest_strides(levels, offered=offered))))
    finest = training_set.finest
    return tuple(stride for stride in offered if stride >= finest) or offered[-1:]
