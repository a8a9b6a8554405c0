"""Distillation methods: one file per paper, each a module from a batch to its loss terms.

A method is built as `Method(settings, student=..., levels=..., image_size=..., seed=...)`. It keeps
the backbone as `student`, and `forward(images, targets)` returns scalar loss terms by name, of
which "loss" is minimised and all are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill.configs.methods import METHODS, SupervisedConfig
from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.train import TrainConfig
    from distill.data.open import TrainingSet
    from distill.methods.base import Method


def build_method(config: TrainConfig, *, training_set: TrainingSet) -> Method:
    """Build the student that the levels ask for, and the method around it.

    Raises:
        ConfigError: a student without the levels' strides or resolutions, listing both sides.
    """
    from distill.students.student import build_student

    method: Any = method_class(config)  # built as the module's text says
    settings = config.method_settings()
    if isinstance(settings, SupervisedConfig) and not settings.classes:
        settings = replace(settings, classes=training_set.num_classes)
    image_size = training_set.image_size
    return method(
        settings,
        student=build_student(
            config.student,
            strides=choose_strides(
                config,
                levels=training_set.strides,
                image_size=image_size,
                finest=training_set.finest,
            ),
            seed=config.seed,
            image_size=image_size,
        ),
        levels=training_set.levels,
        image_size=image_size,
        seed=config.seed + 1,  # not the numbers that the student's weights were drawn from
    )


def method_class(config: TrainConfig) -> type[Method]:
    """Import the class of a run's method.

    Raises:
        ConfigError: a path that does not lead to one.
    """
    try:
        return load_part(config.method, table=METHODS)
    except (ImportError, AttributeError) as error:
        got = f"{config.method!r} ({error})"
        raise ConfigError(Problem("method", got, "a class that can be imported")) from error


def choose_strides(
    config: TrainConfig, *, levels: Sequence[int], image_size: tuple[int, int], finest: int = 0
) -> tuple[int, ...]:
    """Choose the strides of the student's maps: as configured, else those of the levels.

    A method that bridges resolutions gets the student's nearest strides instead of the levels';
    without levels, all that the student has from a finest one on; for a method without a teacher,
    the deepest.

    Args:
        config: of the run.
        levels: strides of the levels, ascending.
        image_size: (H, W) in pixels.
        finest: finest stride to take where there are no levels; 0: any.

    Raises:
        ConfigError: unknown student.
    """
    from distill.students.student import nearest_strides, student_strides

    if config.student.strides:
        return tuple(config.student.strides)
    if levels and getattr(config.method_settings(), "bridge", "none") == "none":
        return tuple(levels)
    offered = student_strides(config.student, image_size=image_size)
    if "levels" not in method_class(config).needs:
        return offered[-1:]
    if levels:
        return tuple(sorted(set(nearest_strides(levels, offered=offered))))
    return tuple(stride for stride in offered if stride >= finest) or offered[-1:]
