"""The commit protocol under schedules: who does what when, dies, sleeps, has a bad clock.

Every single event at every step, and drawn ones of two to four events: 10,000 in all, or as many
as DREAMSHARD_PROTOCOL says (`make protocol`). A failure prints the schedule, which plays the same
again:

    pytest tests/protocol -k kept   # after adding it to kept.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.protocol.kept import KEPT
from tests.protocol.play import model, parse, play, schedules
from tests.protocol.scenarios import SCENARIOS
from tests.protocol.world import KINDS

SCHEDULES = int(os.environ.get("DREAMSHARD_PROTOCOL", "10000"))
MIN_DRAWN = 100
SEED = int(os.environ.get("DREAMSHARD_PROTOCOL_SEED", "0"))


@pytest.fixture(autouse=True, scope="module")
def _model() -> Iterator[None]:
    with model():
        yield


def broken(texts: Iterator[str] | tuple[str, ...]) -> tuple[int, list[str]]:
    """Play schedules; return how many, and what went wrong in the first few that did."""
    count, wrong = 0, []
    for text in texts:
        name, plan = parse(text)
        world = play(SCENARIOS[name], plan)
        count += 1
        if world.violations:
            wrong.append(f"{text}: {'; '.join(world.violations)}")
            if len(wrong) == 5:
                break
    return count, wrong


def test_kept_schedules() -> None:
    assert broken(KEPT)[1] == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_schedules(name: str) -> None:
    steps = play(SCENARIOS[name], {}).steps
    single = steps * len(KINDS)
    drawn = max(MIN_DRAWN, -(-SCHEDULES // len(SCENARIOS)) - single)
    count, wrong = broken(schedules(name, steps, count=drawn, seed=SEED))
    assert wrong == []
    assert count == single + drawn
