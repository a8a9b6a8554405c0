"""Memory that does not suffice: a setting to change, not a traceback of PyTorch."""

from __future__ import annotations

import torch

from dreamshard.errors import Problem

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
