"""Online: pull the positions of an endless stream, in order, from teachers that work meanwhile.

A position stands for one sample of one source, by pure functions of the settings (`Order`, `Mix`).
Each rank asks for the micro-batches its positions fall into, a bounded window ahead, from whichever
teacher is there (`Window`); units committed on the way are read instead. So a run is resumed by one
integer at any world size, and what dies meanwhile costs time, never a sample.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.cluster.metrics import Metrics
from pipeline.streaming.order import MicroBatch, Mix, Order, Shuffle
from pipeline.streaming.shards import KeptRows, ShardRows
from pipeline.streaming.stream import Stream
from pipeline.streaming.window import POLL_S, Arrays, PositionRequest, Transport, Window
from storage.batches.positions import PositionStream
from storage.batches.reader import Batch
from storage.batches.ring import Slot

PLANS = 64
"""Batches planned ahead at most, where nothing has to be asked for."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Say which positions a rank takes, and in which order the samples come.

    Args:
        batch_size: samples per GLOBAL batch, a multiple of world_size.
        start: stream position to begin at.
        seed, shuffle: of the order, see `Order`.
        labels: hand out labels, too.
        window, deadline_s, patience_s: see `Window`.
        window_units: units mixed with one another where runs are shuffled.
        prefetch: batches put together ahead of the trainer, 1 or more.
    """

    batch_size: int
    rank: int = 0
    world_size: int = 1
    start: int = 0
    seed: int = 0
    shuffle: Shuffle = "full"
    labels: bool = False
    window: int = 8
    window_units: int = 8
    deadline_s: float | None = None
    patience_s: float = 600.0
    prefetch: int = 1

    @property
    def rows(self) -> int:
        """Samples per batch of this rank."""
        return self.batch_size // self.world_size


@dataclass
class _Piece:
    """Some rows of a batch that come from one place."""

    part: int
    places: np.ndarray
    """int64 (n,): rows of the batch."""
    samples: np.ndarray | None = None
    """int64 (n,): where they are read from shards."""
    key: tuple[int, int] = (0, 0)
    rows: slice = field(default_factory=lambda: slice(0))
    """Of the micro-batch of that key, where they come from a teacher."""


class StreamReader:
    """Hand out batches without end; the same face as `storage.batches.reader.BatchReader`.

    A batch stays valid until the next one is handed out; then its memory is used again.

    Args:
        stream: what is read.
        transport: who makes it.
        levels: names of the levels to hand out.
        share: which positions, in which order.

    Raises:
        ConfigError: a setting that is out of range; all at once.
    """

    def __init__(
        self, stream: Stream, transport: Transport, *, levels: Sequence[str], share: Share
    ) -> None:
        _check(stream, share)
        self.position, self.wait_s = share.start, 0.0
        self._share = share
        self._specs = stream.arrays(levels, labels=share.labels)
        self.arrays = tuple(name for name in self._specs if name not in ("image", "label"))
        self._planner = _Planner(stream, share, list(self._specs))
        self._window = Window(
            transport,
            self._planner.requests(),
            size=share.window,
            deadline_s=share.deadline_s,
            patience_s=share.patience_s,
        )
        self._metrics, self._counted = Metrics("online", stream.name), 0
        self._held: dict[int, tuple[tuple[int, int], Arrays]] = {}
        specs = {name: (spec.dtype, spec.shape) for name, spec in self._specs.items()}
        self._ring = [Slot(share.rows, specs) for _ in range(share.prefetch + 2)]
        self._queue: queue.Queue[Slot | BaseException] = queue.Queue(share.prefetch)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    @property
    def retries(self) -> int:
        """Count the requests that went to a second teacher."""
        return self._window.retries

    def next(self) -> Batch:
        """Return the next batch.

        Raises:
            TeacherError, DataError, ConfigError: what the window or the shards raised.
        """
        started = time.perf_counter()
        slot = self._queue.get()
        self.wait_s += time.perf_counter() - started
        if isinstance(slot, BaseException):
            self._queue.put(slot)  # whoever asks again gets the same answer
            raise slot
        position = self.position
        self.position += self._share.batch_size
        return Batch(
            position=position,
            index=slot.index,
            levels={name: slot.arrays[name] for name in self.arrays},
            image=slot.arrays["image"],
            label=slot.arrays["label"] if self._share.labels else None,
        )

    __next__ = next

    def __iter__(self) -> Iterator[Batch]:
        return self

    def close(self) -> None:
        """Stop asking, and let go of what is under way."""
        self._stopped.set()
        self._thread.join()

    def __enter__(self) -> StreamReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        number = 0
        try:
            while not self._stopped.is_set():
                slot = self._ring[number % len(self._ring)]
                number += 1
                if not self._put_together(slot):
                    break
                self._hand(slot)
                self._metrics.count(retries=self.retries - self._counted)
                self._counted = self.retries
        except BaseException as error:
            self._hand(error)
        finally:
            self._held.clear()
            self._window.close()
            self._planner.close()

    def _hand(self, item: Slot | BaseException) -> None:
        """Queue a batch; meanwhile keep the window going."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
                return
            except queue.Full:
                if isinstance(item, Slot):
                    self._window.step()

    def _put_together(self, slot: Slot) -> bool:
        """Fill a slot with the next batch; return False if it was stopped."""
        while not self._planner.plans:
            self._window.step(POLL_S)
            if self._stopped.is_set():
                return False
        target = {**slot.arrays, "index": slot.index}
        for piece in self._planner.plans.popleft():
            if piece.samples is not None:
                self._planner.rows[piece.part].copy(piece.samples, piece.places, target)
                continue
            answer = self._answer(piece)
            if answer is None:
                return False
            for name, rows in target.items():
                if len(piece.places) == len(rows):
                    np.copyto(rows, answer[name][piece.rows])
                else:
                    rows[piece.places] = answer[name][piece.rows]
        return True

    def _answer(self, piece: _Piece) -> Arrays | None:
        key, answer = self._held.get(piece.part, (None, None))
        if key == piece.key:
            return answer
        self._held.pop(piece.part, None)
        while (answer := self._window.take()) is None:
            if self._stopped.is_set():
                return None
            self._window.step(POLL_S)
        if not self._share.labels or "label" in answer:
            self._held[piece.part] = (piece.key, answer)
            return answer
        answer = {**answer, "label": np.full(len(answer["index"]), -1, np.int64)}
        self._held[piece.part] = (piece.key, answer)
        return answer


