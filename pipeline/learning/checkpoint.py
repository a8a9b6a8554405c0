"""Checkpoints of a training: whole or not there, and enough to go on as if never stopped.

RUN/checkpoint-000200/ holds the tensors of every part in NAME.safetensors, what else a part is in
NAME.json, and in state.json the step and what the run is of. Nothing in it can be executed. All
randomness of a step follows from its number, and so does its learning rate: neither is stored.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dreamshard.errors import DataError
from dreamshard.foreign.arrays import read_safetensors
from dreamshard.foreign.text import read_json
from dreamshard.permissions import apply_umask
from pipeline.learning.loop import Learner

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

    Part = nn.Module | Optimizer | GradScaler

PREFIX = "checkpoint-"
STATE = "state.json"
FORMAT = 2
"""Of the folder; 1 had the optimiser as a pickle."""


def parts_of(learner: Learner) -> dict[str, Part]:
    """Name the parts of a learner as a checkpoint's files are named."""
    parts: dict[str, Part] = {"model": learner.module, "optimizer": learner.optimizer}
    if learner.average is not None:
        parts["average"] = learner.average.module
    if learner.scaler is not None:
        parts["scaler"] = learner.scaler
    return parts


def save_checkpoint(
    run_dir: Path, parts: Mapping[str, Part], *, state: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint under a temporary name, rename it when it is whole, drop the oldest.

    Args:
        run_dir: the run's folder.
        parts: by name; "state" is taken.
        state: JSON's values, the "step" among them.
        keep: how many checkpoints to leave.

    Raises:
        DataError: it cannot be written; nothing of it is left.
    """
    final = run_dir / f"{PREFIX}{state['step']:06d}"
    partial = run_dir / f".{final.name}.partial"
    try:
        _write(partial, parts, state)
    except (OSError, SafetensorError) as error:  # safetensors words a full disk in its own way
        shutil.rmtree(partial, ignore_errors=True)
        there = checkpoints(run_dir)
        begin = there[-1].name if there else "step 0"
        raise DataError(
            f"{final}: got {error} while writing a checkpoint, allowed a disk with room for it. "
            f"Make room; the same command goes on from {begin}."
        ) from error
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    flush(run_dir)
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def apart(
    values: Mapping[str, Tensor], *, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return tensors that safetensors writes: contiguous, and none in another's memory.

    Tied weights (CoaT's) are written once per name, so that whoever reads the file finds every name
    and no reader has to know what was tied.

    Args:
        values: by name, such as a module's state.
        device: where to bring them first; None: they stay.
    """
    found: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, value in values.items():
        tensor = value if device is None else value.to(device)
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place and place in memory:
            tensor = tensor.clone()
        memory.add(place)
        found[name] = tensor
    return found


def reason_of(error: BaseException) -> str:
    """Say why a file could not be written; safetensors wraps the words of the system."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def _write(partial: Path, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, part in parts.items():
        tensors, rest = _taken_apart(part)
        if tensors is not None:
            save_file(tensors, partial / f"{name}.safetensors")
            apply_umask(partial / f"{name}.safetensors")
        if rest is not None:
            _write_json(partial / f"{name}.json", rest)
    _write_json(partial / STATE, {"format": FORMAT, **state})
    for path in [*partial.iterdir(), partial]:
        flush(path)


def checkpoints(run_dir: Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    folders = [path for path in run_dir.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[len(PREFIX) :]))


def forget(run_dir: Path) -> None:
    """Remove a run's checkpoints, whole or half written."""
    for path in [*checkpoints(run_dir), *run_dir.glob(f".{PREFIX}*.partial")]:
        shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the state a checkpoint was saved with.

    Raises:
        DataError: the file is missing, is not ours, or is of an older version.
    """
    try:
        state = read_json(checkpoint / STATE, infinite=True)
        if state.pop("format", 1) != FORMAT:
            raise ValueError("of an older version of dreamshard")
        if not isinstance(state["step"], int):
            raise ValueError("a step that is no number")
    except (OSError, DataError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(checkpoint, error) from error
    return state


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Part]) -> None:
    """Put a checkpoint's tensors into place.

    Args:
        checkpoint: its folder.
        parts: those it was saved with, on their devices, built by the same settings.

    Raises:
        DataError: damaged files, or parts of another architecture.
    """
    try:
        for name, part in parts.items():
            _put_back(part, checkpoint / f"{name}.safetensors", checkpoint / f"{name}.json")
    except (OSError, DataError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise damaged(checkpoint, error) from error


def damaged(checkpoint: Path, error: object) -> DataError:
    """Word what is wrong with a checkpoint, and the ways out."""
    return DataError(
        f"{checkpoint}: got a checkpoint that cannot be used ({error}), allowed one of this run. "
        "Delete that folder to go on from the one before, or from the start without one."
    )


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken_apart(part: Part) -> tuple[dict[str, Tensor] | None, Any]:
    """Return a part's tensors by name, and the rest for JSON (None: it has no such thing)."""
    if isinstance(part, nn.Module):
        return apart(part.state_dict()), None
    values = part.state_dict()
    if not isinstance(part, Optimizer):
        return None, values
    tensors: dict[str, Tensor] = {}
    places = {"state": values["state"], "param_groups": dict(enumerate(values["param_groups"]))}
    rest: dict[str, dict[str, dict[str, Any]]] = {}
    for place, entries in places.items():  # timm's LAMB counts its steps in the groups
        rest[place] = {str(number): {} for number in entries}
        for number, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"{place}.{number}.{name}"] = value.contiguous()
                else:
                    rest[place][str(number)][name] = value
    return tensors, rest


def _put_back(part: Part, tensors: Path, rest: Path) -> None:
    if isinstance(part, nn.Module):
        part.load_state_dict(read_safetensors(tensors, device=str(next(part.parameters()).device)))
        return
    values = read_json(rest, infinite=True)
    if isinstance(part, Optimizer):
        _put_back_optimizer(part, values, read_safetensors(tensors))
    else:
        part.load_state_dict(values)


def _put_back_optimizer(
    optimizer: Optimizer, values: dict[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Load an optimiser's state, every tensor in its parameter's memory order."""
    for key, value in tensors.items():
        place, number, name = key.split(".", 2)
        values[place][number][name] = value
    groups = list(values["param_groups"].values())
    for group, ours in zip(groups, optimizer.param_groups, strict=True):
        group |= {key: tuple(group[key]) for key, value in ours.items() if type(value) is tuple}
    states = {int(number): state for number, state in values["state"].items()}
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                # Fused steps read parameter and state side by side: refuse other shapes here.
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(
                    value.view(parameter.shape)
                )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
