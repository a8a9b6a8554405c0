"""The driver against scripted actors: no Ray, no teacher, no disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from dreamshard.errors import TeacherError
from pipeline.driver import Done, Driver, Event, Failed, Lost, Outcome, Task


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

    def wait(self, timeout_s: float) -> list[Event]:
        slot = max(self.slots, key=len)
        task, alone = slot[0]
        self.attempts[task.unit] = self.attempts.get(task.unit, 0) + 1
        fate = self.fate(task.unit, self.attempts[task.unit], alone)
        if fate == "dies":
            lost = [Lost(each, alone=len(slot) == 1, error=OSError("killed")) for each, _ in slot]
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
        workers, max_attempts=3, on_done=lambda event: done.append(event.task.unit), **settings
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


def test_with_one_actor_a_lost_pair_is_tried_one_by_one() -> None:
    workers = ScriptedWorkers(1, lambda unit, attempt, alone: "ok" if alone or unit > 1 else "dies")
    outcome, done = drive(workers, 6)
    assert sorted(done) == list(range(6)) and not outcome.quarantined


def test_an_error_of_the_teacher_ends_the_run_at_once() -> None:
    class Broken(ScriptedWorkers):
        def wait(self, timeout_s: float) -> list[Event]:
            return [Failed(self.slots[0].pop(0)[0], TeacherError("micro_batch: too much"))]

    with pytest.raises(TeacherError, match="micro_batch"):
        drive(Broken(1, lambda *_: "ok"), 5)


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