class _Planner:
    """Lay out batches ahead: which rows come from which micro-batch, or from shards."""

    def __init__(self, stream: Stream, share: Share, names: list[str]) -> None:
        self._share = share
        self._mix = Mix([part.weight for part in stream.parts])
        self._orders: dict[int, Order] = {}
        self._shards: dict[int, PositionStream] = {}
        self._asked: dict[int, tuple[int, int]] = {}
        self._count = 0
        self.rows: dict[int, ShardRows] = {}
        self.plans: deque[list[_Piece]] = deque()
        for number, part in enumerate(stream.parts):
            if part.snapshot is not None:
                self.rows[number] = ShardRows(part.snapshot, names)
                self._shards[number] = PositionStream(
                    num_samples=part.snapshot.num_samples,
                    valid=part.snapshot.valid,
                    seed=share.seed + number,
                    shuffle="none" if share.shuffle == "none" else "full",
                )
                continue
            self._orders[number] = Order(
                part=number,
                num_samples=part.num_samples,
                micro_batch=part.micro_batch,
                seed=share.seed + number,
                shuffle=share.shuffle,
                samples_per_unit=part.recipe.samples_per_unit,
                window_units=share.window_units,
            )
            if part.keep is not None:
                self.rows[number] = KeptRows(part.keep, names)

    def requests(self) -> Iterator[PositionRequest | None]:
        """Yield what to ask for, in the order the batches need it."""
        share = self._share
        first = share.start + share.rank * share.rows
        while True:
            if len(self.plans) >= PLANS:
                yield None
                continue
            pairs = list(self._pieces(first, first + share.rows))
            self.plans.append([piece for piece, _ in pairs])
            yield from (request for _, request in pairs if request is not None)
            first += share.batch_size

    def close(self) -> None:
        """Close the shards."""
        for rows in self.rows.values():
            rows.close()

    def _pieces(self, first: int, stop: int) -> Iterator[tuple[_Piece, PositionRequest | None]]:
        places = self._mix.parts(first, stop)
        for part, (low, high) in enumerate(
            zip(self._mix.before(first), self._mix.before(stop), strict=True)
        ):
            mine = np.flatnonzero(places == part)
            if part in self._shards:
                samples = self._shards[part].samples(low, high - low)
                yield _Piece(part, mine, samples), None
                continue
            for batch in self._orders[part].micro_batches(low, high):
                begin, end = max(low, batch.first), min(high, batch.first + len(batch.samples))
                rows = slice(begin - batch.first, end - batch.first)
                yield self._piece(part, batch, rows, mine[begin - low : end - low])

    def _piece(
        self, part: int, batch: MicroBatch, rows: slice, places: np.ndarray
    ) -> tuple[_Piece, PositionRequest | None]:
        kept = self.rows.get(part)
        if isinstance(kept, KeptRows) and kept.has(batch.samples):
            return _Piece(part, places, kept.usable(batch.samples)[rows]), None
        piece = _Piece(part, places, key=batch.key, rows=rows)
        if self._asked.get(part) == batch.key:
            return piece, None
        self._asked[part] = batch.key
        order, home = self._orders[part], self._orders[part].home(batch)
        shared = self._share.world_size > 1 and rows != slice(0, len(batch.samples))
        if shared and home is None:
            home = batch.first // order.micro_batch
        self._count += 1
        return piece, PositionRequest(self._count - 1, batch, home=home, shared=shared)


def _check(stream: Stream, share: Share) -> None:
    problems: list[Problem | str] = []
    if share.window < 1:
        problems.append(Problem("window", str(share.window), "1 or more micro-batches"))
    if share.prefetch < 1:
        problems.append(Problem("prefetch", str(share.prefetch), "1 or more"))
    if share.batch_size < 1 or share.batch_size % share.world_size:
        allowed = f"a multiple of the {share.world_size} ranks"
        problems.append(Problem("batch_size", str(share.batch_size), allowed))
    if stream.parts[0].keep is not None and share.shuffle != "runs":
        hint = "Set data.shuffle: block."
        allowed = "block where keep is true: units fill up one after another"
        problems.append(Problem("shuffle", share.shuffle, allowed, hint))
    if problems:
        raise ConfigError(problems)
