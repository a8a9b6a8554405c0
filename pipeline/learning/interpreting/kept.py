"""Keep the features of a run that was asked to stop while it computed them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dreamshard.errors import ConfigError, Problem
from pipeline.learning.checkpoint import (
    checkpoints,
    forget,
    load_checkpoint,
    read_state,
    save_checkpoint,
)

PART = "features"


def save_features(folder: Path, levels: Mapping[str, np.ndarray], *, done: int, key: str) -> None:
    """Save what is computed so far.

    Args:
        folder: of these features alone.
        levels: arrays that are being filled.
        done: images computed, over all views.
        key: of what they are computed for.
    """
    state = {"step": done, "key": key}  # what is not computed yet is whatever memory held
    save_checkpoint(folder, {PART: _holder(levels)}, state=state, keep=1, finite=False)


def load_features(folder: Path, levels: Mapping[str, np.ndarray], *, key: str) -> int:
    """Fill arrays with what was saved; return the images computed, 0 if there is nothing.

    Raises:
        ConfigError: it is of something else.
        DataError: it cannot be read.
    """
    known = checkpoints(folder)
    if not known:
        return 0
    state = read_state(known[-1])
    if state.get("key") != key:
        got, hint = "of a run with other settings", "Delete it, or choose another run_dir."
        raise ConfigError(Problem(str(known[-1]), got, "this run's", hint))
    load_checkpoint(known[-1], {PART: _holder(levels)})
    return int(state["step"])


def forget_features(folder: Path) -> None:
    """Remove what was saved."""
    if folder.exists():
        forget(folder)
        folder.rmdir()


def _holder(levels: Mapping[str, np.ndarray]) -> nn.Module:
    """Return a module whose parameters are the arrays themselves: loaded into, it fills them."""
    holder = nn.Module()
    for number, values in enumerate(levels.values()):  # names have dots, which parameters may not
        array = nn.Parameter(torch.from_numpy(values), requires_grad=False)
        holder.register_parameter(f"level_{number}", array)
    return holder
