"""Minutes become steps: by a plan that is kept, so that runs go on to the very steps planned."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dreamshard.errors import ConfigError, DataError
from pipeline.learning.pretraining.budget import (
    PLAN,
    RESERVED,
    Plan,
    fitted_average,
    make_plan,
    measure,
    plan_of,
    tell_plan,
)

USED = 60 * (1 - RESERVED)


def test_a_plan_is_kept_and_extended_at_the_rate_measured_then(tmp_path: Path) -> None:
    assert plan_of(tmp_path, minutes=2) is None
    first = make_plan(tmp_path, minutes=2, rate=1.0, warmup=10)
    assert first == Plan(2, int(2 * USED), 1.0) == plan_of(tmp_path, minutes=2)
    assert plan_of(tmp_path, minutes=5) is None, "more minutes have to be planned"
    longer = make_plan(tmp_path, minutes=5, rate=2.0, warmup=10)
    assert longer.steps == first.steps + int(3 * USED * 2)
    assert plan_of(tmp_path, minutes=5) == longer
    with pytest.raises(ConfigError, match="minutes: got 2, allowed 5, which this run was given"):
        plan_of(tmp_path, minutes=2)
    anew = make_plan(tmp_path, minutes=2, rate=3.0, warmup=10, anew=True)
    assert plan_of(tmp_path, minutes=2) == anew


def test_a_budget_shorter_than_the_warm_up_says_what_would_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give at least 0.9 minutes, or a shorter") as error:
        make_plan(tmp_path, minutes=0.5, rate=1.0, warmup=50)
    assert "minutes: got 0.5 (28 steps" in str(error.value)
    assert make_plan(tmp_path, minutes=0.9, rate=1.0, warmup=50).steps == 51


@pytest.mark.parametrize("damage", ["{", '{"format": 1, "plans": [{"minutes": 1}]}', "[1]"])
def test_a_damaged_plan_is_told(tmp_path: Path, damage: str) -> None:
    (tmp_path / PLAN).write_text(damage)
    with pytest.raises(DataError, match=r"budget\.json: got a plan that cannot be used"):
        plan_of(tmp_path, minutes=1)
    make_plan(tmp_path, minutes=1, rate=9.0, warmup=1, anew=True)
    text = (tmp_path / PLAN).read_text()
    (tmp_path / PLAN).write_text(text.replace('"steps": 5', '"steps": 6'))
    with pytest.raises(DataError, match="cannot be used"):
        plan_of(tmp_path, minutes=1)
    assert json.loads(text)["plans"][0]["rate"] == 9.0


def test_the_rate_is_that_of_settled_steps() -> None:
    pauses = iter([0.2, 0.1, *[0.01] * 10])
    taken = []

    def steps():
        for pause in pauses:
            time.sleep(pause)
            taken.append(pause)
            yield pause

    rate = measure(steps(), minutes=0.01, tell=lambda seconds: seconds)
    assert len(taken) == 5, "two to settle, and the fewest"
    assert 20 < rate <= 100


def test_what_a_budget_buys_is_told() -> None:
    told = tell_plan(Plan(10, 500, 0.9), batch_size=64, images=16000)
    assert "10 min buy 500 steps: 32,000 images seen, each 2 times, at 57.6 images/s" in told
    assert fitted_average(500) == pytest.approx(0.98) and fitted_average(1) == 0.0
