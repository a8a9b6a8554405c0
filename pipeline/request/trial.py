"""Try a teacher out on a few micro-batches: how fast it is and how much memory it takes."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from pipeline.request.config import DatasetRequest
from pipeline.teachers.load import load_teacher
from storage.schema import Pins

WARM_UP, BATCHES = 1, 3


@dataclass(frozen=True)
class Trial:
    """Hold what a trial showed.

    Args:
        rate: images per second of one actor.
        memory: share in use of the memory this process may have, 0 .. 1.
        memory_bytes: most that was allocated on the GPU, or most that this process took on the CPU,
            Python and torch included, as in an actor.
    """

    rate: float
    memory: float
    memory_bytes: int = 0


def try_out(
    asked: DatasetRequest, image_size: tuple[int, int], pins: Pins, *, num_gpus: float
) -> Trial:
    """Load the teacher in this process, with the actor's threads, and run a few micro-batches.

    Args:
        asked: names the teacher.
        image_size: height and width (pixels).
        pins: as an actor would have them.
        num_gpus: GPUs of an actor; of a fraction, it may have that share of the memory.

    Raises:
        ConfigError, TeacherError: as an actor would.
    """
    teacher = load_teacher(
        asked.teacher, mode=asked.mode, image_size=image_size, seed=asked.seed, pins=pins
    )
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(pins.threads)
    indices = np.arange(pins.micro_batch)
    images = np.zeros((len(indices), *image_size, 3), np.uint8)
    seconds: list[float] = []
    for _ in range(WARM_UP + BATCHES):
        started = time.perf_counter()
        if asked.mode == "encode":
            teacher.encode(images, indices)
        else:
            teacher.synthesize(indices)
        seconds.append(time.perf_counter() - started)
    rate = pins.micro_batch / statistics.median(seconds[WARM_UP:])
    if torch is not None and pins.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory * min(1.0, num_gpus or 1.0)
        share = torch.cuda.max_memory_reserved() / total
        return Trial(rate, share, torch.cuda.max_memory_allocated())
    return Trial(rate, _share_of_host(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def forget_memory() -> None:
    """Give the memory of the last trial back."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _share_of_host() -> float:
    import psutil

    mine = psutil.Process().memory_info().rss
    return mine / (psutil.virtual_memory().available + mine)
