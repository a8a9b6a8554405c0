"""Answer requests for micro-batches: the class behind Ray's actors, usable without Ray.

An answer is a pure function of the request and the recipe. Several requests may be in here at once:
while the teacher computes one on its one thread, the next one's images are decoded and the last
one's features encoded.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import DataError, DreamshardError
from pipeline.cluster.metrics import Metrics
from pipeline.cluster.worker import explain_memory, same_device, settle_torch
from pipeline.images.inputs import Work
from pipeline.request.resolve import ResolvedRequest
from pipeline.streaming.keeper import Keeper
from pipeline.streaming.mixup import mix_images
from pipeline.streaming.order import EPOCH_LANE, stand_ins
from pipeline.teachers.base import Foresee, Teacher, foreseer
from pipeline.teachers.load import load_teacher
from storage.codecs.arrays import codec_for
from storage.codecs.base import Codec
from storage.ledger.holds import as_name, name_readers
from storage.schema import FeatureBatch

CALLS = 3
"""Requests in an actor at once: one decoding, one computing, one being encoded and sent."""
RECENT = 4
"""Answers kept where several will ask for the same micro-batch, such as ranks that share it."""

CLOSE_S = 20.0
"""Time that requests under way are given when it is closed."""

log = logging.getLogger(__name__)


class StoppingError(DreamshardError):
    """Say that this actor is being stopped: others serve, now or later."""


@dataclass(frozen=True)
class ServedPart:
    """One source that an actor serves.

    Args:
        request: what it is, understood; its pins are those of the dataset it fills, if it does.
        fresh_noise: draw new noise for every epoch.
        url: dataset to commit to, "" for none.
        mixup: mix the images of a micro-batch before the teacher sees them.
    """

    request: ResolvedRequest
    fresh_noise: bool = False
    url: str = ""
    mixup: bool = False


class Server:
    """Load teachers and answer requests.

    Args:
        parts: what is served, by number; those of mode shards are None: clients read them.
        name: of the service, for metrics.
        settle: set torch to compute the same bytes every time; not where others use it, too.
    """

    def __init__(
        self, parts: Sequence[ServedPart | None], *, name: str, settle: bool = True
    ) -> None:
        name_readers(as_name(f"stream-{name}"))
        self._parts, self._settle = list(parts), settle
        self._compute = ThreadPoolExecutor(
            1, thread_name_prefix="teacher", initializer=same_device()
        )
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self._reading, self._lock = threading.Lock(), threading.Lock()
        self._idle = threading.Condition()
        self._active, self._closing = 0, False
        self._recent: OrderedDict[tuple[object, ...], Future[dict[str, np.ndarray]]] = OrderedDict()
        self._teachers: dict[int, Teacher] = {}
        self._codecs: dict[int, dict[str, Codec]] = {}
        self._keepers: dict[int, Keeper] = {}
        self._metrics = Metrics("online", name)
        self._counts = {"images": 0, "bytes": 0, "requests": 0, "shared": 0, "replaced": 0}
        self._busy_s = 0.0
        self._started = time.monotonic()

    def load(self) -> None:
        """Load the teachers; open the datasets that are filled.

        Raises:
            TeacherError, DataError, ConfigError: as those do.
        """
        self._compute.submit(self._load).result()
        for number, part in enumerate(self._parts):
            if part is not None and part.url:
                self._keepers[number] = Keeper(part.url, fsync=part.request.asked.fsync)

    def serve(
        self, part: int, samples: np.ndarray, epoch: int, shared: bool = False
    ) -> dict[str, np.ndarray]:
        """Make one micro-batch.

        Args:
            part: number of the source.
            samples: int64 (n,), n at most the micro-batch.
            epoch: pass over the source; matters only where it draws fresh noise or mixes.
            shared: others will ask for the same one; keep it for a while.

        Returns:
            `index` int64 (n,), `image` uint8 (n, H, W, 3), `label` int64 (n,) where there are any,
            and each level's arrays as its codec stores them. A row that cannot be used holds the
            next one that can, as its `index` says.

        Raises:
            StoppingError: it is being closed.
            TeacherError, DataError: it cannot be made.
        """
        served = self._parts[part]
        assert served is not None, "a dataset is read by those who want it"
        with self._idle:
            self.check_open()
            self._active += 1
            self._counts["requests"] += 1
        try:
            return self._serve(part, served, samples, epoch, shared)
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def _serve(
        self, part: int, served: ServedPart, samples: np.ndarray, epoch: int, shared: bool
    ) -> dict[str, np.ndarray]:
        """Make a micro-batch, or hand out one that somebody else has asked for."""
        if not shared:
            return self._make(part, served, samples, epoch)
        key = (part, samples.tobytes(), epoch if served.fresh_noise or served.mixup else 0)
        with self._lock:
            known = self._recent.get(key)
            future = self._recent.setdefault(key, Future())
            self._recent.move_to_end(key)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        if known is not None:
            self._counts["shared"] += 1
            return known.result()
        try:
            future.set_result(self._make(part, served, samples, epoch))
        except BaseException as error:
            with self._lock:
                self._recent.pop(key, None)
            future.set_exception(error)
        return future.result()

    def check_open(self) -> None:
        """Raise StoppingError if it is being closed."""
        if self._closing:
            raise StoppingError("this actor is being stopped")

    def status(self) -> dict[str, float | int | str]:
        """Return who this is and what it did so far."""
        alive = time.monotonic() - self._started
        kept = sum(keeper.committed for keeper in self._keepers.values())
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "seconds": round(alive, 3),
            "busy_share": round(self._busy_s / alive, 4) if alive else 0.0,
            "units_kept": kept,
            **self._counts,
        }

    def close(self) -> None:
        """Answer what was begun, finish the units being committed, and end the threads."""
        with self._idle:
            self._closing = True
            self._idle.wait_for(lambda: self._active == 0, CLOSE_S)
        for keeper in self._keepers.values():
            keeper.close()
        self._compute.shutdown(wait=False, cancel_futures=True)

    def _load(self) -> None:
        loaded: dict[tuple[object, ...], Teacher] = {}
        for number, part in enumerate(self._parts):
            if part is None:
                continue
            request, asked, size = part.request, part.request.asked, part.request.spec.image_size
            same = (repr(asked.teacher), asked.mode, size, asked.seed, request.pins)
            if same not in loaded:
                loaded[same] = load_teacher(
                    asked.teacher,
                    mode=asked.mode,
                    image_size=size,
                    seed=asked.seed,
                    pins=request.pins,
                )
            self._teachers[number] = loaded[same]
            levels = request.spec.levels
            self._codecs[number] = {lv.name: codec_for(request.recipe, lv) for lv in levels}
            if self._settle and "torch" in sys.modules:
                settle_torch(request.pins.threads)

    def _make(
        self, number: int, part: ServedPart, samples: np.ndarray, epoch: int
    ) -> dict[str, np.ndarray]:
        micro_batch = part.request.pins.micro_batch
        with self._reading:
            work = part.request.input.gather(
                samples,
                micro_batch=micro_batch,
                pool=self._decoders,
                foresee=self._foreseer(number, part, epoch),
            )
        if part.mixup:
            assert work.images is not None and work.valid is not None
            work.images = mix_images(
                work.images,
                work.valid[: work.count],
                samples=samples,
                seed=part.request.asked.seed,
                epoch=epoch,
            )
        batch = self._compute.submit(self._forward, number, part, work, epoch).result()
        keeper = self._keepers.get(number)
        if keeper is not None:
            keeper.offer(batch, work.digest)
        answer = self._encode(number, part, batch)
        size = sum(rows.nbytes for rows in answer.values())
        with self._lock:
            self._counts["images"] += len(samples)
            self._counts["bytes"] += size
        self._metrics.count(images=len(samples), bytes=size)
        return answer

    def _foreseer(self, number: int, part: ServedPart, epoch: int) -> Foresee:
        """Return what prepares a teacher's micro-batches, under the numbers it will be told."""
        foresee = foreseer(lambda: self._teachers[number])
        lane = epoch * EPOCH_LANE if part.fresh_noise else 0
        return lambda indices: foresee(indices + lane)

    def _forward(self, number: int, part: ServedPart, work: Work, epoch: int) -> FeatureBatch:
        """Run the teacher; on the one thread that does."""
        started = time.perf_counter()
        true_indices = work.indices
        if part.fresh_noise:
            work.indices = true_indices + epoch * EPOCH_LANE
        try:
            batch = part.request.input.forward(self._teachers[number], work)
        except (MemoryError, RuntimeError) as error:
            raise explain_memory(error, part.request.pins.micro_batch) from error
        finally:
            spent = time.perf_counter() - started
            self._busy_s += spent
            self._metrics.spend(busy_s=spent)
        batch.index = true_indices[: work.count]
        return batch

    def _encode(self, number: int, part: ServedPart, batch: FeatureBatch) -> dict[str, np.ndarray]:
        rows = self._usable(batch)

        def chosen(values: np.ndarray) -> np.ndarray:
            return values if rows is None else values[rows]

        answer = {"index": chosen(np.asarray(batch.index, np.int64))}
        if batch.image is not None:
            answer["image"] = np.ascontiguousarray(chosen(batch.image))
        if part.request.input.has_labels:
            labels = np.full(len(batch), -1) if batch.label is None else batch.label
            answer["label"] = chosen(np.asarray(labels, np.int64))
        for level in part.request.spec.levels:
            values = chosen(batch.levels[level.name])
            answer.update(self._codecs[number][level.name].encode(level, values))
        return answer

    def _usable(self, batch: FeatureBatch) -> np.ndarray | None:
        """Return which row stands in each place; None if every row can be used."""
        rows = stand_ins(batch.valid)
        if rows is None:
            return None
        reasons = list(batch.error.values())
        if not len(rows):
            raise DataError(
                f"source: got no usable image among samples {batch.index[:3].tolist()}... "
                f"({len(batch)} of them), allowed some in every micro-batch: {reasons[:3]}"
            )
        with self._lock:
            self._counts["replaced"] += int(np.count_nonzero(~batch.valid))
        log.warning("unusable images, their neighbours stand in for them: %s", reasons[:5])
        return rows
