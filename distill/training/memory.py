"""Memory that does not suffice: said before the first step, as a setting to change."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from distill.students.trial import call_without_values, without_values
from distill.training.rehearsal import example
from dreamshard.errors import Problem

if TYPE_CHECKING:
    from distill.data.sets import TrainingSet
    from distill.methods.base import Method

STATES = {"adamw": 2, "lamb": 2}
"""Numbers that an optimiser keeps for each weight; 1 for others."""
GROUP = Path("/sys/fs/cgroup")
GB = 1e9

ON_CPU = ("can't allocate memory", "not enough memory")  # of PyTorch's allocators


def memory_problem(
    error: BaseException, *, batch_size: int, parts: int, grad_checkpointing: bool
) -> Problem | None:
    """Say which setting asks for too much memory; None for errors of other kinds.

    Args:
        error: that ended a run.
        batch_size: samples per step.
        parts: forward passes per step.
        grad_checkpointing: whether the student already computes its maps twice to hold less.
    """
    short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if not short and not any(words in str(error) for words in ON_CPU):
        return None
    reason = str(error).partition("\n")[0].partition(". ")[0] or "out of memory"
    split = f" in {parts} parts" if parts > 1 else ""
    hint = f"Work on a step's batch in more parts (--accumulate {2 * parts})"
    if not grad_checkpointing:
        hint += ", or set --student.grad_checkpointing true"
    got = f"{batch_size}{split}, for which memory does not suffice ({reason})"
    return Problem("batch_size", got, "what fits beside the student", f"{hint}.")


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """Say what a training step holds.

    Args:
        training_set: what is trained on.
        count: samples per forward pass of a process.
        optimizer: its name.
        averaged: whether the student's moving average is followed.
        ranks: processes that share a batch.
    """

    training_set: TrainingSet
    count: int
    optimizer: str
    averaged: bool
    ranks: int = 1

    def batch(self, device: torch.device | str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return images and targets of a forward pass, all of them zero."""
        return example(self.training_set, count=self.count, device=device)

    @property
    def copies(self) -> int:
        """Further numbers per trained weight: the optimiser's, and what ranks exchange."""
        return STATES.get(self.optimizer, 1) + (self.ranks > 1)


def estimate_step(method: Method, step: StepSize) -> int | None:
    """Return the least memory (bytes) that a training step takes; nothing is computed.

    Weights, gradients, the optimiser's numbers, the moving average, and what the forward pass keeps
    for the backward pass; what is computed on the way comes on top.

    Args:
        method: on the CPU, not compiled.
        step: how large it is.

    Returns:
        None for a method that computes with values: it cannot be tried without.
    """
    method.train()
    places, leaves = without_values(method)
    known = {_storage(value) for value in places.values()}
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        if _storage(value) not in known:
            kept[_storage(value)] = value.untyped_storage().nbytes()
        return value

    try:
        with torch.random.fork_rng(devices=[]):
            images, targets = step.batch("meta")
            with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
                terms = call_without_values(method, places, images, targets)
    except Exception:  # it was only a try: a rehearsal has told what is wrong
        return None
    assert terms["loss"].requires_grad  # and holds all that was kept until here
    weights = sum(value.nbytes for value in places.values())
    trained = sum(leaf.nbytes for leaf in leaves.values() if leaf.requires_grad)
    average = sum(value.nbytes for value in method.student.state_dict().values()) * step.averaged
    return weights + trained * (1 + step.copies) + average + sum(kept.values())


def check_estimate(method: Method, step: StepSize) -> None:
    """Refuse a step that this machine has no memory for.

    Raises:
        MemoryError: with the arithmetic; `memory_problem` words it.
    """
    needed, free = estimate_step(method, step), free_memory()
    if needed is not None and needed > free:
        raise MemoryError(f"a step takes {needed / GB:.1f} GB or more, {free / GB:.1f} GB are free")


def free_memory(group: Path = GROUP) -> int:
    """Return the memory (bytes) that this process can still get, of the machine or of its group."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    try:
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        lines = (group / "memory.stat").read_text().splitlines()
        parts = {name: int(size) for name, size in map(str.split, lines)}
    except (OSError, ValueError):  # no such group, or one without a limit
        return free
    files = parts.get("active_file", 0) + parts.get("inactive_file", 0)  # given up when asked for
    return min(free, max(0, most - used + files))


def try_step(
    method: Method,
    step: StepSize,
    *,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> None:
    """Go through a training step where it will be taken, and forget it.

    Args:
        method: on its device; values, statistics and random numbers are left as they were.
        step: how large it is.
        device: where it is taken.
        autocast: number formats of the forward pass.

    Raises:
        torch.OutOfMemoryError: memory does not suffice; `memory_problem` words it.
    """
    trained = [p for p in method.parameters() if p.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in method.buffers()]
    devices = [device] if device.type == "cuda" else []
    mode = method.training
    method.train()
    try:
        with torch.random.fork_rng(devices=devices):
            held = [torch.empty_like(weight) for weight in trained for _ in range(step.copies)]
            images, targets = step.batch(device)
            before = [torch.empty_like(weight) for weight in trained]  # the last step's gradients
            with autocast:
                terms = method(images, targets)
            before.clear()
            terms["loss"].backward()
            del held, terms
    finally:
        method.train(mode)
        for parameter in method.parameters():
            parameter.grad = None
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        if devices:
            torch.cuda.empty_cache()


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata
