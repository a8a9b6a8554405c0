"""Memory that does not suffice: a setting to change, not a traceback of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dreamshard.errors import Problem

if TYPE_CHECKING:
    from distill.configs.train import TrainConfig

ON_CPU = ("can't allocate memory", "not enough memory")  # of PyTorch's allocators


def memory_problem(error: BaseException, config: TrainConfig) -> Problem | None:
    """Say which setting asks for too much memory; None for errors of other kinds.

    Args:
        error: that ended a run.
        config: of the run.
    """
    short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if not short and not any(words in str(error) for words in ON_CPU):
        return None
    reason = str(error).partition("\n")[0].partition(". ")[0] or "out of memory"
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    hint = f"Work on a step's batch in more parts (--accumulate {2 * config.accumulate})"
    if not config.student.grad_checkpointing:
        hint += ", or set --student.grad_checkpointing true"
    got = f"{config.batch_size}{parts}, for which memory does not suffice ({reason})"
    return Problem("batch_size", got, "what fits beside the student", f"{hint}.")
