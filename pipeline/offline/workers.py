"""Ray's side of the driver: start actors, feed them, notice deaths, start others in their place.

Actors come and go with the cluster's nodes: those still pending are not waited for, more are
started when there is room for more, and a failing start is tried again with growing pauses as long
as others work.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray import exceptions as ray_errors

from dreamshard.errors import DreamshardError, TeacherError
from pipeline.cluster.outcomes import Done, Failed, Lost, Returned, unwrap
from pipeline.images.inputs import Input
from pipeline.offline.actor import CALLS, Job, ShardActor
from pipeline.offline.driver import Late, Task, UnitEvent

MAX_FAILED_STARTS = 3
"""Actors in a row that died before they were ready, and none is: then the run ends with the last
one's error."""
MAX_PAUSE_S = 60.0
"""Longest pause after a failed start."""
LOOK_S = 2.0
"""Seconds between two questions how far the units in flight are."""
TEND_S = 5.0
"""Seconds between two looks whether there is room for more actors."""
STOP_S = 10.0
"""Longest wait at the end for actors to drop what they are at."""
PATIENCE_S = 60.0
"""Time without any actor after which the user is told what the cluster has (and again)."""

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """One actor: its handle, whether its teacher is loaded, and what it was given."""

    handle: Any
    starting: Any
    """Reference to the answer of `load`; None once it came."""
    name: str
    where: str = ""
    """Host and process, once it is ready."""
    tasks: dict[Any, Task] = field(default_factory=dict)
    """What it was given, in that order; it computes the first one."""
    since: float = 0.0
    """When it began with the first one (monotonic seconds)."""
    alone: bool = False
    """Its task must have no other beside it."""
    late: bool = False
    """Its first task takes too long: it gets no other."""
    asked: Any = None
    """Reference to the answer how far it is; None where it was not asked."""
    underway: int = 0
    """Samples computed of its tasks, as it last said."""

    def add(self, reference: Any, task: Task) -> None:
        """Note a task it was given."""
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks[reference] = task

    def take(self, reference: Any) -> tuple[Task, float]:
        """Forget a task that ended; return it and the seconds since its turn came."""
        first = next(iter(self.tasks)) == reference
        now = time.monotonic()
        seconds = now - self.since
        task = self.tasks.pop(reference)
        if first:
            self.since, self.late = now, False
        self.alone = False
        return task, seconds


