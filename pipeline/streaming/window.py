"""Pull micro-batches in order through a bounded window, whatever happens to those who make them.

Any worker can serve any request, so a death, a pause or a lost node costs a second request and
never a sample. Nothing here knows Ray: `Transport` is what it needs of those who answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dreamshard.errors import DreamshardError, TeacherError
from pipeline.cluster.deadline import Deadline
from pipeline.cluster.outcomes import Done, Event, Failed, Lost, Returned, Tries, one_line
from pipeline.images.reading import is_refusal
from pipeline.streaming.order import MicroBatch

POLL_S = 0.1
"""Longest wait for an answer before deadlines are looked at again (seconds)."""
MORE_S, FACTOR = 0.5, 4.0
"""A request is late after MORE_S plus FACTOR times the usual time of an answer: with what is
buffered, that hides a dead actor or node within two seconds where answers take 0.3 s."""
FIRST_DEADLINE_S = 60.0
"""While no answer came yet: a first forward pass may compile kernels."""
MAX_FAILURES = 3
"""Times a worker may fail to compute a request."""
LAST_RESORT = 3
"""Deadlines that a request may miss at every worker at once before one is asked a second time."""
MAX_DEATHS = 6
"""Workers that may die over one request before the request is taken for the reason."""
NOTICE_S = 5.0
"""Silence after which the user is told what is being waited for, and again after twice as long."""

Arrays = Mapping[str, np.ndarray]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PositionRequest:
    """One micro-batch asked for.

    Args:
        number: place in this client's sequence of requests.
        batch: what is wanted.
        home: prefer this worker (modulo their number), so that who else wants the same micro-batch
            or its neighbours asks the same one; None for the least busy.
        shared: others will ask for the same micro-batch.
    """

    number: int
    batch: MicroBatch
    home: int | None = None
    shared: bool = False


Answer = Event[Hashable, Arrays]
"""What became of a request; `work` is the ticket of its submission."""


class Transport(Protocol):
    """Some workers that serve micro-batches."""

    def workers(self) -> Sequence[str]:
        """Name those that can be asked now, in a fixed order."""
        ...

    def submit(self, worker: str, request: PositionRequest) -> Hashable:
        """Ask one of them; return a ticket that events refer to."""
        ...

    def poll(self, timeout_s: float) -> list[Answer]:
        """Return what happened, waiting for something to happen at most that long.

        Raises:
            DreamshardError: the workers serve something else than what is wanted.
        """
        ...

    def forget(self, ticket: Hashable) -> None:
        """Let go of an answer that is not wanted any more."""
        ...

    def absence(self) -> str:
        """Say what is being waited for while there are no workers."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass
class _Pending:
    """A request under way, possibly at several workers."""

    request: PositionRequest
    tickets: dict[Hashable, tuple[str, float]] = field(default_factory=dict)
    """Who was asked, and when."""
    tries: Tries = field(default_factory=Tries)
    due: float = float("inf")
    overdue: int = 0
    """Times in a row that it was late with nobody else to ask."""


