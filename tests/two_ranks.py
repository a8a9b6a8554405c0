"""Run a function on two CPU processes that talk to each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed, multiprocessing

RANKS = 2


def on_two_ranks(check: Callable[[int, Path], None], folder: Path) -> None:
    """Call `check(rank, folder)` on two processes of one group; the first failure is raised here.

    Args:
        check: a function of a module, which the processes import.
        folder: empty, for what they leave.
    """
    multiprocessing.spawn(_run, args=(check, folder), nprocs=RANKS)


def _run(rank: int, check: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    check(rank, folder)
    distributed.destroy_process_group()
