"""A training that was asked to stop and goes on: what it has learnt, and all random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.checkpoint import (
    checkpoints,
    damaged,
    load_checkpoint,
    parts_of,
    read_state,
    save_checkpoint,
)
from pipeline.learning.loop import Learner

if TYPE_CHECKING:
    from pipeline.learning.checkpoint import Part


def save_stopped(folder: Path, learner: Learner, *, step: int, key: str) -> None:
    """Save a training that draws its random numbers one after another.

    Args:
        folder: of this training alone.
        learner: after that step; after its last one, only what it has learnt is saved.
        step: steps done.
        key: of what it is a training of.
    """
    state = {"step": step, "key": key, "random": random_state()}
    save_checkpoint(folder, _parts(learner, step), state=state, keep=1)


def load_stopped(folder: Path, learner: Learner, *, key: str) -> int:
    """Go on with a training that was saved; return the steps done, 0 if there is none.

    Raises:
        ConfigError: it is a training of something else.
        DataError: it cannot be read.
    """
    known = checkpoints(folder)
    if not known:
        return 0
    state = read_state(known[-1])
    if state["step"] > learner.schedule.steps:
        raise damaged(known[-1], f"{state['step']} steps done of {learner.schedule.steps}")
    if state.get("key") != key:
        got, hint = "of a run with other settings", "Delete it, or choose another run_dir."
        raise ConfigError(Problem(str(known[-1]), got, "this run's", hint))
    load_checkpoint(known[-1], _parts(learner, state["step"]))
    try:
        set_random_state(state["random"])
    except Exception as error:  # of whatever is in there
        raise damaged(known[-1], error) from error
    return int(state["step"])


def _parts(learner: Learner, step: int) -> dict[str, Part]:
    """Return what a checkpoint of a step holds."""
    parts = parts_of(learner)
    if step < learner.schedule.steps:
        return parts
    return {name: part for name, part in parts.items() if name in ("model", "average")}


def random_state() -> dict[str, Any]:
    """Return the state of torch's and numpy's global generators, fit for JSON."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    kind, words, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - timm's mixup
    return {
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in devices],
        "numpy": [kind, np.asarray(words).tolist(), place, has_gauss, gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_state` returned."""
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_bytes(text) for text in state["cuda"]])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, np.uint32), *rest))  # noqa: NPY002


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
