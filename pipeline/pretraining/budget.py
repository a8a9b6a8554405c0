"""Fit a run to a time: how many steps a budget buys, and the warm-up and averaging that go with it.

The rate is measured on the very network, device and batch, after its kernels are compiled; the plan
is written beside the checkpoint, so that a rerun within the budget's run keeps the same schedule
and ends with the very weights of an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.progress import stage
from dreamshard.runfolder import write_text
from pipeline.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE = "plan.json"
WARMUP_STEPS = 5
"""Steps before the clock starts: kernels are compiled and memory is taken."""
MEASURED_STEPS = 20
TRIAL_STEPS = WARMUP_STEPS + MEASURED_STEPS
LEAST_S = 3.0
"""The clock runs for this many steps or seconds, whichever is less."""
SPARE = 0.97
"""Share of the time that is planned: checkpoints, pictures and a slower hour take the rest."""
EMA_SHARE = 0.03
"""Half-life of the averaged weights as a share of the run, near EDM2's best for short runs."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a budget buys.

    Args:
        minutes: of training, wall time.
        seconds_per_step: as measured.
        steps, warmup_steps: of the learning rate's schedule (counts).
        ema: decay of the averaged weights per step.
        batch_size: of the steps (images).
    """

    minutes: float
    seconds_per_step: float
    steps: int
    warmup_steps: int
    ema: float
    batch_size: int

    def apply(self, config: PretrainConfig) -> PretrainConfig:
        """Return the settings of the run that was planned."""
        return dataclasses.replace(
            config, steps=self.steps, warmup_steps=self.warmup_steps, ema=self.ema
        )

    def sentence(self) -> str:
        """Say what the budget buys."""
        images = self.steps * self.batch_size
        return (
            f"{self.minutes:g} minutes buy {self.steps:,} steps of {self.batch_size} "
            f"({images:,} images, {self.batch_size / self.seconds_per_step:,.0f} a second): "
            f"warm-up {self.warmup_steps} steps, EMA {self.ema:.5f}"
        )


def make_plan(config: PretrainConfig, *, seconds_per_step: float, spent_s: float = 0.0) -> Plan:
    """Fit steps, warm-up and averaging to `config.minutes`.

    Args:
        seconds_per_step: measured.
        spent_s: seconds of the budget that are gone already (compiling, measuring).

    Raises: ConfigError if the budget does not even buy the warm-up.
    """
    assert config.minutes is not None
    left = SPARE * (60 * config.minutes - spent_s)
    steps = int(left / seconds_per_step)
    if steps <= config.warmup_steps:
        need = (config.warmup_steps + 1) * seconds_per_step / SPARE + spent_s
        allowed = f"more than {need / 60:.2g}: warmup_steps ({config.warmup_steps}) take that long"
        hint = f"A step takes {seconds_per_step:.3g} s here, and {spent_s:.0f} s went before."
        raise ConfigError(Problem("minutes", f"{config.minutes:g}", allowed, hint))
    half_life = max(1.0, EMA_SHARE * steps)
    ema = 0.5 ** (1 / half_life) if config.ema else 0.0  # 0: no average is wanted
    return Plan(
        config.minutes, seconds_per_step, steps, config.warmup_steps, ema, config.batch_size
    )


def settle(
    config: PretrainConfig,
    *,
    folder: Path,
    key: str,
    accelerator: Accelerator,
    step: Callable[[int], object],
) -> Plan:
    """Take up the plan of a run begun before, or measure steps and make one; say what it buys.

    Args:
        folder: of the run.
        key: of the recipe, which the plan must share.
        step: takes step number n; what it trains is thrown away afterwards.

    Raises: ConfigError as `make_plan` and `read_plan` do.
    """
    import torch

    plan = read_plan(folder, key)
    if plan is None:
        started = time.perf_counter()
        seconds = _measure(step, _wait_for(accelerator))
        mean = torch.tensor(seconds, dtype=torch.float32, device=accelerator.device)
        mean = accelerator.reduce(mean, "mean")  # one plan for all processes
        spent = time.perf_counter() - started
        plan = make_plan(config, seconds_per_step=float(mean), spent_s=spent)  # type: ignore[arg-type]
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_plan(folder, plan, key)
        accelerator.wait_for_everyone()
        plan = read_plan(folder, key) or plan  # spent time differs between processes
    if accelerator.is_main_process:
        stage(f"pretrain: {plan.sentence()}")
    return plan


def _measure(step: Callable[[int], object], wait: Callable[[], None]) -> float:
    """Return the seconds of one step, once kernels are compiled and memory is taken."""
    for number in range(WARMUP_STEPS):
        step(number)
    wait()
    started, done = time.perf_counter(), 0
    while not done or (done < MEASURED_STEPS and time.perf_counter() - started < LEAST_S):
        step(WARMUP_STEPS + done)
        done += 1
        if done % 5 == 0:
            wait()  # else the clock sees launches, not work
    wait()
    return (time.perf_counter() - started) / done


def _wait_for(accelerator: Accelerator) -> Callable[[], None]:
    import torch

    if accelerator.device.type == "cuda":
        return torch.cuda.synchronize
    return lambda: None


def write_plan(folder: Path, plan: Plan, key: str) -> None:
    """Keep a plan beside the run's checkpoint."""
    text = json.dumps({"key": key, **dataclasses.asdict(plan)}, indent=2)
    write_text(folder / FILE, text + "\n")


def read_plan(folder: Path, key: str) -> Plan | None:
    """Return the plan of a run that was begun, or None.

    Raises: DataError if the file is damaged; ConfigError if it belongs to other settings.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        theirs = str(value.pop("key"))
        plan = Plan(**value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged. Delete it and the checkpoint to start again.") from error
    if theirs != key:
        got = "of a run with other settings or images"
        raise ConfigError(Problem(str(path), got, "this run's", "Delete it, or set run_dir."))
    return plan
