"""A training that is given minutes instead of steps: what they buy, measured before it begins.

The plan of a run is kept beside its checkpoints, so that a run that was stopped goes on to the very
steps it was planned for, whatever the machine does meanwhile, and one that is given more minutes is
extended by what the further ones buy at the rate measured then.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.files import read_bytes
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import SEAL, parse_sealed, sealed_json
from dreamshard.runfolder import write_text

PLAN = "budget.json"
FORMAT = 1
LEFT_OUT = 2
"""Steps before the measured ones: memory is taken, kernels are chosen or compiled (count)."""
FEWEST, MOST = 3, 200
"""Steps that are measured (count)."""
SHARE = 0.02
"""Of the budget that is spent on measuring, where that is more than the fewest steps."""
RESERVED = 0.05
"""Of the budget, kept for checkpoints and samples."""
AVERAGED = 0.1
"""Span of the averaged weights, as a share of the run's steps."""


@dataclass(frozen=True)
class Plan:
    """Say how many steps some minutes buy.

    Args:
        minutes: of the whole run.
        steps: of the whole run (count).
        rate: steps per second when it was measured.
    """

    minutes: float
    steps: int
    rate: float


def measure(steps: Iterable[object], *, minutes: float, tell: Callable[[float], float]) -> float:
    """Return the rate of steps that are taken for this alone, in steps per second.

    Args:
        steps: as they are taken; each counts once its results are there.
        minutes: of the budget, a small share of which is spent here.
        tell: turns this process's seconds of a step into those that all processes agree upon.
    """
    taken, wanted, before = [], FEWEST, time.perf_counter()
    for number, _ in enumerate(steps):
        now = time.perf_counter()
        if number == LEFT_OUT:
            step = max(tell(now - before), 1e-9)
            wanted = int(min(max(SHARE * 60 * minutes / step, FEWEST), MOST))
        if number >= LEFT_OUT:
            taken.append(now - before)
        if len(taken) == wanted:
            break
        before = now
    return 1 / max(tell(statistics.median(taken)), 1e-9)


def plan_of(run_dir: Path, *, minutes: float) -> Plan | None:
    """Return the plan that a run has for its minutes; None where it has to be made.

    Raises:
        ConfigError: the run was given more minutes before.
        DataError: what is there is damaged.
    """
    last = next(reversed(_plans(run_dir)), None)
    if last is not None and last.minutes > minutes:
        hint = "Choose another --out, or begin anew with --overwrite true."
        allowed = f"{last.minutes:g}, which this run was given before, or more"
        raise ConfigError(Problem("minutes", f"{minutes:g}", allowed, hint))
    return last if last is not None and last.minutes == minutes else None


def make_plan(
    run_dir: Path, *, minutes: float, rate: float, warmup: int, anew: bool = False
) -> Plan:
    """Plan a run, or the further minutes of one; keep the plan in the run's folder.

    Args:
        run_dir: the run's folder, made if it is not there.
        minutes: of the whole run.
        rate: measured, in steps per second.
        warmup: steps over which the learning rate rises (count).
        anew: whatever the run was given before is gone.

    Raises:
        ConfigError: the minutes do not buy more steps than the warm-up has.
    """
    plans = [] if anew else _plans(run_dir)
    last = plans[-1] if plans else Plan(0.0, 0, rate)
    bought = int((minutes - last.minutes) * 60 * (1 - RESERVED) * rate)
    plan = Plan(minutes, last.steps + max(bought, 0), rate)
    if plan.steps <= max(warmup, last.steps):
        more = (max(warmup, last.steps) + 1 - last.steps) / (60 * (1 - RESERVED) * rate)
        least = math.ceil(100 * (last.minutes + more)) / 100
        hint = f"Give at least {least:g} minutes, or a shorter --warmup_steps."
        got = f"{minutes:g} ({plan.steps} steps at the {rate:.3g} steps/s measured)"
        allowed = f"more than the {warmup} steps of the warm-up (warmup_steps)"
        raise ConfigError(Problem("minutes", got, allowed, hint))
    content = {"format": FORMAT, "plans": [asdict(each) for each in (*plans, plan)]}
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / PLAN, sealed_json(content, indent=2).decode())
    return plan


def fitted_average(steps: int) -> float:
    """Return the decay of averaged weights whose span is a tenth of a run of these steps."""
    return max(0.0, 1 - 1 / max(1.0, AVERAGED * steps))


def tell_plan(plan: Plan, *, batch_size: int, images: int) -> str:
    """Say what a budget buys.

    Args:
        plan: of the run.
        batch_size: images of a step (count).
        images: of the source (count).
    """
    seen = plan.steps * batch_size
    return (
        f"{plan.minutes:g} min buy {plan.steps:,} steps: {seen:,} images seen, each "
        f"{seen / max(images, 1):.3g} times, at {plan.rate * batch_size:.3g} images/s (measured); "
        f"average over {AVERAGED:.0%} of the steps (decay {fitted_average(plan.steps):.4g}), "
        f"{RESERVED:.0%} of the time kept for checkpoints and samples"
    )


def _plans(run_dir: Path) -> list[Plan]:
    path = run_dir / PLAN
    if not path.exists():
        return []
    try:
        content, sealed = parse_sealed(read_bytes(path), where=str(path))
        if not sealed or content.get("format") != FORMAT:
            raise ValueError("another format")
        content.pop(SEAL)
        return [_plan(value) for value in content["plans"]]
    except CannotReadError:
        raise
    except Exception as error:  # of whatever is in there
        raise DataError(
            f"{path}: got a plan that cannot be used ({error}), allowed what this run wrote. "
            "Remove it and give --steps, or begin anew with --overwrite true."
        ) from error


def _plan(value: dict[str, Any]) -> Plan:
    minutes, steps, rate = value["minutes"], value["steps"], value["rate"]
    if type(steps) is not int or steps < 1 or not (minutes > 0 and rate > 0):
        raise ValueError(f"{steps!r:.20} steps in {minutes!r:.20} minutes")
    return Plan(float(minutes), steps, float(rate))
