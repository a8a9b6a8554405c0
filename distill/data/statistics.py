"""Read a level of stored samples before training, for statistics of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.data.sets import TrainingSet
from dreamshard.errors import ConfigError, Problem
from dreamshard.rng import generator
from storage.rows.pick import read_rows

SAMPLES = 512
"""Samples that standardise a level: thousands of cells per channel of any map."""
GLANCE = 16
"""Samples that tell whether a level varies at all."""


def read_values(
    training_set: TrainingSet, name: str, *, most: int | None = None, hint: str = ""
) -> Tensor:
    """Return a level's values of all valid samples, or of some drawn by the run's seed.

    Args:
        training_set: whose source must be stored: a stream's samples are gone once they are used.
        name: of the level.
        most: how many samples at most; None: all.
        hint: what does without them, for the message.

    Returns:
        float32 (N, *shape) on the CPU, whole maps where the student sees a part of them.

    Raises:
        ConfigError: a stream.
    """
    stored = training_set.source.stored
    if stored is None:
        allowed = "shards, as statistics of the dataset are taken before the first step"
        raise ConfigError(Problem("data.kind", "a stream", allowed, f"Record it first{hint}."))
    numbers = np.flatnonzero(stored.valid)
    if most is not None and len(numbers) > most:
        drawn = generator(training_set.seed, 0, 0, "statistics").permutation(len(numbers))
        numbers = np.sort(numbers[drawn[:most]])
    return torch.from_numpy(read_rows(stored, name, numbers).astype(np.float32, copy=False))


def constant_levels(training_set: TrainingSet) -> list[str]:
    """Return a line for each stored level that is the same for samples looked at: a dead teacher.

    Nothing is said of streams, whose samples are gone once they are looked at.
    """
    if training_set.source.stored is None:
        return []
    lines = []
    for level in training_set.levels:
        values = read_values(training_set, level.name, most=GLANCE)
        if len(values) > 1 and bool((values == values[0]).all()):
            one = values.flatten()[0].item()
            what = f"{one:g} everywhere" if bool((values == one).all()) else "the same values"
            lines.append(
                f"WARNING: {level.name} holds {what} in all {len(values)} samples looked at, and "
                "teaches nothing: look at its teacher and tap (dreamshard inspect teacher)"
            )
    return lines
