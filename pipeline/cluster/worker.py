"""A process that runs a teacher: its CPUs, its environment, torch's settings, lack of memory."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamshard import permissions
from dreamshard.errors import POLICY, TeacherError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""What CUDA and torch's two CPU allocators say."""


@dataclass(frozen=True)
class ActorSize:
    """What one actor takes of a cluster.

    Args:
        threads: CPU threads of its teacher (count), each a CPU of Ray's.
        num_gpus: GPUs; a fraction shares one.
        resources: further Ray resources, by name.
    """

    threads: int = 1
    num_gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """Return Ray's options for it."""
        return {
            "num_cpus": self.threads,
            "num_gpus": self.num_gpus,
            "resources": dict(self.resources),
            "runtime_env": {"env_vars": worker_env(self.threads)},
        }

    def count(self, asked: int) -> int:
        """Count the actors a cluster of our own must have room for; 0 asked: one for each CPU."""
        return asked or max(1, num_cpus() // self.threads)


def num_cpus() -> int:
    """Count the CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def worker_env(threads: int) -> dict[str, str]:
    """Return the environment of an actor process: threads, how they wait, umask, our code."""
    here = os.getcwd() if {"", os.getcwd()} & set(sys.path) else ""  # for module:Class of a user's
    places = [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", ""), here]
    path = os.pathsep.join(dict.fromkeys(filter(None, places)))
    count = str(threads)
    return {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        POLICY: os.environ.get(POLICY, "passive"),
        permissions.VARIABLE: f"{permissions.umask():03o}",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # or cuBLAS may sum in another order each time
    }


def settle_torch(threads: int) -> None:
    """Make torch compute the same bytes every time."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode fills every new buffer with NaN: 64 MB took 141 ms instead of 20 us.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def same_device() -> Callable[[], None]:
    """Return what makes a thread use this one's GPU: every thread begins with the first one.

    A rank's teacher would otherwise be loaded on GPU 0 beside those of all other ranks.
    """
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return lambda: None
    number = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(number)


def is_out_of_memory(error: Exception) -> bool:
    """Tell a lack of memory, of the host or of a device, from other errors."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY)


def explain_memory(error: Exception, micro_batch: int) -> Exception:
    """Name the setting behind a lack of memory; pass other errors on."""
    if is_out_of_memory(error):
        return TeacherError(
            f"micro_batch: got {micro_batch}, too much for the memory of {socket.gethostname()} "
            f"({str(error).splitlines()[0] if str(error) else 'out of memory'}). "
            "Try --micro_batch with half of it; it is pinned, so that starts another dataset. Or "
            "--halve_on_oom, which marks the shards made with less."
        )
    return error
