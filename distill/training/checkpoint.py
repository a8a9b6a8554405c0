"""Checkpoints of a training run: whole or not there, and enough to go on as if never stopped.

RUN/checkpoint-000200/ holds model.safetensors, optimizer.pt and state.json; average.safetensors and
scaler.json where the run has a moving average or scales its loss. All randomness of a step follows
from (seed, step, rank) and every learning rate from the step, so none of it is stored.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from distill.training.state import TrainState
from dreamshard.config import to_dict
from dreamshard.errors import ConfigError, DataError

if TYPE_CHECKING:
    from distill.training.learner import Learner

PREFIX = "checkpoint-"
# Settings that a run may go on with others of. All but the third line decide neither weights nor
# metrics; that line is like another number of processes: the same samples, and other batches for
# batch norm's statistics (checkpointed activations update them twice).
FREE = (
    *("run_dir", "restart", "keep", "save_every", "trackers"),
    *("data.threads", "data.prefetch", "data.dataset"),
    *("accumulate", "student.grad_checkpointing", "student.compile"),
)
# What of data.stream decides the features is in the recipe, whose key is compared.
FREE_SECTIONS = ("monitor.", "data.stream.")


def save_checkpoint(run_dir: Path, state: TrainState, learner: Learner, *, keep: int) -> Path:
    """Write a checkpoint under a temporary name, rename it when it is whole, drop the oldest.

    Args:
        run_dir: the run's folder.
        state: where the run is.
        learner: what has learned so far.
        keep: how many checkpoints to leave.
    """
    final = run_dir / f"{PREFIX}{state.step:06d}"
    part = run_dir / f".{final.name}.partial"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, module in _modules(learner).items():
        weights = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(weights, part / f"{name}.safetensors")
    torch.save(learner.optimizer.state_dict(), part / "optimizer.pt")
    if learner.scaler is not None:
        text = json.dumps(learner.scaler.state_dict())
        (part / "scaler.json").write_text(text, encoding="utf-8")
    (part / "state.json").write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    for path in [*part.iterdir(), part]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    _sync(run_dir)
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(run_dir: Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    found = [path for path in run_dir.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=lambda path: int(path.name[len(PREFIX) :]))


def read_state(checkpoint: Path) -> TrainState:
    """Read what a checkpoint is of.

    Raises:
        DataError: the file is missing or is not ours.
    """
    try:
        return TrainState(**json.loads((checkpoint / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def resume_point(
    run_dir: Path, *, fresh: TrainState, restart: bool = False
) -> tuple[TrainState, Path | None]:
    """Say where a run begins: at its last checkpoint, or at the start.

    Args:
        run_dir: the run's folder.
        fresh: the state of this run at step 0.
        restart: begin at the start whatever there is.

    Returns:
        The state to go on from, and its checkpoint (None at the start).

    Raises:
        ConfigError: the checkpoint is of a run with other settings.
        DataError: the checkpoint cannot be read.
    """
    found = [] if restart else checkpoints(run_dir)
    if not found:
        return fresh, None
    last = found[-1]
    state = read_state(last)
    check_same_run(state, now=fresh, run_dir=run_dir)
    state = replace(fresh, step=state.step, position=state.position, snapshot=state.snapshot)
    return state, last


def forget(run_dir: Path) -> None:
    """Remove a run's checkpoints and metrics, whole or half written."""
    for path in [*checkpoints(run_dir), *run_dir.glob(f".{PREFIX}*.partial")]:
        shutil.rmtree(path)
    trim_metrics(run_dir / "metrics.jsonl", step=0)


def load_checkpoint(checkpoint: Path, learner: Learner) -> None:
    """Put a checkpoint's weights and optimiser state into place. Executes nothing of the files.

    Args:
        checkpoint: its folder.
        learner: on its device, built by the same configuration.

    Raises:
        DataError: damaged files, or weights of another architecture.
    """
    device = next(learner.method.parameters()).device
    try:
        for name, module in _modules(learner).items():
            path = checkpoint / f"{name}.safetensors"
            module.load_state_dict(load_file(path, device=str(device)))
        saved = torch.load(checkpoint / "optimizer.pt", map_location=device, weights_only=True)
        learner.optimizer.load_state_dict(saved)
        if learner.scaler is not None:
            text = (checkpoint / "scaler.json").read_text(encoding="utf-8")
            learner.scaler.load_state_dict(json.loads(text))
    except pickle.UnpicklingError as error:  # its own text advises to execute the file
        raise _damaged(checkpoint, "optimizer.pt holds more than tensors") from error
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise _damaged(checkpoint, error) from error


def check_same_run(state: TrainState, *, now: TrainState, run_dir: Path) -> None:
    """Refuse to go on with a run under settings that would have made it another.

    A setting that did not exist when the run began had what is its default now.

    Raises:
        ConfigError: naming every key that differs, and the two ways out.
    """
    from distill.configs.train import TrainConfig

    usual = _flat(to_dict(TrainConfig()))
    before, after = usual | _flat(state.config), usual | _flat(now.config)
    differing = [
        f"\n  {key}: {before.get(key)!r} there, {after.get(key)!r} asked for"
        for key in sorted(before.keys() | after.keys())
        if key not in FREE
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


def trim_metrics(path: Path, *, step: int) -> None:
    """Drop the lines of metrics.jsonl after a step, which a resumed run writes again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except ValueError:
            continue  # the half line of a killed process
    part = path.with_name(f".{path.name}.partial")
    part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    part.replace(path)


def _modules(learner: Learner) -> dict[str, nn.Module]:
    """Name the modules of a checkpoint's files."""
    modules: dict[str, nn.Module] = {"model": learner.method}
    if learner.average is not None:
        modules["average"] = learner.average.module
    return modules


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(checkpoint: Path, error: object) -> DataError:
    return DataError(
        f"{checkpoint}: got a checkpoint that cannot be used ({error}), allowed one of this run. "
        "Delete that folder to go on from the one before, or start over with --restart true."
    )
