"""Where a training run begins: at its last checkpoint if that is of the same run, or at step 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distill.training.state import TrainState
from dreamshard.config import flatten, to_dict
from dreamshard.errors import ConfigError
from dreamshard.redact import redact
from pipeline.learning.checkpoint import checkpoints, damaged, read_state

# Settings that a run may go on with others of. All but the third line decide neither weights nor
# metrics; that line is like another number of processes: the same samples, and other batches for
# batch norm's statistics (checkpointed activations update them twice). A device is like another
# kind of GPU: the last digits differ.
FREE = (
    *("run_dir", "restart", "keep", "save_every", "log_gradients", "trackers"),
    *("data.threads", "data.access", "data.prefetch", "data.dataset"),
    *("device", "accumulate", "student.grad_checkpointing", "student.compile", "student.onnx"),
)
# What of data.stream decides the features is in the recipe, whose key is compared.
FREE_SECTIONS = ("monitor.", "data.stream.")


def resume_point(run_dir: Path, *, fresh: TrainState) -> tuple[TrainState, Path | None]:
    """Say where a run begins: at its last checkpoint, or at the start.

    Args:
        run_dir: the run's folder.
        fresh: the state of this run at step 0.

    Returns:
        The state to go on from, and its checkpoint (None at the start).

    Raises:
        ConfigError: the checkpoint is of a run with other settings.
        DataError: the checkpoint cannot be read.
    """
    known = checkpoints(run_dir)
    if not known:
        return fresh, None
    last = known[-1]
    try:
        state = TrainState(**read_state(last))
        _check_values(state)
    except (TypeError, ValueError) as error:
        raise damaged(last, error) from error
    check_same_run(state, now=fresh, run_dir=run_dir)
    extended = list(state.extended)
    before = int(str(state.config.get("steps", 0)))
    if before and before != fresh.config.get("steps"):
        extended.append([before, state.step])
    state = replace(
        fresh,
        step=state.step,
        position=state.position,
        snapshot=state.snapshot,
        real=state.real or fresh.real,  # of checkpoints from before it was noted
        extended=extended,
    )
    return state, last


def _check_values(state: TrainState) -> None:
    """Refuse a state that no run was ever in.

    Raises:
        ValueError: naming the field.
    """
    texts = (state.dataset, state.content_key, state.layout_key, state.snapshot, state.real)
    if not all(isinstance(text, str) for text in texts) or not isinstance(state.config, dict):
        raise ValueError("dataset, keys, snapshot and config of other kinds than they have")
    batch_size, steps = state.config.get("batch_size", 0), state.config.get("steps", 0)
    wrong = type(state.position) is not int or state.position < 0
    if wrong or (batch_size and state.position != state.step * int(str(batch_size))):
        raise ValueError(f"position {state.position!r:.40} after {state.step} steps")
    if isinstance(steps, int) and steps and state.step > steps:
        raise ValueError(f"{state.step} steps done of {steps}")
    if type(state.processes) is not int or state.processes < 1:
        raise ValueError(f"processes {state.processes!r:.40}")
    pairs = state.extended if isinstance(state.extended, list) else [None]
    if not all(isinstance(pair, list) and list(map(type, pair)) == [int, int] for pair in pairs):
        raise ValueError(f"extended {state.extended!r:.40}")


def check_same_run(state: TrainState, *, now: TrainState, run_dir: Path) -> None:
    """Refuse to go on with a run under settings that would have made it another.

    A setting that did not exist when the run began had what is its default now. More steps than
    before extend the run.

    Raises:
        ConfigError: naming every key that differs, and the two ways out.
    """
    from distill.configs.train import TrainConfig

    usual = flatten(to_dict(TrainConfig()))
    before, after = usual | flatten(redact(state.config)), usual | flatten(redact(now.config))
    differing = [
        f"\n  {key}: {before.get(key)!r} there, {after.get(key)!r} asked for"
        for key in sorted(before.keys() | after.keys())
        if key not in FREE
        and not (key == "steps" and state.step <= int(before[key]) < int(after[key]))
        and not key.startswith(FREE_SECTIONS)
        and before.get(key) != after.get(key)
    ]
    if (state.content_key, state.layout_key) != (now.content_key, now.layout_key):
        differing.append(f"\n  data.dataset: {state.dataset} there, {now.dataset} asked for")
    if differing:
        raise ConfigError(
            f"run_dir: {run_dir} holds a run of other settings, {state.step} steps done:"
            f"{''.join(differing)}\nTake another folder with --run_dir, or throw its checkpoints "
            "away with --restart true."
        )
