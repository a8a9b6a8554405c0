"""One teacher and one shard writer in a process of its own; features never leave it but to disk.

Inside a unit three things run at once: images are read ahead, the teacher computes on its one
thread, a thread writes. The next unit's call comes meanwhile; its teacher starts when this ends.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakSet

from dreamshard.errors import DataError, DreamshardError
from dreamshard.permissions import adopt_umask
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.worker import explain_memory, settle_torch
from pipeline.images.inputs import Input, Work
from pipeline.offline.unit import Tally, WriterThread, end_reading
from pipeline.teachers.base import TeacherConfig, foreseer
from pipeline.teachers.load import load_teacher
from storage.codecs.bases import FIT_SAMPLES
from storage.dataset import Dataset
from storage.schema import join_batches

CALLS = 2
"""Units an actor holds at once: one computing, one writing its tail or reading ahead."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every actor of a run is told, once."""

    url: str
    run_id: str
    teacher: TeacherConfig
    image_size: tuple[int, int]
    seed: int
    fsync: bool
    halve_on_oom: bool = False


class HalvedError(DreamshardError):
    """Say that the teacher was loaded again with a smaller micro-batch: the unit begins anew."""


class ShardActor:
    """Make units: the class behind Ray's actors, usable without Ray."""

    def __init__(self, job: Job, source: Input, name: str = "teacher") -> None:
        adopt_umask()
        self._job, self._input, self._name = job, source, name
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="teacher")
        self._metrics = Metrics("offline", job.run_id)
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._making = 0
        self._tallies: WeakSet[Tally] = WeakSet()  # of units being made

    def __repr__(self) -> str:
        """Name the actor in Ray's logs and in the list of processes."""
        return f"ShardActor({self._name} of {self._job.run_id})"

    def load(self) -> dict[str, object]:
        """Open the dataset and load the teacher; return who and where this is.

        Raises:
            TeacherError, DataError, ConfigError: as those do.
        """
        try:
            self._dataset = Dataset.open(self._job.url, fsync=self._job.fsync)
        except DataError as error:
            raise DataError(
                f"{error} (seen from an actor on {socket.gethostname()}: the root must be on "
                "storage that all nodes of the cluster share)"
            ) from error
        self._micro_batch = self._dataset.pins.micro_batch
        self._compute.submit(self._load_teacher).result()
        if self._dataset.unfitted():
            self._compute.submit(self._fit).result()
        return {"host": socket.gethostname(), "pid": os.getpid()}

    def make(self, unit: int, count: int) -> dict[str, object]:
        """Make one unit and commit it.

        Args:
            unit: its number.
            count: its samples; fewer than a full unit only at the end of a source.

        Returns:
            The commit in brief: unit, count, ours (False: another run's commit was first),
            invalid, bytes, seconds, teacher_s, write_wait_s, errors (the first few), host.
        """
        with self._idle:
            self._making += 1
        try:
            while True:
                try:
                    return self._make_once(unit, count, self._micro_batch)
                except HalvedError as error:
                    log.warning("unit %d: %s", unit, error)
        finally:
            with self._idle:
                self._making -= 1
                self._idle.notify_all()

    def underway(self) -> int:
        """Count the samples computed of units that are not committed yet."""
        return sum(tally.count for tally in tuple(self._tallies))

    def stop(self, timeout_s: float = 10.0) -> None:
        """Drop the units that are being computed, let those being committed finish; then return."""
        self._stopping.set()
        with self._idle:
            self._idle.wait_for(lambda: self._making == 0, timeout_s)

    def _make_once(self, unit: int, count: int, micro_batch: int) -> dict[str, object]:
        started = time.perf_counter()
        start = unit * self._dataset.samples_per_unit
        foresee = foreseer(lambda: self._teacher)  # what a teacher prepares beside its own thread
        works = self._input.works(start, count, micro_batch=micro_batch, foresee=foresee)
        ready = itertools.chain([next(works)], works)  # reading ahead begins before our turn comes
        writer = self._dataset.unit_writer(unit, count=count, run_id=self._job.run_id)
        sink = WriterThread(writer)
        try:
            tally = self._compute.submit(self._run_teacher, ready, sink, micro_batch).result()
            sink.close()
            halved = micro_batch != self._dataset.pins.micro_batch
            commit = writer.commit(
                input_digest=tally.digest.hexdigest(),
                seconds=time.perf_counter() - started,
                extra={"micro_batch": micro_batch} if halved else None,
            )
        except BaseException:
            sink.stop()
            writer.abort()
            raise
        finally:
            end_reading(works)
        self._metrics.count(images=count, bytes=commit.bytes)
        return {
            "unit": unit,
            "count": count,
            "ours": commit.run_id == self._job.run_id,
            "invalid": tally.invalid,
            "bytes": commit.bytes,
            "seconds": time.perf_counter() - started,
            "teacher_s": tally.teacher_s,
            "write_wait_s": sink.waited_s,
            "errors": tally.errors[:5],
            "host": socket.gethostname(),
        }

    def _load_teacher(self) -> None:
        pins = dataclasses.replace(self._dataset.pins, micro_batch=self._micro_batch)
        self._teacher = load_teacher(
            self._job.teacher,
            mode=self._input.mode,
            image_size=self._job.image_size,
            seed=self._job.seed,
            pins=pins,
        )
        if "torch" in sys.modules:
            settle_torch(pins.threads)

    def _fit(self) -> None:
        """Fit learned codecs to micro-batches spread over the source: the same ones in any actor.

        Every actor that finds none fits, all get the same, and the first one's stays.
        """
        micro_batch, total = self._dataset.pins.micro_batch, self._input.num_samples
        available = FIT_SAMPLES if total is None else total
        count = max(1, min(FIT_SAMPLES, available) // micro_batch)
        starts = [n * (available // count) for n in range(count)]
        batches = [
            self._input.forward(self._teacher, work)
            for start in starts
            for work in self._input.works(
                start, min(micro_batch, available - start), micro_batch=micro_batch
            )
        ]
        self._dataset.fit(join_batches(batches))

    def _run_teacher(self, works: Iterator[Work], sink: WriterThread, micro_batch: int) -> Tally:
        """Compute a unit's micro-batches in order; on the one thread that runs the teacher."""
        self._tallies.add(tally := Tally())
        for work in works:
            if self._stopping.is_set():
                raise DreamshardError("the run was stopped")
            if micro_batch != self._micro_batch:
                raise HalvedError(f"micro-batches of {self._micro_batch} from now on")
            started = time.perf_counter()
            try:
                batch = self._input.forward(self._teacher, work)
            except (MemoryError, RuntimeError) as error:
                explained = explain_memory(error, micro_batch)
                if explained is not error and self._job.halve_on_oom and micro_batch > 1:
                    self._halve()
                raise explained from error
            spent, waited = time.perf_counter() - started, sink.waited_s
            tally.add(work, batch, spent)
            sink.put(work.offset, batch)
            self._metrics.spend(busy_s=spent, write_wait_s=sink.waited_s - waited)
        return tally

    def _halve(self) -> None:
        """Go on with half the micro-batch: the unit begins anew, and its commit says so."""
        self._micro_batch //= 2
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()
        self._load_teacher()
        raise HalvedError(f"out of memory: micro-batches of {self._micro_batch} from now on")
