"""Try a teacher out on a few micro-batches: how fast it is and how much memory it takes."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from pipeline.request.resolve import ResolvedRequest
from pipeline.teachers.base import Mode, Teacher, TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.schema import Pins

WARM_UP, BATCHES = 1, 3


@dataclass(frozen=True)
class TrialSetup:
    """What it takes to try a teacher out, here or on an actor's place.

    Args:
        num_gpus: GPUs of an actor; of a fraction, it may have that share of the memory.
    """

    teacher: TeacherConfig
    mode: Mode
    image_size: tuple[int, int]
    seed: int
    pins: Pins
    num_gpus: float = 0.0


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


def setup_of(request: ResolvedRequest, *, num_gpus: float) -> TrialSetup:
    """Return the trial of a request's teacher."""
    asked = request.asked
    return TrialSetup(
        asked.teacher, asked.mode, request.spec.image_size, asked.seed, request.pins, num_gpus
    )


def try_out(setup: TrialSetup) -> Trial:
    """Load the teacher in this process, with the actor's threads, and run a few micro-batches.

    Raises:
        ConfigError, TeacherError: as an actor would.
    """
    pins = setup.pins
    teacher = load_teacher(
        setup.teacher,
        mode=setup.mode,
        image_size=setup.image_size,
        seed=setup.seed,
        pins=pins,
    )
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(pins.threads)
    cuda = torch.cuda if torch is not None and pins.device == "cuda" else None
    images = np.zeros((pins.micro_batch, *setup.image_size, 3), np.uint8)
    seconds: list[float] = []
    for _ in range(WARM_UP + BATCHES):
        started = time.perf_counter()
        _forward(teacher, setup.mode, images)
        seconds.append(time.perf_counter() - started)
    rate = pins.micro_batch / statistics.median(seconds[WARM_UP:])
    if cuda is not None:
        total = cuda.get_device_properties(0).total_memory * min(1.0, setup.num_gpus or 1.0)
        return Trial(rate, cuda.max_memory_reserved() / total, cuda.max_memory_allocated())
    return Trial(rate, _share_of_host(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def forget_memory() -> None:
    """Give the memory of the last trial back."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _forward(teacher: Teacher, mode: Mode, images: np.ndarray) -> None:
    indices = np.arange(len(images))
    if mode == "encode":
        teacher.encode(images, indices)
    else:
        teacher.synthesize(indices)


def _share_of_host() -> float:
    import psutil

    mine = psutil.Process().memory_info().rss
    return mine / (psutil.virtual_memory().available + mine)
