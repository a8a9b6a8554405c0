"""Ray's side of the driver: start actors, feed them, notice deaths, start others in their place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import exceptions as ray_errors

from dreamshard.errors import DreamshardError, TeacherError
from pipeline.actor import CALLS, Job, ShardActor
from pipeline.driver import Done, Event, Failed, Lost, Task
from pipeline.inputs import Input

MAX_FAILED_STARTS = 3
"""Actors in a row that died before they were ready: then the run ends with the last one's error."""
PATIENCE_S = 60.0
"""Time without any actor after which the user is told what the cluster has (and again)."""

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One actor: its handle, whether its teacher is loaded, and what it was given."""

    handle: Any
    starting: Any
    """Reference to the answer of `load`; None once it came."""
    tasks: dict[Any, Task] = field(default_factory=dict)
    alone: bool = False
    """Its task must have no other beside it."""


class RayWorkers:
    """A set of shard actors on a Ray cluster.

    Args:
        job: told to each actor.
        source: the input; put into the object store once.
        count: actors to keep.
        num_cpus, num_gpus: per actor.
        env_vars: environment of the actor processes.
        on_ready: called with the number of actors whose teacher is loaded, whenever it changes.
    """

    def __init__(
        self,
        job: Job,
        source: Input,
        *,
        count: int,
        num_cpus: float,
        num_gpus: float,
        env_vars: dict[str, str],
        on_ready: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._job, self._on_ready = job, on_ready
        self._source = ray.put(source)
        self._class = ray.remote(ShardActor).options(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_concurrency=CALLS,
            max_restarts=0,  # the driver does that: it knows which units were in flight
            runtime_env={"env_vars": env_vars},
        )
        self.reserved = 0
        self._failed_starts = 0
        self._patience_ends = time.monotonic() + PATIENCE_S
        self._slots = [self._start() for _ in range(count)]

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            ray.kill(slot.handle)

    @property
    def num_ready(self) -> int:
        """Count the actors whose teacher is loaded."""
        return sum(slot.starting is None for slot in self._slots)

    def free(self, *, alone: bool) -> bool:
        """Tell whether an actor can take one more unit."""
        return self._find(alone) is not None

    def submit(self, task: Task, *, alone: bool) -> None:
        """Give a unit to the least busy actor."""
        slot = self._find(alone)
        assert slot is not None, "submit without free"
        slot.tasks[slot.handle.make.remote(task.unit, task.count)] = task
        slot.alone = alone

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened; see `pipeline.driver.Workers`."""
        owners: dict[Any, _Slot] = {}
        for slot in self._slots:
            if slot.starting is not None:
                owners[slot.starting] = slot
            owners.update(dict.fromkeys(slot.tasks, slot))
        if not owners:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(list(owners), num_returns=1, timeout=timeout_s)
        if not ready:
            self._complain_if_idle()
        if ready:
            ready, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        events: list[Event] = []
        for reference in ready:
            slot = owners[reference]
            if reference == slot.starting:
                self._take_start(slot)
            elif reference in slot.tasks:  # not among those lost with their actor just now
                events += self._take_result(slot, reference)
        return events

    def _start(self) -> _Slot:
        handle = self._class.remote(self._job, self._source)
        return _Slot(handle, handle.load.remote())

    def _find(self, alone: bool) -> _Slot | None:
        ready = sorted(
            (slot for slot in self._slots if slot.starting is None),
            key=lambda slot: len(slot.tasks),
        )
        if alone:
            return ready[0] if ready and not ready[0].tasks else None
        for slot in ready[self.reserved :]:
            if len(slot.tasks) < CALLS and not slot.alone:
                return slot
        return None

    def _take_start(self, slot: _Slot) -> None:
        try:
            ray.get(slot.starting)
        except ray_errors.RayError as error:
            cause = _cause(error)
            self._failed_starts += 1
            if isinstance(cause, DreamshardError):
                raise cause from None
            if isinstance(error, ray_errors.RayTaskError):
                raise TeacherError(f"teacher: could not be loaded on an actor: {error}") from error
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise TeacherError(
                    f"teacher: {self._failed_starts} actors in a row died while loading it "
                    f"({error}). Look at the actors' logs; memory is the usual reason."
                ) from error
            log.warning("an actor died while starting (%s); starting another", _brief(error))
            self._replace(slot)
        else:
            self._failed_starts = 0
            slot.starting = None
            self._on_ready(self.num_ready)

    def _take_result(self, slot: _Slot, reference: Any) -> list[Event]:
        task = slot.tasks[reference]
        try:
            record = cast("dict[str, object]", ray.get(reference))
        except ray_errors.RayTaskError as error:
            del slot.tasks[reference]
            slot.alone = False
            return [Failed(task, _cause(error))]
        except ray_errors.RayError as error:
            lost = list(slot.tasks.values())
            log.warning("an actor died (%s); starting another", _brief(error))
            self._replace(slot)
            return [*(Lost(each, alone=len(lost) == 1, error=error) for each in lost)]
        del slot.tasks[reference]
        slot.alone = False
        return [Done(task, record)]

    def _complain_if_idle(self) -> None:
        if self.num_ready or time.monotonic() < self._patience_ends:
            return
        self._patience_ends = time.monotonic() + PATIENCE_S
        log.warning(
            "no actor is ready yet; the cluster has %s free of %s. Each needs --threads_per_actor "
            "CPUs and --gpus_per_actor GPUs",
            ray.available_resources(),
            ray.cluster_resources(),
        )

    def _replace(self, slot: _Slot) -> None:
        # If it was only out of reach, it must not come back beside the new one.
        ray.kill(slot.handle)
        fresh = self._start()
        slot.handle, slot.starting, slot.alone = fresh.handle, fresh.starting, False
        slot.tasks = {}
        self._on_ready(self.num_ready)


def _cause(error: ray_errors.RayError) -> Exception:
    """Unwrap the exception that user code raised on an actor."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
