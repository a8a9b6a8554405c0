"""Run a function on two CPU processes that talk to each other."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from tests.forked import Forked

RANKS = 2
DEADLINE_S = 300.0
ROOT = Path(__file__).resolve().parents[1]


def on_two_ranks(check: Callable[[int, Path], None], folder: Path) -> None:
    """Call `check(rank, folder)` on two processes of one group; the first failure is raised here.

    Args:
        check: a function of a module, which the processes import.
        folder: empty, for what they leave.
    """
    names = (check.__module__, check.__name__, str(folder))
    ranks = [
        Forked(["-c", f"from tests.two_ranks import run; run({rank}, *{names!r})"], cwd=ROOT,
               env=os.environ)
        for rank in range(RANKS)
    ]  # fmt: skip
    told = {rank: process.communicate(DEADLINE_S)[0] for rank, process in enumerate(ranks)}
    wrong = {rank: told[rank] for rank, process in enumerate(ranks) if process.returncode}
    if wrong:
        raise AssertionError("\n".join(f"rank {rank}: {text}" for rank, text in wrong.items()))


def run(rank: int, module: str, name: str, where: str) -> None:
    """Be one of the ranks."""
    check, folder = getattr(importlib.import_module(module), name), Path(where)
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
