"""Where a run begins: rank zero decides, every rank is told and sees the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill.training.checkpoint import resume_point
from distill.training.keep import kept_steps
from distill.training.memory import StepSize
from distill.training.optim import schedule_of
from distill.training.rehearsal import Plan
from distill.training.state import TrainState, first_state
from dreamshard.config import flatten, to_dict
from dreamshard.progress import stage
from dreamshard.redact import redact
from pipeline.learning.checkpoint import forget
from pipeline.learning.ranks import (
    check_same,
    check_shared,
    decided_by_chief,
    rank_count,
    this_rank,
)
from pipeline.learning.schedule import extension

if TYPE_CHECKING:
    from distill.configs.train import TrainConfig
    from distill.data.sets import TrainingSet

OWN = (
    "run_dir",
    "threads",
    "data.threads",
    "data.access",
    "data.prefetch",
    "data.dataset",
    "data.join",
    "data.real",
)
"""Settings that ranks may have of their own: paths are compared by what is there."""
OWN_SECTIONS = ("data.stream.",)
"""What of these decides features is in the recipe, whose key is compared."""


@dataclass(frozen=True)
class Start:
    """Say where a run goes on.

    Args:
        state: with the step it is at, and the version of its data.
        checkpoint: to load; None at the start.
        finished: all steps are taken and the student is kept.
    """

    state: TrainState
    checkpoint: Path | None
    finished: bool


def check_ranks(config: TrainConfig) -> None:
    """Refuse ranks that were told other things, or have run folders of their own.

    Raises:
        ConfigError: on every rank, with what differs.
    """
    if rank_count() == 1:
        return
    settings = flatten(redact(to_dict(config)))
    check_same(
        {
            key: value
            for key, value in settings.items()
            if key not in OWN and not key.startswith(OWN_SECTIONS)
        }
    )
    check_shared(Path(config.run_dir), key="run_dir")


def find_start(config: TrainConfig, training_set: TrainingSet) -> Start:
    """Find where a run goes on: at its last checkpoint, or at step 0.

    Raises:
        ConfigError: the checkpoint is of a run with other settings, or a rank has other data.
        DataError: the checkpoint cannot be read.
    """
    state, name, finished = decided_by_chief(lambda: _decide(config, training_set))
    recipe, real = training_set.source.recipe, training_set.real
    check_same(
        {
            "data.dataset (content)": recipe.content_key,
            "data.dataset (layout)": recipe.layout_key,
            "data.real (content)": "" if real is None else real.recipe.content_key,
        }
    )
    return Start(state, Path(config.run_dir) / name if name else None, finished)


def _decide(config: TrainConfig, training_set: TrainingSet) -> tuple[TrainState, str, bool]:
    run_dir = Path(config.run_dir)
    if config.restart:
        forget(run_dir)
    fresh = first_state(to_dict(config), training_set=training_set, processes=rank_count())
    state, checkpoint = resume_point(run_dir, fresh=fresh)
    finished = state.step >= config.steps and kept_steps(run_dir) == state.step
    return state, checkpoint.name if checkpoint is not None else "", finished


def tell_start(start: Start, config: TrainConfig) -> None:
    """Say that a run is finished, or what one that is extended goes on with: its rate jumps."""
    state = start.state
    if start.finished and not this_rank():
        stage(f"train: {config.run_dir} is finished ({state.step} steps), its student is reused")
    if this_rank() or not state.extended or state.extended[-1][1] != state.step:
        return
    before, step = state.extended[-1]
    old, new = (
        schedule_of(config.optimizer, steps=steps, batch_size=config.batch_size)
        for steps in (before, config.steps)
    )
    stage(f"train: {extension(old, new, step=step)}")


def plan_of(config: TrainConfig) -> Plan:
    """Return what a rehearsal needs of the settings."""
    return Plan(
        method=config.method,
        settings=config.method_settings(),
        student=config.student,
        seed=config.seed,
        batch_size=config.batch_size,
        parts=config.accumulate,
    )


def step_size(config: TrainConfig, training_set: TrainingSet, *, ranks: int) -> StepSize:
    """Return what a step's memory depends on."""
    return StepSize(
        training_set=training_set,
        count=config.part_size // ranks,
        optimizer=config.optimizer.name,
        averaged=config.ema > 0,
        ranks=ranks,
    )
