"""One step without numbers before the first: what does not fit is said now and not at the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.sets import NUMBER, REAL
from distill.methods.build import build_method, method_class
from distill.students.backbones import is_ours
from distill.students.student import student_strides
from distill.students.trial import (
    REFUSALS,
    call_without_values,
    check_kept,
    reason_of,
    untrained_share,
    without_values,
)
from dreamshard.errors import ConfigError, DreamshardError, Problem

if TYPE_CHECKING:
    from distill.configs.student import StudentConfig
    from distill.configs.train import MethodConfig
    from distill.data.sets import TrainingSet
    from distill.methods.base import Method

MOST = 2  # samples of a rehearsal: batch norm of one value per channel is an error of one alone
MUCH, LITTLE = 0.5, 0.1
"""Shares of a network that stay untrained: from where on it is said, and what mends it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say how a method was built, and of how many samples a step is.

    Args:
        method: its name.
        settings: its section.
        student: how the student was built.
        seed: of the run.
        batch_size: samples per step, over all ranks.
        parts: forward passes per step.
    """

    method: str
    settings: MethodConfig | None
    student: StudentConfig
    seed: int
    batch_size: int
    parts: int = 1


def rehearse(method: Method, *, plan: Plan, training_set: TrainingSet, ranks: int) -> list[str]:
    """Take a method through a step, and leave out what gets no gradient in it.

    Such parameters (PiT's last norm, branches of a pyramid that no loss looks at) would stop
    several processes at their second step, and weight decay would shrink them.

    Args:
        method: on the CPU; its parameters without gradient are frozen.
        plan: how it was built, and of how many samples a step is.
        training_set: what it will be trained on.
        ranks: processes that share a batch.

    Returns:
        Lines that tell what is left out or untrained, and what would train it.

    Raises:
        ConfigError: a student that could not be kept, or images or a batch that it or the method
            cannot take.
    """
    student, size = plan.student, training_set.image_size
    check_kept(method.student, config=student, image_size=size)
    if student.onnx:
        _check_onnx(method, size=size)
    if method.over_batch and plan.batch_size // plan.parts < MOST:
        several = f" in {plan.parts} parts (accumulate)" if plan.parts > 1 else ""
        allowed = f"two samples or more per forward pass, for {method.over_batch} over them"
        raise ConfigError(Problem("batch_size", f"{plan.batch_size}{several}", allowed))
    count = min(MOST, plan.batch_size // plan.parts // ranks)
    idle = gradientless(method, plan=plan, training_set=training_set, count=count)
    for name, parameter in method.named_parameters():
        if name in idle:
            parameter.requires_grad_(False)
    return _lines(method, idle, plan=plan, training_set=training_set)


def gradientless(method: Method, *, plan: Plan, training_set: TrainingSet, count: int) -> list[str]:
    """Name the trainable parameters that a step of `count` samples leaves without gradient.

    Raises:
        ConfigError: a batch that the method cannot take, or a loss that reaches nothing.
    """
    mode = method.training
    method.train()
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                idle = _step(method, training_set, count=count, device="meta")
            except Exception:  # also that of a method that computes with values
                twin = copy.deepcopy(method)
                idle = _step(twin, training_set, count=count, device="cpu")
    except DreamshardError:
        raise
    except (*REFUSALS, KeyError) as error:
        raise ConfigError(_refusal(error, plan=plan, count=count)) from error
    finally:
        method.train(mode)
    trained = [n for n, p in method.student.named_parameters() if p.requires_grad]
    if trained and {f"student.{name}" for name in trained} <= set(idle):
        got = f"{plan.method!r}, whose loss reaches no weight of the student"
        raise ConfigError(Problem("method", got, "a method that trains its student"))
    return idle


def example(
    training_set: TrainingSet, *, count: int, device: torch.device | str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return images and targets as a forward pass of `count` samples gets them: zeros."""
    images = torch.zeros(count, 3, *training_set.image_size, device=device)
    targets = {
        level.name: torch.zeros(count, *level.shape, device=device) for level in training_set.levels
    }
    if training_set.needs.labels:
        targets["label"] = torch.zeros(count, dtype=torch.int64, device=device)
    if training_set.needs.numbers:
        targets[NUMBER] = torch.arange(count, device=device)
    if training_set.needs.real:
        targets[REAL] = torch.zeros_like(images)
    return images, targets


def _step(method: Method, training_set: TrainingSet, *, count: int, device: str) -> list[str]:
    """Run forward and backward; return the names of trainable parameters without gradient."""
    images, targets = example(training_set, count=count, device=device)
    if device == "meta":
        places, leaves = without_values(method)
        terms: Mapping[str, Tensor] = call_without_values(method, places, images, targets)
    else:
        leaves = dict(method.named_parameters())
        terms = method(images, targets)
    terms["loss"].backward()
    return [name for name, leaf in leaves.items() if leaf.requires_grad and leaf.grad is None]


def _refusal(error: BaseException, *, plan: Plan, count: int) -> Problem:
    """Word what PyTorch raised as what is wrong with the settings."""
    if count == 1:
        got = f"{plan.batch_size}, of which a forward pass sees one sample ({reason_of(error)})"
        hint = "Set a larger batch_size, fewer processes or less accumulate: batch norm needs two."
        return Problem("batch_size", got, "two samples or more per forward pass", hint)
    got = f"{plan.method!r}, which fails on a batch of zeros ({reason_of(error)})"
    hint = "--debug shows where."
    return Problem("method", got, "a method that takes the student's maps and the levels", hint)


def _check_onnx(method: Method, *, size: tuple[int, int]) -> None:
    import tempfile
    from pathlib import Path

    from distill.students.onnx import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(copy.deepcopy(method.student), Path(folder) / "model.onnx", image_size=size)
        except ConfigError as error:
            problem = error.problems[0]
            got = problem.got if isinstance(problem, Problem) else str(problem)
            hint = "Choose another student, or set --student.onnx false."
            raise ConfigError(
                Problem("student.onnx", f"true ({got})", "false for this network", hint)
            ) from error


def _lines(
    method: Method, idle: Sequence[str], *, plan: Plan, training_set: TrainingSet
) -> list[str]:
    lines = []
    if idle:
        shown = ", ".join(idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
        lines.append(f"{len(idle)} parameters get no gradient and are left as they are: {shown}")
    student, size = plan.student, training_set.image_size
    inside = [name.removeprefix("student.") for name in idle if name.startswith("student.")]
    share = untrained_share(method.student, config=student, image_size=size, idle=inside)
    begun = student.pretrained or student.weights  # what lies deeper is at least not random
    if share >= MUCH and not begun and not is_ours(student.name):
        strides = ", ".join(map(str, method.student.strides))
        lines.append(
            f"{100 * share:.1f} % of {student.name}'s weights are deeper than its maps (stride "
            f"{strides}) and stay as initialised. {_remedy(plan, training_set)}"
        )
    return lines


def _remedy(plan: Plan, training_set: TrainingSet) -> str:
    """Say which setting trains a student whole; it is tried, on tensors without values."""
    student, size = plan.student, training_set.image_size
    offered = list(student_strides(student, image_size=size))
    whole = copy.copy(student)
    whole.strides, whole.pretrained, whole.weights = offered, False, ""
    settings = plan.settings
    try:
        with torch.device("meta"):
            method = build_method(
                method_class(plan.method),
                settings,
                student=whole,
                training_set=training_set,
                seed=plan.seed,
            )
        idle = gradientless(method, plan=plan, training_set=training_set, count=MOST)
    except Exception:  # it was only a try
        return "Record deeper levels (larger strides) and name them in --data.levels."
    inside = [name.removeprefix("student.") for name in idle if name.startswith("student.")]
    share = untrained_share(method.student, config=student, image_size=size, idle=inside)
    if share < LITTLE:
        listed = ",".join(map(str, offered))
        return f"--student.strides [{listed}] trains it whole."
    return "Record deeper levels (larger strides) and name them in --data.levels."
