"""Build the method that a run names, and the student that its levels ask for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from distill.configs.methods import METHODS
from distill.data.open import open_training_set
from distill.students.student import build_student, nearest_strides, student_strides
from distill.students.trial import check_takes
from distill.tables import load_part
from dreamshard.errors import ConfigError, Problem

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.configs.train import DataConfig
    from distill.data.sets import Needs, TrainingSet
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


def open_for(method: type[Method], settings: Any, *, data: DataConfig, seed: int) -> TrainingSet:
    """Open what a method is trained on, and refuse what does not fit it; see `open_training_set`.

    Args:
        method, settings: as `build_method` has them.
        data: which dataset.
        seed: of the run.
    """
    settle = partial(method.settled, settings)
    return open_training_set(data, needs=method.needs(settings), seed=seed, settle=settle)


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
    settings = method.settled(settings, training_set)
    strides: Sequence[int] = student.strides or _strides(
        student, training_set, needs=method.needs(settings)
    )
    image_size = training_set.image_size
    network = build_student(student, strides=strides, seed=seed, image_size=image_size)
    check_takes(network, name=student.name, image_size=image_size)
    built = method(
        settings,
        student=network,
        levels=training_set.levels,
        image_size=image_size,
        seed=seed + 1,
    )
    built.prepare(training_set)
    return built


def _strides(student: StudentConfig, training_set: TrainingSet, *, needs: Needs) -> tuple[int, ...]:
    """Choose the strides of a student's maps: those of the levels.

    A method that bridges resolutions gets the student's nearest strides instead; without feature
    maps, all that the student has from the finest soft label on. What learns from the whole image
    gets the deepest, too.
    """
    levels = training_set.strides if "feature" in needs.kinds else ()
    if levels and not needs.bridged and not needs.deepest:
        return levels
    offered = student_strides(student, image_size=training_set.image_size)
    chosen = set(offered[-1:]) if needs.deepest else set()
    if levels:
        chosen |= set(nearest_strides(levels, offered=offered) if needs.bridged else levels)
    elif "soft_label" in needs.kinds:
        finest = training_set.finest
        chosen |= {stride for stride in offered if stride >= finest}
    return tuple(sorted(chosen)) or offered[-1:]
