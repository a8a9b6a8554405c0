"""Find the micro-batch that `micro_batch: 0` stands for, before a dataset pins it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dreamshard.errors import TeacherError
from dreamshard.progress import stage
from pipeline.cluster.config import RayConfig
from pipeline.cluster.join import cluster
from pipeline.cluster.outcomes import unwrap
from pipeline.cluster.worker import ActorSize, is_out_of_memory
from pipeline.request.config import DatasetRequest
from pipeline.request.resolve import ResolvedRequest
from pipeline.request.trial import Trial, forget_memory, try_out
from storage.schema import Pins

LARGEST = 256
"""Beyond it, no network was seen to gain."""
GAIN = 1.05
"""A doubling must make images come this many times faster to be worth its memory."""
SHARE = 0.9
"""Largest share of the device's memory that a doubling may be expected to take."""


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


def settle_micro_batch(
    request: ResolvedRequest, begun: Pins | None, *, ray_config: RayConfig, size: ActorSize
) -> ResolvedRequest:
    """Give a request with `micro_batch: 0` its own: that of a begun dataset, else found by trial.

    Args:
        request: of `micro_batch: 0`.
        begun: pins of the dataset that is to be extended; None if there is none.
        ray_config: the cluster to try on.
        size: of an actor.
    """
    if begun is not None:
        micro_batch = begun.micro_batch
    else:
        micro_batch = _on_the_cluster(request, ray_config, size)
    return replace(request, pins=replace(request.pins, micro_batch=micro_batch))


def _on_the_cluster(request: ResolvedRequest, ray_config: RayConfig, size: ActorSize) -> int:
    """Try sizes where an actor would run."""
    with cluster(ray_config, num_cpus=size.threads, num_gpus=size.num_gpus):
        import ray
        from ray.exceptions import RayTaskError

        run = ray.remote(try_sizes).options(**size.options(), max_retries=0)
        try:
            reference = run.remote(
                request.asked, request.spec.image_size, request.pins, size.num_gpus
            )
            micro_batch = int(ray.get(reference))  # type: ignore[arg-type]
        except RayTaskError as error:
            raise unwrap(error) from error
    stage(f"micro_batch: {micro_batch} found by trial; the dataset pins it")
    return micro_batch


def try_sizes(
    asked: DatasetRequest, image_size: tuple[int, int], pins: Pins, num_gpus: float
) -> int:
    """Load the teacher at growing micro-batches and run each a few times; return the best size."""

    def attempt(micro_batch: int) -> Trial | None:
        forget_memory()
        try:
            pinned = replace(pins, micro_batch=micro_batch)
            return try_out(asked, image_size, pinned, num_gpus=num_gpus)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                return None
            raise

    return choose(attempt)
