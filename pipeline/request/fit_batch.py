"""Find the micro-batch that `micro_batch: 0` stands for, before a dataset pins it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamshard.errors import TeacherError
from dreamshard.progress import stage
from pipeline.cluster.join import cluster
from pipeline.cluster.worker import is_out_of_memory, worker_env
from pipeline.request.config import PipelineConfig
from pipeline.request.resolve import Request, mode_of
from pipeline.teachers.base import Mode, TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.schema import Pins

LARGEST = 256
"""Beyond it, no network was seen to gain."""
GAIN = 1.05
"""A doubling must make images come this many times faster to be worth its memory."""
SHARE = 0.9
"""Largest share of the device's memory that a doubling may be expected to take."""


@dataclass(frozen=True)
class Trial:
    """How one size went: images per second, and the share of memory in use, 0 .. 1."""

    rate: float
    memory: float


def choose(attempt: Callable[[int], Trial | None]) -> int:
    """Double the micro-batch while it fits and pays.

    Args:
        attempt: runs one size; None if it does not fit.

    Returns:
        the largest size that fitted and was faster than half of it, 1 at least.

    Raises: TeacherError if not even one image fits.
    """
    best = attempt(1)
    if best is None:
        raise TeacherError(
            "micro_batch: not even one image fits into memory. Use a device with more, a smaller "
            "image.size, fewer teacher.levels, or --teacher.compute_dtype bfloat16."
        )
    size = 1
    while size < LARGEST and 2 * best.memory <= SHARE:
        trial = attempt(2 * size)
        if trial is None or trial.rate < GAIN * best.rate:
            break
        size, best = 2 * size, trial
    return size


def settle_micro_batch(config: PipelineConfig, request: Request, pins: Pins | None) -> Any:
    """Give a request with `micro_batch: 0` its size: that of a begun dataset, else found by trial.

    Args:
        config: an EncodeConfig or SynthesizeConfig.
        request: of that config.
        pins: those of the dataset that is to be extended; None if there is none.

    Returns:
        (config, request) with the size filled in.
    """
    size = pins.micro_batch if pins is not None else _on_the_cluster(config, request)
    chosen = dataclasses.replace(request.pins, micro_batch=size)
    config = dataclasses.replace(config, micro_batch=size)
    return config, dataclasses.replace(request, pins=chosen)


def _on_the_cluster(config: PipelineConfig, request: Request) -> int:
    """Try sizes where an actor would run."""
    pins = request.pins
    with cluster(config.ray, num_cpus=pins.threads, num_gpus=config.gpus_per_actor):
        import ray
        from ray.exceptions import RayTaskError

        run = ray.remote(try_sizes).options(
            num_cpus=pins.threads,
            num_gpus=config.gpus_per_actor,
            resources=dict(config.actor_resources),
            max_retries=0,
            runtime_env={"env_vars": worker_env(pins.threads)},
        )
        reference = run.remote(
            config.teacher, mode_of(config), request.spec.image_size, pins, config.gpus_per_actor
        )
        try:
            size = int(ray.get(reference))  # type: ignore[arg-type]
        except RayTaskError as error:
            raise error.cause from error
    stage(f"micro_batch: {size} found by trial; the dataset pins it")
    return size


def try_sizes(
    config: TeacherConfig, mode: Mode, image_size: tuple[int, int], pins: Pins, gpus: float
) -> int:
    """Load the teacher at growing micro-batches and run each a few times; return the best size."""

    def attempt(size: int) -> Trial | None:
        _forget()
        try:
            return _run(config, mode, image_size, dataclasses.replace(pins, micro_batch=size), gpus)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                return None
            raise

    return choose(attempt)


def _run(
    config: TeacherConfig, mode: Mode, image_size: tuple[int, int], pins: Pins, gpus: float
) -> Trial:
    size = pins.micro_batch
    teacher = load_teacher(config, mode=mode, seed=0, pins=pins, image_size=image_size)
    images, indices = np.zeros((size, *image_size, 3), np.uint8), np.arange(size)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        if mode == "encode":
            teacher.encode(images, indices)
        else:
            teacher.synthesize(indices)
        seconds.append(time.perf_counter() - started)
    return Trial(size / min(seconds), _memory(pins.device, gpus))


def _memory(device: str, gpus: float) -> float:
    """Return the share in use of the memory this process may have."""
    if device == "cuda":
        import torch

        total = torch.cuda.get_device_properties(0).total_memory * min(1.0, gpus or 1.0)
        return torch.cuda.max_memory_reserved() / total
    import psutil

    mine = psutil.Process().memory_info().rss
    return mine / (psutil.virtual_memory().available + mine)


def _forget() -> None:
    """Give memory of the last trial back."""
    import gc
    import sys

    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
        sys.modules["torch"].cuda.reset_peak_memory_stats()
