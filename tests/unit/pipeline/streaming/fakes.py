"""Workers that answer, die, pause and come back on a schedule, in no time at all."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.cluster.outcomes import Done, Failed, Lost
from pipeline.streaming.order import MicroBatch
from pipeline.streaming.window import Answer, PositionRequest


@dataclass
class Fault:
    """What happens to the `number`-th request that is submitted."""

    kind: str
    """die, fail, hang (never answered), slow (answered late)."""
    delay: float = 0.0


class FakeTransport:
    """Serve requests in simulated time.

    Args:
        names: the workers.
        faults: by number of the submission.
        compute_s: time of an answer.
        back_s: time a dead worker stays away.
        value: answer of a micro-batch.
    """

    def __init__(
        self,
        names: Sequence[str] = ("a", "b"),
        *,
        faults: dict[int, Fault] | None = None,
        compute_s: float = 0.04,
        back_s: float = 5.0,
        error: Exception | None = None,
    ) -> None:
        self.now = 0.0
        self.names, self.faults = list(names), dict(faults or {})
        self.compute_s, self.back_s, self.error = compute_s, back_s, error
        self.away: dict[str, float] = {}
        self.noticed: dict[str, float] = {}
        """Until when a worker is away, as the client knows since it last polled."""
        self.free: dict[str, float] = dict.fromkeys(names, 0.0)
        self.tickets = itertools.count()
        self.flying: dict[int, tuple[float, str, Answer]] = {}
        self.held: set[Hashable] = set()
        self.asked: list[tuple[str, PositionRequest]] = []
        self.times: list[float] = []
        """When each of them was asked for."""
        self.most = 0
        self.closed = False

    def clock(self) -> float:
        return self.now

    def workers(self) -> Sequence[str]:
        return [name for name in self.names if self.noticed.get(name, -1.0) <= self.now]

    def submit(self, worker: str, request: PositionRequest) -> Hashable:
        assert worker in self.workers(), "a worker known to be away"
        number = next(self.tickets)
        self.asked.append((worker, request))
        self.times.append(self.now)
        fault = self.faults.get(number)
        start = max(self.now, self.free[worker])
        done = start + self.compute_s + (fault.delay if fault else 0.0)
        self.held.add(number)
        if (fault and fault.kind == "die") or self.away.get(worker, -1.0) > self.now:
            self._kill(worker, number)
            return number
        if fault and fault.kind == "hang":
            return number
        event: Answer = Done(number, answer(request.batch))
        if fault and fault.kind == "fail":
            event = Failed(number, self.error or OSError("storage went away"))
        if not fault or fault.kind != "slow":
            self.free[worker] = done
        self.flying[number] = (done, worker, event)
        self.most = max(self.most, len(self.held))
        return number

    def _kill(self, worker: str, number: int) -> None:
        self.away[worker] = max(self.away.get(worker, 0.0), self.now + self.back_s)
        self.free[worker] = self.now + self.back_s
        for ticket, (_, owner, _) in list(self.flying.items()):
            if owner == worker:
                self.flying[ticket] = (self.now, worker, Lost(ticket, RuntimeError("killed")))
        self.flying[number] = (self.now, worker, Lost(number, RuntimeError("killed")))

    def poll(self, timeout_s: float) -> list[Answer]:
        soonest = min((done for done, _, _ in self.flying.values()), default=self.now + timeout_s)
        self.now = max(self.now, min(self.now + max(timeout_s, 0.001), soonest))
        self.noticed.update(self.away)
        ready = sorted(
            (done, ticket) for ticket, (done, _, _) in self.flying.items() if done <= self.now
        )
        return [self.flying.pop(ticket)[2] for _, ticket in ready]

    def forget(self, ticket: Hashable) -> None:
        self.held.discard(ticket)

    def absence(self) -> str:
        return "the fakes"

    def close(self) -> None:
        self.closed = True


def answer(batch: MicroBatch) -> dict[str, np.ndarray]:
    """Return what every worker says: a function of the samples alone."""
    samples = batch.samples
    return {
        "index": samples.copy(),
        "image": np.repeat((samples % 251).astype(np.uint8), 12).reshape(-1, 2, 2, 3),
        "b2": (samples[:, None] * 3 % 1000).astype(np.float16) * np.ones(4, np.float16),
    }
