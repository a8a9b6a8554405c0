"""The driver against scripted actors: no Ray, no teacher, no disk."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

import pytest

from dreamshard.errors import DataError, TeacherError
from pipeline.cluster.deadline import Deadline
from pipeline.cluster.outcomes import Done, Failed, Lost, Returned
from pipeline.offline import driver as driver_module
from pipeline.offline.driver import Driver, Late, Outcome, Task, UnitEvent


class ScriptedWorkers:
    """Actors of which `fate(unit, attempt, alone)` says what becomes of each unit."""

    def __init__(self, actors: int, fate: Callable[[int, int, bool], str]) -> None:
        self.reserved = 0
        self.slots: list[list[tuple[Task, bool]]] = [[] for _ in range(actors)]
        self.fate, self.attempts = fate, dict[int, int]()
        self.submitted: list[int] = []
        self.most = 0

    def _find(self, alone: bool) -> list[tuple[Task, bool]] | None:
        slots = sorted(self.slots, key=len)
        if alone:
            return slots[0] if not slots[0] else None
        for slot in slots[self.reserved :]:
            if len(slot) < 2 and not any(each for _, each in slot):
                return slot
        return None

    def free(self, *, alone: bool) -> bool:
        return self._find(alone) is not None

    def submit(self, task: Task, *, alone: bool) -> None:
        slot = self._find(alone)
        assert slot is not None
        slot.append((task, alone))
        self.submitted.append(task.unit)
        self.most = max(self.most, sum(map(len, self.slots)))

    def late(self, limit_s: float) -> list[Late]:
        return []

    def replace(self, late: Late) -> None:
        raise AssertionError("nothing was late")

    def _next(self) -> list[tuple[Task, bool]]:
        """Choose whose unit ends next: that of the busiest actor."""
        return max(self.slots, key=len)

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        slot = self._next()
        task, alone = slot[0]
        self.attempts[task.unit] = self.attempts.get(task.unit, 0) + 1
        fate = self.fate(task.unit, self.attempts[task.unit], alone)
        if fate == "dies":
            lost = [Lost(each, OSError("killed"), alone=len(slot) == 1) for each, _ in slot]
            slot.clear()
            return list(lost)
        slot.pop(0)
        if fate == "ok":
            return [Done(task, {"unit": task.unit, "count": task.count})]
        return [Failed(task, RuntimeError(fate))]


def drive(
    workers: ScriptedWorkers, units: int, **settings: Callable[[], bool]
) -> tuple[Outcome, list[int]]:
    done: list[int] = []
    driver = Driver(
        workers, max_attempts=3, on_done=lambda event: done.append(event.work.unit), **settings
    )
    return driver.run(Task(unit, 10) for unit in range(units)), done


def test_every_unit_once_with_at_most_two_in_flight_per_actor() -> None:
    workers = ScriptedWorkers(3, lambda unit, attempt, alone: "ok")
    outcome, done = drive(workers, 50)
    assert sorted(done) == list(range(50))
    assert outcome.committed == 50 and not outcome.quarantined and not outcome.interrupted
    assert workers.most == 6


def test_a_failure_is_retried() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "ok" if attempt > 2 else "disk")
    outcome, done = drive(workers, 5)
    assert sorted(done) == list(range(5)) and not outcome.quarantined


def test_a_bad_unit_is_left_out_and_the_rest_made() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "bad" if unit == 3 else "ok")
    outcome, done = drive(workers, 8)
    assert sorted(done) == [0, 1, 2, 4, 5, 6, 7]
    assert list(outcome.quarantined) == [3] and "bad" in outcome.quarantined[3]


def test_a_unit_that_kills_its_actor_is_found_and_its_neighbours_are_not_blamed() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "dies" if unit == 4 else "ok")
    outcome, done = drive(workers, 12)
    assert list(outcome.quarantined) == [4]
    assert sorted(done) == [unit for unit in range(12) if unit != 4]


def test_a_unit_that_has_to_run_alone_does_not_wait_for_the_end() -> None:
    class InTurn(ScriptedWorkers):
        def _next(self) -> list[tuple[Task, bool]]:
            self.slots.append(self.slots.pop(0))
            return next(slot for slot in self.slots if slot)

    workers = InTurn(2, lambda unit, attempt, alone: "dies" if unit == 4 else "ok")
    outcome, done = drive(workers, 200)
    assert list(outcome.quarantined) == [4] and len(done) == 199
    places = [place for place, unit in enumerate(workers.submitted) if unit == 4]
    assert len(places) == 4 and places[-1] < 60, "an actor was kept free for it"


def test_many_first_failures_side_by_side_do_not_end_a_run() -> None:
    workers = ScriptedWorkers(12, lambda unit, attempt, alone: "ok" if attempt > 1 else "disk")
    outcome, done = drive(workers, 24)
    assert sorted(done) == list(range(24)) and outcome.retries == 24


def test_with_one_actor_a_lost_pair_is_tried_one_by_one() -> None:
    workers = ScriptedWorkers(1, lambda unit, attempt, alone: "ok" if alone or unit > 1 else "dies")
    outcome, done = drive(workers, 6)
    assert sorted(done) == list(range(6)) and not outcome.quarantined


def test_an_error_of_the_teacher_ends_the_run_at_once() -> None:
    class Broken(ScriptedWorkers):
        def wait(self, timeout_s: float) -> list[UnitEvent]:
            return [Failed(self.slots[0].pop(0)[0], TeacherError("micro_batch: too much"))]

    broken = Broken(1, lambda *_: "ok")
    with pytest.raises(TeacherError, match="micro_batch"):
        drive(broken, 5)
    assert broken.submitted == [0, 1], "no unit will fare better"


def test_an_error_of_the_data_is_tried_again_and_left_out() -> None:
    class Damaged(ScriptedWorkers):
        def wait(self, timeout_s: float) -> list[UnitEvent]:
            if self.slots[0][0][0].unit == 1:
                return [Failed(self.slots[0].pop(0)[0], DataError("source: cannot be read"))]
            return super().wait(timeout_s)

    outcome, done = drive(Damaged(1, lambda *_: "ok"), 4)
    assert sorted(done) == [0, 2, 3]
    assert outcome.quarantined == {1: "DataError: source: cannot be read"}
    assert outcome.retries == 2


def test_a_run_where_nothing_succeeds_ends_with_the_error() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "no space left")
    with pytest.raises(RuntimeError, match="no space left"):
        drive(workers, 1000)
    assert len(workers.submitted) < 100


def test_asked_to_stop_it_finishes_what_is_in_flight_and_hands_out_no_more() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "ok")
    outcome, done = drive(workers, 1000, stopping=lambda: len(workers.attempts) >= 10)
    assert outcome.interrupted
    assert sorted(done) == sorted(workers.submitted) and len(done) < 20


def test_asked_to_stop_when_all_is_done_it_is_not_interrupted() -> None:
    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "ok")
    outcome, done = drive(workers, 4, stopping=lambda: len(workers.submitted) == 4)
    assert not outcome.interrupted and sorted(done) == [0, 1, 2, 3]


def test_tasks_are_drawn_as_they_are_needed() -> None:
    drawn = deque[int]()

    def tasks():
        for unit in range(10**9):
            drawn.append(unit)
            yield Task(unit, 1)

    workers = ScriptedWorkers(2, lambda unit, attempt, alone: "ok")
    driver = Driver(
        workers, max_attempts=3, on_done=lambda event: None, stopping=lambda: len(drawn) > 100
    )
    assert driver.run(tasks()).committed <= 102


class StuckWorkers:
    """Actors with one unit each; `stuck` holds (unit, copy) that never end by themselves.

    Every `wait` takes a second.
    """

    def __init__(self, actors: int, stuck: set[tuple[int, int]], now: list[float]) -> None:
        self.reserved, self.now, self.stuck = 0, now, stuck
        self.held: dict[int, tuple[Task, int, float] | None] = dict.fromkeys(range(actors))
        self.copies, self.events = dict[int, int](), list[UnitEvent]()
        self.replaced, self.tardy = list[str](), set[int]()

    def free(self, *, alone: bool) -> bool:
        return None in self.held.values()

    def submit(self, task: Task, *, alone: bool) -> None:
        slot = next(number for number, held in self.held.items() if held is None)
        copy = self.copies[task.unit] = self.copies.get(task.unit, 0) + 1
        self.held[slot] = (task, copy, self.now[0])

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        self.now[0] += 1.0
        events, self.events = self.events, []
        for slot, held in self.held.items():
            if held is not None and (held[0].unit, held[1]) not in self.stuck:
                self.held[slot] = None
                events.append(Done(held[0], {"copy": held[1]}, self.now[0] - held[2]))
        return events

    def late(self, limit_s: float) -> list[Late]:
        return [
            Late(held[0], self.now[0] - held[2], f"teacher-{slot}")
            for slot, held in self.held.items()
            if held is not None and self.now[0] - held[2] > limit_s
        ]

    def replace(self, late: Late) -> None:
        slot = int(late.actor.removeprefix("teacher-"))
        held = self.held[slot]
        assert held is not None
        self.held[slot] = None
        self.replaced.append(late.actor)
        self.events.append(Failed(held[0], TimeoutError(f"{late.actor} was stuck")))


def drive_stuck(
    monkeypatch: pytest.MonkeyPatch, *, actors: int, units: int, stuck: set[tuple[int, int]]
) -> tuple[StuckWorkers, Outcome, list[int]]:
    now = [1000.0]
    monkeypatch.setattr(driver_module.time, "monotonic", lambda: now[0])
    workers, done = StuckWorkers(actors, stuck, now), list[int]()
    driver = Driver(
        workers,
        max_attempts=3,
        on_done=lambda event: done.append(event.work.unit),
        deadline=Deadline(5.0),
    )
    return workers, driver.run(Task(unit, 10) for unit in range(units)), done


def test_a_straggler_is_named_and_tried_by_another_actor_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workers, outcome, done = drive_stuck(monkeypatch, actors=2, units=4, stuck={(1, 1)})
    assert sorted(done) == [0, 1, 2, 3] and outcome.retries == 1 and not outcome.quarantined
    assert "unit 1 is late: 6 s on teacher-1, deadline 5 s" in caplog.text
    assert workers.copies[1] == 2 and not workers.replaced


def test_an_actor_that_stays_stuck_is_replaced_and_its_unit_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers, outcome, done = drive_stuck(monkeypatch, actors=2, units=60, stuck={(1, 1)})
    assert sorted(done) == list(range(60)) and outcome.committed == 60
    assert workers.replaced == ["teacher-1"]


class Told:
    """Workers that tell a list of events in turn, and of late units as they are asked to."""

    def __init__(self, told: list[list[UnitEvent]], late: list[Late]) -> None:
        self.reserved, self.told, self.tardy = 0, deque(told), late
        self.submitted: list[tuple[int, bool]] = []
        self.room = 9

    def free(self, *, alone: bool) -> bool:
        return len(self.submitted) < self.room

    def submit(self, task: Task, *, alone: bool) -> None:
        self.submitted.append((task.unit, alone))

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        return self.told.popleft()

    def late(self, limit_s: float) -> list[Late]:
        return self.tardy

    def replace(self, late: Late) -> None:
        raise AssertionError("nothing is stuck")


def test_of_two_copies_one_may_fail_and_the_other_decides() -> None:
    unit, given_up, retries = Task(0, 10), list[int](), list[None]()
    failed, done = Failed(unit, OSError("disk")), Done(unit, {"unit": 0})
    workers = Told([[], [failed], [done]], [Late(unit, 6.0, "teacher-1")])
    driver = Driver(
        workers,
        max_attempts=1,
        on_done=lambda event: None,
        on_given_up=lambda task, *_: given_up.append(task.unit),
        on_retry=lambda: retries.append(None),
        deadline=Deadline(5.0),
    )
    outcome = driver.run([unit])
    assert outcome.committed == 1 and not outcome.quarantined and not given_up
    assert workers.submitted == [(0, False), (0, False)]
    assert outcome.retries == len(retries) == 1, "the copy, and no third one"


class OneAtATime(Told):
    """Workers with one place, and with more once something has happened."""

    def wait(self, timeout_s: float) -> list[UnitEvent]:
        events = super().wait(timeout_s)
        self.room += bool(events) * 9
        return events


def test_a_unit_that_waits_already_is_not_given_out_twice() -> None:
    unit = Task(0, 10)

    returned, done = Returned(unit, OSError("replaced")), Done(unit, {"unit": 0})
    workers = OneAtATime([[], [returned], [done]], [Late(unit, 6.0, "teacher-1")])
    workers.room = 1
    outcome = Driver(workers, 3, lambda event: None, deadline=Deadline(5.0)).run([unit])
    assert workers.submitted == [(0, False), (0, False)] and outcome.retries == 1


def test_a_late_unit_that_is_done_meanwhile_is_not_given_out_again() -> None:
    unit = Task(0, 10)
    workers = OneAtATime([[], [Done(unit, {"unit": 0})]], [Late(unit, 6.0, "teacher-1")])
    workers.room = 1
    deadline = Deadline(5.0)
    outcome = Driver(workers, 3, lambda event: None, deadline=deadline).run([unit])
    assert outcome.committed == 1 and workers.submitted == [(0, False)]


def test_units_that_are_done_say_when_others_are_late() -> None:
    units = [Task(number, 10) for number in range(3)]
    deadline = Deadline()
    workers = Told([[Done(unit, {}, 20.0 + unit.unit)] for unit in units], [])
    Driver(workers, 3, lambda event: None, deadline=deadline).run(units)
    assert deadline.limit_s == 210.0


def test_a_unit_is_never_at_three_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1000.0, 2.0)
    monkeypatch.setattr(driver_module.time, "monotonic", lambda: next(clock))
    unit = Task(0, 10)
    late = [Late(unit, 6.0, f"teacher-{number}") for number in (1, 2)]
    done = Done(unit, {"unit": 0})
    workers = Told([[], [], [], [done], [done]], late)
    outcome = Driver(workers, 3, lambda event: None, deadline=Deadline(5.0)).run([unit])
    assert workers.submitted == [(0, False), (0, False)] and outcome.committed == 1


def test_with_one_actor_a_stuck_unit_costs_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, _, done = drive_stuck(monkeypatch, actors=1, units=3, stuck={(0, 1)})
    assert sorted(done) == [0, 1, 2] and workers.replaced == ["teacher-0"]


def test_a_unit_that_is_always_stuck_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = {(1, copy) for copy in range(1, 9)}
    _, outcome, done = drive_stuck(monkeypatch, actors=2, units=4, stuck=stuck)
    assert sorted(done) == [0, 2, 3]
    assert list(outcome.quarantined) == [1] and "stuck" in outcome.quarantined[1]


def test_a_unit_that_comes_back_unbegun_is_not_blamed() -> None:
    class Returning(ScriptedWorkers):
        def wait(self, timeout_s: float) -> list[UnitEvent]:
            slot = max(self.slots, key=len)
            count = self.attempts.get(slot[0][0].unit, 0)
            if slot[0][0].unit == 2 and count < 9:
                self.attempts[2] = count + 1
                return [Returned(slot.pop(0)[0], OSError("replaced"))]
            return super().wait(timeout_s)

    outcome, done = drive(Returning(2, lambda *_: "ok"), 5)
    assert sorted(done) == list(range(5)) and outcome.retries == 9 and not outcome.quarantined


def test_what_is_left_out_is_told_at_once() -> None:
    told: list[tuple[int, str, int]] = []
    driver = Driver(
        ScriptedWorkers(2, lambda unit, attempt, alone: "bad" if unit == 3 else "ok"),
        max_attempts=3,
        on_done=lambda event: None,
        on_given_up=lambda task, why, attempts: told.append((task.unit, why, attempts)),
    )
    driver.run(Task(unit, 10) for unit in range(8))
    assert told == [(3, "RuntimeError: bad", 3)]
