"""Distillation methods: one file per paper, each a module from a batch to its loss terms.

A method is built as `Method(settings, student=..., levels=..., image_size=..., seed=...)`. It keeps
the backbone as `student`, and `forward(images, targets)` returns scalar loss terms by name, of
which "loss" is minimised and all are reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.config import TrainConfig
    from distill.data import TrainingSet
    from distill.methods.base import Method

METHODS = {"dreamteacher": "distill.methods.dreamteacher:DreamTeacher"}
"""Name, also of the section of its settings -> `module:Class`; a path of your own works too."""


def build_method(config: TrainConfig, *, training_set: TrainingSet) -> Method:
    """Build the student that the levels ask for, and the method around it.

    Raises:
        ConfigError: a student without the levels' strides or resolutions, listing both sides.
    """
    from distill.students import build_student

    try:
        method = load_part(config.method, table=METHODS)
    except (ImportError, AttributeError) as error:
        got = f"{config.method!r} ({error})"
        raise ConfigError(Problem("method", got, "a class that can be imported")) from error
    return method(
        config.method_settings(),
        student=build_student(config.student, strides=training_set.strides, seed=config.seed),
        levels=training_set.levels,
        image_size=training_set.dataset.image_size,
        seed=config.seed + 1,  # not the numbers that the student's weights were drawn from
    )
