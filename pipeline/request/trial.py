"""Try a teacher out on a few micro-batches: how fast it is and how much memory it takes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from pipeline.request.config import PipelineConfig
from pipeline.request.resolve import Request
from pipeline.teachers.load import load_teacher

WARM_UP, BATCHES = 1, 3


@dataclass(frozen=True)
class Trial:
    """Hold what a trial showed.

    Args:
        rate: images per second of one actor.
        load_s: seconds until the teacher was loaded.
        memory_bytes: most that was allocated on the GPU, or most that this process took on the CPU,
            Python and torch included, as in an actor.
        on_gpu: which of the two.
    """

    rate: float
    load_s: float
    memory_bytes: int
    on_gpu: bool


def try_out(config: PipelineConfig, request: Request) -> Trial:
    """Load the teacher in this process, with the actor's threads, and run a few micro-batches.

    Raises:
        ConfigError, TeacherError: as an actor would.
    """
    pins, started = request.pins, time.perf_counter()
    teacher = load_teacher(
        config.teacher,
        mode=request.input.mode,
        image_size=request.spec.image_size,
        seed=config.seed,
        pins=pins,
    )
    cuda = _cuda() if pins.device == "cuda" else None
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(pins.threads)
    load_s = time.perf_counter() - started
    count = (WARM_UP + BATCHES) * pins.micro_batch
    available = request.input.num_samples
    works = request.input.works(
        0, count if available is None else min(count, available), micro_batch=pins.micro_batch
    )
    seconds: list[float] = []
    for work in works:
        begin = time.perf_counter()
        request.input.forward(teacher, work)
        seconds.append(time.perf_counter() - begin)
    typical = statistics.median(seconds[WARM_UP:] or seconds)
    memory = cuda.max_memory_allocated() if cuda is not None else _peak_bytes()
    return Trial(pins.micro_batch / typical, load_s, memory, cuda is not None)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None
