"""Checkpoints of a training: whole or not there, and enough to go on as if never stopped.

RUN/checkpoint-000200/ holds the tensors of every part in NAME.safetensors, what else a part is in
NAME.json, and in state.json the step, what the run is of, the digest of every other file and one of
its own. Nothing in it can be executed. All randomness of a step follows from its number, and so
does its learning rate: neither is stored.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import logging
import math
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dreamshard.errors import DataError
from dreamshard.foreign.arrays import read_safetensors
from dreamshard.foreign.files import check_regular, read_bytes
from dreamshard.foreign.guard import CannotReadError
from dreamshard.foreign.sealed import SEAL, parse_sealed, sealed_json
from dreamshard.foreign.text import read_json
from dreamshard.permissions import apply_umask
from pipeline.learning.device import apart
from pipeline.learning.figures import is_finite
from pipeline.learning.loop import Learner

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

    Part = nn.Module | Optimizer | GradScaler

PREFIX = "checkpoint-"
STATE = "state.json"
_NAME = re.compile(PREFIX + "[0-9]{1,18}")
FORMAT = 2
"""Of the folder; 1 had the optimiser as a pickle."""
FILES = "files"
"""In the state: size and digest of each other file, by name; checkpoints of before have none."""
WITHOUT = "without"
"""In the optimiser's JSON: numbers of the parameters of which it kept nothing, as none took a step
or it keeps nothing of any (plain SGD); checkpoints of before do not say."""
_BLOCK = 4 << 20
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG}
"""What the system says of a name that leads to no file; all else is its refusal to read one."""

log = logging.getLogger(__name__)


def parts_of(learner: Learner) -> dict[str, Part]:
    """Name the parts of a learner as a checkpoint's files are named."""
    parts: dict[str, Part] = {"model": learner.module, "optimizer": learner.optimizer}
    if learner.average is not None:
        parts["average"] = learner.average.module
    if learner.scaler is not None:
        parts["scaler"] = learner.scaler
    return parts


def save_checkpoint(
    run_dir: Path,
    parts: Mapping[str, Part],
    *,
    state: Mapping[str, Any],
    keep: int,
    finite: bool = True,
) -> Path:
    """Write a checkpoint under a temporary name, rename it when it is whole, drop the oldest.

    Args:
        run_dir: the run's folder.
        parts: by name; "state" is taken.
        state: JSON's values, the "step" among them; "format" and "files" are taken.
        keep: how many checkpoints to leave.
        finite: refuse weights that are no numbers.

    Raises:
        DataError: it cannot be written, or weights are no numbers; nothing of it is left.
    """
    final = run_dir / f"{PREFIX}{state['step']:06d}"
    partial = run_dir / f".{final.name}.partial"
    begin = kept[-1].name if (kept := checkpoints(run_dir)) else "step 0"
    if finite and not is_finite(*(part for part in parts.values() if isinstance(part, nn.Module))):
        raise DataError(
            f"{final}: got weights that are not finite, allowed numbers. The last good ones, kept, "
            f"are those of {begin}. Lower the learning rate, or compute in float32."
        )
    try:
        _write(partial, parts, state)
    except (OSError, SafetensorError) as error:  # safetensors words a full disk in its own way
        with contextlib.suppress(OSError):
            remove(partial)
        raise DataError(
            f"{final}: got {error} while writing a checkpoint, allowed a disk with room for it. "
            f"Make room; the same command goes on from {begin}."
        ) from error
    remove(final)
    partial.rename(final)
    flush(run_dir)
    for old in checkpoints(run_dir)[:-keep]:
        remove(old)
    return final


def remove(path: Path) -> None:
    """Remove a folder and all in it, if there is one; of a link only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def reason_of(error: BaseException) -> str:
    """Say why a file could not be written; safetensors wraps the words of the system."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def _write(partial: Path, parts: Mapping[str, Part], state: Mapping[str, Any]) -> None:
    remove(partial)
    partial.mkdir(parents=True)
    for name, part in parts.items():
        tensors, rest = _taken_apart(part)
        if tensors is not None:
            save_file(tensors, partial / f"{name}.safetensors")
            apply_umask(partial / f"{name}.safetensors")
        if rest is not None:
            _write_json(partial / f"{name}.json", rest)
    files = {path.name: _described(path) for path in sorted(partial.iterdir())}
    text = sealed_json({"format": FORMAT, **state, FILES: files}, indent=2, infinite=True)
    (partial / STATE).write_bytes(text)
    for path in [*partial.iterdir(), partial]:
        flush(path)


