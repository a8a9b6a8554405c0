"""Hand out units and take commit records: the whole of scheduling, with no Ray in it.

The driver holds the units in flight, those to be tried again and those given up: never one entry
per unit of the dataset. `Workers` is what it needs of a cluster; `pipeline/workers.py` has Ray's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dreamshard.errors import DreamshardError

WAIT_S = 1.0
"""Longest silence before the driver looks whether it was asked to stop."""
FRUITLESS_ROUNDS = 3
"""This many times `max_attempts` failures without a commit between them end a run: a full disk, a
lost mount. One bad unit cannot do that."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A unit to be made: its number and its count of samples."""

    unit: int
    count: int


@dataclass(frozen=True)
class Done:
    """A unit was committed; `record` is the small dict the actor returned."""

    task: Task
    record: Mapping[str, object]


@dataclass(frozen=True)
class Failed:
    """Making a unit raised; the actor lives."""

    task: Task
    error: Exception


@dataclass(frozen=True)
class Lost:
    """The actor died with the unit in flight, alone or beside another one."""

    task: Task
    alone: bool
    error: Exception


Event = Done | Failed | Lost


class Workers(Protocol):
    """Some actors that make units."""

    reserved: int
    """Actors to be left to fall idle, for units that have to run alone."""

    def free(self, *, alone: bool) -> bool:
        """Tell whether an actor can take one more unit (or has nothing else to do, if alone)."""
        ...

    def submit(self, task: Task, *, alone: bool) -> None:
        """Give a unit to a free actor; alone: with no other beside it."""
        ...

    def wait(self, timeout_s: float) -> list[Event]:
        """Return what happened, waiting for something to happen at most that long.

        Raises:
            DreamshardError: if no actor can be started.
        """
        ...


@dataclass
class Outcome:
    """How a run ended."""

    committed: int = 0
    """Units made by this run."""
    quarantined: dict[int, str] = field(default_factory=dict)
    """Units given up, with their last error."""
    interrupted: bool = False


@dataclass
class Driver:
    """Make every task once, over actors that may fail or die.

    A unit that was in flight when its actor died is tried again alone, because only then is it
    clear which unit a further death is due to.
    """

    workers: Workers
    max_attempts: int
    on_done: Callable[[Done], None]
    """Called for every commit, in the order they come; an error it raises ends the run."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between events; once true, nothing more is handed out and the units in flight
    finish."""

    def __post_init__(self) -> None:
        self._in_flight = 0
        self._again: deque[tuple[Task, bool]] = deque()
        self._attempts: dict[int, int] = {}
        self._failures_in_row = 0

    def run(self, tasks: Iterable[Task]) -> Outcome:
        """Work through the tasks.

        Raises:
            DreamshardError: if actors cannot start, a teacher cannot run, or nothing succeeds any
            more.
        """
        outcome = Outcome()
        fresh = iter(tasks)
        asked = exhausted = False
        while True:
            asked = asked or self.stopping()
            if not asked:
                exhausted = self._hand_out(fresh) or exhausted
            if self._in_flight == 0 and (asked or (exhausted and not self._again)):
                left = bool(self._again) or next(fresh, None) is not None
                outcome.interrupted = asked and left
                return outcome
            for event in self.workers.wait(WAIT_S):
                self._take(event, outcome)

    def _hand_out(self, fresh: Iterator[Task]) -> bool:
        """Fill the free actors; return whether the fresh tasks are exhausted."""
        for _ in range(len(self._again)):
            task, alone = self._again.popleft()
            if self.workers.free(alone=alone):
                self._submit(task, alone)
            else:
                self._again.append((task, alone))
        self.workers.reserved = sum(alone for _, alone in self._again)
        while self.workers.free(alone=False):
            task = next(fresh, None)
            if task is None:
                return True
            self._submit(task, alone=False)
        return False

    def _submit(self, task: Task, alone: bool) -> None:
        self._in_flight += 1
        self.workers.submit(task, alone=alone)

    def _take(self, event: Event, outcome: Outcome) -> None:
        self._in_flight -= 1
        if isinstance(event, Done):
            self._failures_in_row = 0
            self._attempts.pop(event.task.unit, None)
            outcome.committed += 1
            self.on_done(event)
            return
        self._retry(event, outcome)

    def _retry(self, event: Failed | Lost, outcome: Outcome) -> None:
        unit, text = event.task.unit, _one_line(event.error)
        certain = isinstance(event, Failed) or event.alone
        attempts = self._attempts.get(unit, 0) + certain
        self._attempts[unit] = attempts
        self._failures_in_row += 1
        if isinstance(event.error, DreamshardError) and event.error.exit_code == 4:
            raise event.error  # the teacher cannot do it: no unit will fare better
        if self._failures_in_row >= FRUITLESS_ROUNDS * self.max_attempts * self._width():
            raise event.error
        if attempts >= self.max_attempts:
            log.error("unit %d left out after %d attempts: %s", unit, attempts, text)
            outcome.quarantined[unit] = text
            del self._attempts[unit]
            return
        log.warning("unit %d goes to another actor (attempt %d): %s", unit, attempts + 1, text)
        self._again.append((event.task, isinstance(event, Lost)))

    def _width(self) -> int:
        return max(1, self._in_flight)


def _one_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:500]
