"""Hand out units and take commit records: the whole of scheduling, with no Ray in it.

The driver holds the units in flight, those to be tried again and those given up: never one entry
per unit of the dataset. `Workers` is what it needs of a cluster; `workers.py` beside it has Ray's.

A unit that takes too long is named and given to a second actor; whichever commits first wins, and
the other one's answer is passed over. An actor that is stuck for twice that long is replaced.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from dreamshard.errors import DreamshardError
from pipeline.cluster.deadline import Deadline
from pipeline.cluster.outcomes import Done, Event, Failed, Lost, Returned, Tries, one_line

LOOK_S = 1.0
"""Seconds between two looks for units that are late."""
WAIT_S = 1.0
"""Longest silence before the driver looks whether it was asked to stop."""
GRACE = 2.0
"""Times the deadline, until the actor that is late is taken for stuck and replaced."""
FRUITLESS_ROUNDS = 3
"""This many times `max_attempts` failures without a commit between them end a run: a full disk, a
lost mount. One bad unit cannot do that."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A unit to be made: its number and its count of samples."""

    unit: int
    count: int


Record = Mapping[str, object]
"""What an actor tells of a unit it committed."""
UnitEvent = Event[Task, Record]


@dataclass(frozen=True)
class Late:
    """A unit that takes long: how long so far, and where."""

    task: Task
    seconds: float
    actor: str


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

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        """Return what happened, waiting for something to happen at most that long.

        Raises:
            DreamshardError: if no actor can be started.
        """
        ...

    def late(self, limit_s: float) -> list[Late]:
        """List the units that were begun longer ago; their actors get no others until then."""
        ...

    def replace(self, late: Late) -> None:
        """Kill the actor that is stuck with a unit: that one failed, its others are returned."""
        ...


@dataclass
class Outcome:
    """How a run ended."""

    committed: int = 0
    """Units made by this run."""
    quarantined: dict[int, str] = field(default_factory=dict)
    """Units given up, with their last error."""
    retries: int = 0
    """Times a unit was given out again."""
    interrupted: bool = False


@dataclass
class Driver:
    """Make every task once, over actors that may fail or die.

    A unit that was in flight when its actor died is tried again alone, because only then is it
    clear which unit a further death is due to.
    """

    workers: Workers
    max_attempts: int
    on_done: Callable[[Done[Task, Record]], None]
    """Called for every commit, in the order they come; an error it raises ends the run."""
    stopping: Callable[[], bool] = lambda: False
    """Asked between events; once true, nothing more is handed out and the units in flight
    finish."""
    on_given_up: Callable[[Task, str, int], None] = lambda task, why, attempts: None
    """Called for every unit that is left out, with its last error and the count of attempts."""
    on_retry: Callable[[], None] = lambda: None
    """Called whenever a unit is to be given out again."""
    deadline: Deadline = field(default_factory=Deadline)
    """How long a unit may take."""

    def __post_init__(self) -> None:
        self._copies: dict[int, int] = {}  # in flight, by unit
        self._settled: set[int] = set()  # done or given up, with a copy still in flight
        self._again: deque[tuple[Task, bool]] = deque()
        self._tries: dict[int, Tries] = {}
        self._named: set[tuple[int, str]] = set()
        self._failures_in_row = 0
        self._next_look = 0.0

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
            waited_for = len(self._copies) - len(self._settled)
            if waited_for == 0 and (asked or (exhausted and not self._again)):
                left = bool(self._again) or next(fresh, None) is not None
                outcome.interrupted = asked and left
                return outcome
            for event in self.workers.wait(WAIT_S):
                self._take(event, outcome)
            self._look_for_late(outcome)

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
        self._copies[task.unit] = self._copies.get(task.unit, 0) + 1
        self.workers.submit(task, alone=alone)

    def _take(self, event: UnitEvent, outcome: Outcome) -> None:
        unit = event.work.unit
        self._copies[unit] -= 1
        if not self._copies[unit]:
            del self._copies[unit]
        if unit in self._settled:  # another copy was first
            if unit not in self._copies:
                self._settled.discard(unit)
            return
        if isinstance(event, Returned):
            self._give_again(event.work, alone=False, outcome=outcome)
        elif not isinstance(event, Done):
            self._retry(event, outcome)
        else:
            self._failures_in_row = 0
            self._settle(unit)
            self.deadline.note(event.seconds)
            outcome.committed += 1
            self.on_done(event)

    def _settle(self, unit: int) -> None:
        """Forget a unit, but for copies of it that are still in flight."""
        self._tries.pop(unit, None)
        if unit in self._copies:
            self._settled.add(unit)
        if self._named or self._again:
            self._named = {named for named in self._named if named[0] != unit}
            self._again = deque(item for item in self._again if item[0].unit != unit)

    def _retry(self, event: Failed[Task] | Lost[Task], outcome: Outcome) -> None:
        unit, text = event.work.unit, one_line(event.error)
        tries = self._tries.setdefault(unit, Tries())
        tries.note(event)
        attempts = tries.failures + tries.deaths
        self._failures_in_row += 1
        if isinstance(event.error, DreamshardError) and event.error.exit_code == 4:
            raise event.error  # the teacher cannot do it: no unit will fare better
        if self._failures_in_row >= FRUITLESS_ROUNDS * self.max_attempts * self._width():
            raise event.error
        if unit in self._copies:  # the other copy decides
            return
        if attempts >= self.max_attempts:
            log.error("unit %d left out after %d attempts: %s", unit, attempts, text)
            outcome.quarantined[unit] = text
            self._settle(unit)
            self.on_given_up(event.work, text, attempts)
            return
        log.warning("unit %d goes to another actor (attempt %d): %s", unit, attempts + 1, text)
        self._give_again(event.work, alone=isinstance(event, Lost), outcome=outcome)

    def _give_again(
        self, task: Task, *, alone: bool, outcome: Outcome, most_copies: int = 0
    ) -> None:
        """Give a unit out once more, unless it waits for that already or others are at it."""
        waits = any(item[0].unit == task.unit for item in self._again)
        if waits or self._copies.get(task.unit, 0) > most_copies:
            return
        outcome.retries += 1
        self._again.append((task, alone))
        self.on_retry()

    def _look_for_late(self, outcome: Outcome) -> None:
        """Name units that are late and give them out once more; replace actors that are stuck."""
        now, limit_s = time.monotonic(), self.deadline.limit_s
        if now < self._next_look or limit_s == float("inf"):
            return
        self._next_look = now + min(LOOK_S, limit_s / 4)
        for late in self.workers.late(limit_s):
            unit = late.task.unit
            if late.seconds > GRACE * limit_s:
                log.warning("unit %d: %s is stuck with it; replacing it", unit, late.actor)
                self.workers.replace(late)
            elif (unit, late.actor) not in self._named and unit not in self._settled:
                self._named.add((unit, late.actor))
                log.warning(
                    "unit %d is late: %.0f s on %s, deadline %.0f s; another actor tries it, too",
                    *(unit, late.seconds, late.actor, limit_s),
                )
                self._give_again(late.task, alone=False, outcome=outcome, most_copies=1)

    def _width(self) -> int:
        return max(1, len(self._copies))