def checkpoints(run_dir: Path) -> list[Path]:
    """List a run's checkpoints, oldest first."""
    folders = [path for path in run_dir.glob(f"{PREFIX}*") if _NAME.fullmatch(path.name)]
    return sorted(folders, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name says."""
    return int(checkpoint.name[len(PREFIX) :])


def forget(run_dir: Path) -> None:
    """Remove a run's checkpoints, whole or half written."""
    for path in [*checkpoints(run_dir), *run_dir.glob(f".{PREFIX}*.partial")]:
        remove(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the state a checkpoint was saved with.

    Raises:
        DataError: the file is missing, damaged, not ours, or of an older version; CannotReadError
            if it cannot be read.
    """
    try:
        state, files = _read_state(checkpoint)
    except Exception as error:  # of whatever is in there
        raise unusable(checkpoint, error) from error
    if files is None:
        log.warning("%s: not protected by digests: an earlier version wrote it", checkpoint)
    return state


def load_checkpoint(checkpoint: Path, parts: Mapping[str, Part]) -> None:
    """Put a checkpoint's tensors into place.

    Args:
        checkpoint: its folder.
        parts: those it was saved with, on their devices, built by the same settings.

    Raises:
        DataError: damaged files, or parts of another architecture; CannotReadError if one cannot be
            read.
    """
    try:
        _, files = _read_state(checkpoint)
        for name, part in parts.items():
            _put_back(part, checkpoint, name, files)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever is in there
        raise unusable(checkpoint, error) from error


def unusable(checkpoint: Path, error: Exception) -> DataError:
    """Word why a checkpoint cannot be used: unreadable is not damaged."""
    cause = error if isinstance(error, OSError | MemoryError) else error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(cause, MemoryError) or (number is not None and number not in _ABSENT):
        return CannotReadError(
            f"{checkpoint}: cannot be read ({cause or 'out of memory'}). That is no damage: mend "
            "what keeps it from being read, and the same command goes on from it."
        )
    return damaged(checkpoint, error)


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
    rest: dict[str, Any] = {}
    for place, entries in places.items():  # timm's LAMB counts its steps in the groups
        rest[place] = {str(number): {} for number in entries}
        for number, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"{place}.{number}.{name}"] = value.contiguous()
                else:
                    rest[place][str(number)][name] = value
    count = sum(len(group["params"]) for group in values["param_groups"])
    without = sorted(set(range(count)) - values["state"].keys())
    return tensors, {**rest, WITHOUT: without}


def _read_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the state, and what each other file must be; None where nobody wrote that down."""
    path = checkpoint / STATE
    state, sealed = parse_sealed(read_bytes(path), where=str(path), infinite=True)
    if state.pop("format", 1) != FORMAT:
        raise ValueError("of an older version of dreamshard")
    if type(state["step"]) is not int or state["step"] != step_of(checkpoint):
        raise ValueError(f"step {state['step']!r:.40} in a folder of that name")
    if not sealed:
        return state, None
    state.pop(SEAL)
    return state, dict(state.pop(FILES))


def _described(path: Path) -> dict[str, object]:
    """Return a file's size and digest; it is read in blocks."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
        return {"bytes": file.tell(), SEAL: state.hexdigest()}


def _put_back(part: Part, checkpoint: Path, name: str, files: Mapping[str, Any] | None) -> None:
    def checked(ending: str) -> Path:
        path = checkpoint / f"{name}{ending}"
        check_regular(path)  # a pipe is not waited for
        if files is not None and _described(path) != files[path.name]:
            raise ValueError(f"{path.name} is not what was written")
        return path

    if isinstance(part, nn.Module):
        device = str(next(part.parameters()).device)
        tensors = read_safetensors(checked(".safetensors"), device=device)
        for key, ours in part.state_dict().items():
            if key in tensors and tensors[key].dtype != ours.dtype:
                raise ValueError(f"{key} of {tensors[key].dtype}, not {ours.dtype}")
        part.load_state_dict(tensors)
        return
    values = read_json(checked(".json"), infinite=True)
    if isinstance(part, Optimizer):
        _put_back_optimizer(part, values, read_safetensors(checked(".safetensors")))
        return
    if not _is_like(values, part.state_dict()):
        raise ValueError(f"{name} has other values than it can have")
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
        settings = {key: value for key, value in ours.items() if key != "params"}
        group |= {
            key: value for key, value in settings.items() if key not in group
        }  # by the config
        wrong = [key for key, value in settings.items() if not _is_like(group[key], value)]
        if wrong:
            raise ValueError(f"the optimiser's {wrong[0]} is {group[wrong[0]]!r:.40}")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    states = {int(number): state for number, state in values["state"].items()}
    _check_which(states, len(parameters), values.get(WITHOUT))
    for number, state in states.items():
        for name, value in state.items():
            _check_value(f"state.{number}.{name}", value, parameters[number])
        if missing := sorted(_moments(optimizer, parameters[number]) - state.keys()):
            raise ValueError(f"state.{number} has no {missing[0]}")
    optimizer.load_state_dict({"state": states, "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.dim():
                # Fused steps read parameter and state side by side.
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_which(states: Mapping[int, object], count: int, without: object) -> None:
    """Refuse a parameter of which nothing is there, though something was when it was saved."""
    if odd := sorted(states.keys() - set(range(count))):
        raise ValueError(f"state.{odd[0]} is of no parameter")
    absent = sorted(set(range(count)) - states.keys())
    if without is None:
        if absent and states:
            log.warning(
                "the optimiser has nothing of %d of %d parameters, which begin anew; an earlier "
                "version, which wrote this, did not say whether it ever had", len(absent), count
            )  # fmt: skip
    elif absent != without:
        odd = set(absent) ^ set(cast("list[int]", without))
        raise ValueError(f"state.{min(odd)} is not there, or ought not to be")


def _moments(optimizer: Optimizer, parameter: Tensor) -> set[str]:
    """Name what the optimiser keeps of a parameter: what its step makes for a small one like it."""
    like = torch.zeros([2] * parameter.dim(), dtype=parameter.dtype, requires_grad=True)
    like.grad = torch.zeros_like(like)
    trial = copy.copy(getattr(optimizer, "optimizer", optimizer))  # Accelerate's holds another
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    plain = {key: False for key in ("fused", "foreach", "capturable") if key in group}
    trial.param_groups, trial.state = [group | plain | {"params": [like]}], defaultdict(dict)
    trial.step()
    return {name for name, value in trial.state[like].items() if value is not None}


def _check_value(name: str, value: object, parameter: Tensor) -> None:
    """Refuse what no step can take: a fused one reads memory by the parameter's shape."""
    if isinstance(value, Tensor):
        same_kind = value.is_floating_point() == parameter.is_floating_point()
        fits = value.shape == parameter.shape and same_kind if value.dim() else True
        if not fits or value.is_complex():
            raise ValueError(f"{name} of shape {tuple(value.shape)} and {value.dtype}")
    elif value is not None and not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r:.40}")


def _is_like(value: object, ours: object) -> bool:
    """Say whether a value may stand where ours does: the same kind, numbers of either kind."""
    if isinstance(ours, bool) or ours is None:
        return isinstance(value, bool) or value is None
    if isinstance(ours, int | float):
        return type(value) in (int, float) and not math.isnan(cast("float", value))
    if isinstance(ours, dict):
        return (
            isinstance(value, dict)
            and value.keys() == ours.keys()
            and all(_is_like(value[key], item) for key, item in ours.items())
        )
    if isinstance(ours, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(ours)
            and all(map(_is_like, value, ours))
        )
    return isinstance(ours, Tensor) or type(value) is type(ours)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