class RayWorkers:
    """A set of shard actors on a Ray cluster.

    Args:
        job: told to each actor.
        source: the input; put into the object store once.
        target: asked now and then how many actors to keep (count).
        options: Ray's, of an actor; see `pipeline.cluster.worker.ActorSize`.
        on_ready: called with the number of actors whose teacher is loaded, whenever it changes.
        on_underway: called now and then with the samples computed of units in flight (count).
    """

    def __init__(
        self,
        job: Job,
        source: Input,
        *,
        target: Callable[[], int],
        options: Mapping[str, Any],
        on_ready: Callable[[int], None] = lambda count: None,
        on_underway: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._job, self._on_ready, self._target = job, on_ready, target
        self._on_underway, self._next_look = on_underway, 0.0
        self._source = ray.put(source)
        self._options: dict[str, Any] = {
            **options,
            "max_concurrency": CALLS + 2,  # more: to be told to stop, to be asked how far it is
            "max_restarts": 0,  # the driver does that: it knows which units were in flight
        }
        self.reserved = 0
        self._events: list[UnitEvent] = []
        self._started = self._failed_starts = 0
        self._next_tend = self._next_start = 0.0
        self._patience_ends = time.monotonic() + PATIENCE_S
        self._slots: list[_Slot] = []
        self._tend()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        busy = [slot for slot in self._slots if slot.tasks]
        with contextlib.suppress(ray_errors.RayError):  # so that none writes while we sweep
            stops = [slot.handle.stop.remote() for slot in busy]
            if stops:
                ray.wait(stops, num_returns=len(stops), timeout=STOP_S)
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
        slot.add(slot.handle.make.remote(task.unit, task.count), task)
        slot.alone = alone

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        """Return what happened; see `pipeline.offline.driver.Workers`."""
        if time.monotonic() >= self._next_tend:
            self._tend()
        self._look()
        if self._events:
            events, self._events = self._events, []
            return events
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
        events: list[UnitEvent] = []
        for reference in ready:
            slot = owners[reference]
            if reference == slot.starting:
                self._take_start(slot)
            elif reference in slot.tasks:  # not among those lost with their actor just now
                events += self._take_result(slot, reference)
        return events

    def late(self, limit_s: float) -> list[Late]:
        """List the units begun longer ago than that; see `pipeline.offline.driver.Workers`."""
        now = time.monotonic()
        late: list[Late] = []
        for slot in self._slots:
            if slot.tasks and slot.starting is None and now - slot.since > limit_s:
                slot.late = True
                task = next(iter(slot.tasks.values()))
                late.append(Late(task, now - slot.since, f"{slot.name} ({slot.where})"))
        return late

    def replace(self, late: Late) -> None:
        """Kill the actor that is stuck with a unit; see `pipeline.offline.driver.Workers`."""
        for slot in list(self._slots):
            if slot.late and f"{slot.name} ({slot.where})" == late.actor:
                stuck, *others = slot.tasks.values()
                error = DreamshardError(f"{late.actor} was stuck with it for {late.seconds:.0f} s")
                self._events.append(Failed(stuck, error))
                self._events += [Returned(other, error) for other in others]
                self._replace(slot)

    def _look(self) -> None:
        """Ask the actors how far their units are, and take what they answered; wait for none."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_S
        for slot in self._slots:
            if slot.asked is not None and ray.wait([slot.asked], timeout=0)[0]:
                with contextlib.suppress(ray_errors.RayError):  # its death is noticed elsewhere
                    slot.underway = cast(int, ray.get(slot.asked))
                slot.asked = None
            if slot.tasks and slot.starting is None and slot.asked is None:
                slot.asked = slot.handle.underway.remote()
        self._on_underway(sum(slot.underway for slot in self._slots if slot.tasks))

    def _tend(self) -> None:
        """Start actors where there is room for more, drop pending ones where there is less."""
        now = time.monotonic()
        self._next_tend = now + TEND_S
        target = self._target()
        while len(self._slots) < target and now >= self._next_start:
            self._slots.append(self._start())
        pending = [slot for slot in self._slots if slot.starting is not None]
        for slot in pending[: max(0, len(self._slots) - target)]:
            ray.kill(slot.handle)
            self._slots.remove(slot)

    def _start(self) -> _Slot:
        self._started += 1
        name = f"teacher-{self._started}"
        options = {**self._options, "name": f"{self._job.run_id}/{name}"}
        handle = ray.remote(ShardActor).options(**options).remote(self._job, self._source, name)
        return _Slot(handle, handle.load.remote(), name)

    def _find(self, alone: bool) -> _Slot | None:
        ready = sorted(
            (slot for slot in self._slots if slot.starting is None),
            key=lambda slot: len(slot.tasks),
        )
        if alone:
            return ready[0] if ready and not ready[0].tasks else None
        for slot in ready[self.reserved :]:
            if len(slot.tasks) < CALLS and not slot.alone and not slot.late:
                return slot
        return None

    def _take_start(self, slot: _Slot) -> None:
        try:
            told = cast("dict[str, object]", ray.get(slot.starting))
        except ray_errors.RayError as error:
            cause = unwrap(error)
            if isinstance(cause, DreamshardError):
                raise cause from None
            if isinstance(error, ray_errors.RayTaskError):
                raise TeacherError(f"teacher: could not be loaded on an actor: {error}") from error
            self._start_failed(slot, error)
        else:
            self._failed_starts = 0
            slot.starting, slot.where = None, f"{told['host']}, process {told['pid']}"
            self._on_ready(self.num_ready)

    def _start_failed(self, slot: _Slot, error: ray_errors.RayError) -> None:
        """Try another one later, unless that is all that ever happens."""
        ray.kill(slot.handle)
        self._slots.remove(slot)
        if not _of_node(error):  # a node that goes says nothing of the teacher
            self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS and not self.num_ready:
            raise TeacherError(
                f"teacher: {self._failed_starts} actors in a row died while loading it "
                f"({_brief(error)}). Look at the actors' logs; memory is the usual reason."
            ) from error
        pause = min(MAX_PAUSE_S, 0.5 * 2**self._failed_starts)
        self._next_start = time.monotonic() + pause
        self._next_tend = min(self._next_tend, self._next_start)
        log.warning("%s died while starting (%s); starting another", slot.name, _brief(error))

    def _take_result(self, slot: _Slot, reference: Any) -> list[UnitEvent]:
        try:
            record = cast("dict[str, object]", ray.get(reference))
        except ray_errors.RayTaskError as error:
            return [Failed(slot.take(reference)[0], unwrap(error))]
        except ray_errors.RayError as error:
            lost = list(slot.tasks.values())
            log.warning("%s died (%s); starting another", slot.name, _brief(error))
            self._replace(slot)
            return [*(Lost(each, error, alone=len(lost) == 1) for each in lost)]
        task, seconds = slot.take(reference)
        return [Done(task, record, seconds)]

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
        slot.tasks = {}
        self._slots.remove(slot)
        self._tend()
        self._on_ready(self.num_ready)


def _of_node(error: ray_errors.RayError) -> bool:
    """Say whether an actor died because its node did; Ray tells it in words only."""
    return "node" in _brief(error).lower()


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