class Window:
    """Hand out the answers to a sequence of requests, in order, a bounded number ahead.

    Args:
        transport: who answers.
        requests: what to ask for, without end; None where there is nothing to ask for now.
        size: answers there and under way at most, 1 or more.
        deadline_s: time after which a request goes to a second worker (seconds); None for four
            times the usual time, plus 0.5 s.
        patience_s: time without any worker after which to give up (seconds).
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        transport: Transport,
        requests: Iterator[PositionRequest | None],
        *,
        size: int,
        deadline_s: float | None = None,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport, self._requests, self._size = transport, requests, size
        self._patience_s, self._clock = patience_s, clock
        self._deadline = Deadline(
            deadline_s, factor=FACTOR, least_s=0, more_s=MORE_S, first_s=FIRST_DEADLINE_S, enough=1
        )
        self._pending: dict[int, _Pending] = {}
        self._ready: dict[int, Arrays] = {}
        self._owner: dict[Hashable, int] = {}
        self._load: dict[str, int] = {}
        self._suspects: set[str] = set()
        self._next = 0
        self._seen = clock()
        self._notice_s = NOTICE_S
        self.retries = 0
        """Requests that went to another worker."""

    @property
    def held(self) -> int:
        """Count the answers there and under way."""
        return len(self._ready) + len(self._pending)

    def next(self) -> Arrays:
        """Return the next answer, waiting for it.

        Raises:
            TeacherError: a request cannot be computed, or no worker comes for too long.
        """
        while (answer := self.take()) is None:
            self.step(POLL_S)
        return answer

    def take(self) -> Arrays | None:
        """Return the next answer if it is there."""
        answer = self._ready.pop(self._next, None)
        if answer is not None:
            self._next += 1
        return answer

    def step(self, timeout_s: float = 0.0) -> None:
        """Keep the window full, take what arrived, ask again for what is late."""
        self._fill()
        for event in self._transport.poll(timeout_s):
            self._note(event)
        self._hurry()
        self._fill()

    def close(self) -> None:
        """Let go of everything that is under way."""
        for ticket in list(self._owner):
            self._transport.forget(ticket)
        self._owner.clear()
        self._pending.clear()
        self._ready.clear()
        self._transport.close()

    def _fill(self) -> None:
        workers = self._transport.workers()
        now = self._clock()
        if not workers:
            self._wait_for_workers(now)
            return
        self._seen, self._notice_s = now, NOTICE_S
        for name in set(self._load) - set(workers):
            self._suspects.discard(name)
        for pending in self._pending.values():
            if not pending.tickets:
                self._ask(pending, workers)
        while self.held < self._size:
            request = next(self._requests)
            if request is None:
                break
            pending = self._pending[request.number] = _Pending(request)
            self._ask(pending, workers)

    def _ask(self, pending: _Pending, workers: Sequence[str]) -> None:
        """Send a request to a worker that does not have it yet, if there is one."""
        tried = {name for name, _ in pending.tickets.values()}
        free = [name for name in workers if name not in tried] or list(workers)
        trusted = [name for name in free if name not in self._suspects] or free
        home = pending.request.home
        if home is not None and not pending.tickets and workers[home % len(workers)] in trusted:
            worker = workers[home % len(workers)]
        else:
            worker = min(trusted, key=lambda name: self._load.get(name, 0))
        now = self._clock()
        ticket = self._transport.submit(worker, pending.request)
        pending.tickets[ticket] = (worker, now)
        pending.due = now + self._deadline.limit_s * 2 ** (len(pending.tickets) - 1)
        self._owner[ticket] = pending.request.number
        self._load[worker] = self._load.get(worker, 0) + 1

    def _note(self, event: Answer) -> None:
        number = self._owner.pop(event.work, None)
        if number is None:
            return
        pending = self._pending.get(number)
        if pending is None:
            self._transport.forget(event.work)
            return
        worker, asked = pending.tickets.pop(event.work)
        self._load[worker] -= 1
        if isinstance(event, Done):
            self._arrive(pending, worker, asked, event.value)
        else:
            self._retry(pending, worker, event)

    def _arrive(self, pending: _Pending, worker: str, asked: float, value: Arrays) -> None:
        self._deadline.note(self._clock() - asked)
        self._suspects.discard(worker)
        for ticket, (other, _) in pending.tickets.items():
            self._load[other] -= 1
            self._owner[ticket] = -1  # nobody waits for it any more
        number = pending.request.number
        del self._pending[number]
        self._ready[number] = value

    def _retry(
        self,
        pending: _Pending,
        worker: str,
        event: Failed[Hashable] | Lost[Hashable] | Returned[Hashable],
    ) -> None:
        text, tries = one_line(event.error), pending.tries
        tries.note(event)
        final = isinstance(event.error, DreamshardError) and not is_refusal(event.error)
        if isinstance(event, Failed) and final:
            raise event.error
        if tries.failures >= MAX_FAILURES:
            raise TeacherError(
                f"teacher: could not compute samples {_some(pending)}, tried "
                f"{tries.failures} times: {text}"
            ) from event.error
        if tries.deaths >= MAX_DEATHS:
            raise TeacherError(
                f"teacher: {tries.deaths} actors died over samples {_some(pending)} (the "
                f"last one: {text}). Memory is the usual reason: try half of --micro_batch, or "
                "look at the actors' logs."
            ) from event.error
        self.retries += 1
        log.warning("%s: %s; its samples are asked for elsewhere", worker, text)

    def _hurry(self) -> None:
        """Ask a second worker for what is late, and trust the first one less."""
        now = self._clock()
        late = [p for p in self._pending.values() if p.tickets and now >= p.due]
        if not late:
            return
        workers = self._transport.workers()
        for pending in late:
            slow = {name for name, _ in pending.tickets.values()}
            if not set(workers) - slow and (not workers or pending.overdue < LAST_RESORT):
                pending.overdue += 1
                pending.due = now + self._deadline.limit_s  # nobody else to ask
                continue
            # All have it and none answers: an answer may be lost, so one is asked once more.
            pending.overdue = 0
            self._suspects |= slow
            self.retries += 1
            log.warning(
                "%s: no answer for %.1f s; its samples are asked for elsewhere, too",
                ", ".join(sorted(slow)),
                now - min(asked for _, asked in pending.tickets.values()),
            )
            self._ask(pending, workers)

    def _wait_for_workers(self, now: float) -> None:
        waited = now - self._seen
        if waited >= self._patience_s:
            raise TeacherError(
                f"stream: got no teacher actor for {waited:.0f} s, allowed patience_s = "
                f"{self._patience_s:g}. {self._transport.absence()}"
            )
        if waited >= self._notice_s:
            log.warning(
                "waiting for %s (%.0f s; giving up after %.0f s)",
                self._transport.absence(),
                waited,
                self._patience_s,
            )
            self._notice_s *= 2


def _some(pending: _Pending) -> str:
    samples = pending.request.batch.samples
    return f"{samples[:3].tolist()}..." if len(samples) > 3 else str(samples.tolist())
