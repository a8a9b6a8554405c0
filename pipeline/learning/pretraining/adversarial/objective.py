"""What an adversarial method is to the trainer: networks, two players' losses, averages, files.

An objective computes losses, and the trainer does all the rest: batches, random numbers, autocast,
gradients over processes, optimiser steps, averages, checkpoints, pictures, distances. In a player's
turn only the parameters of its own optimiser require gradients, so a loss cannot reach the others.

Step s (1, 2, ...) is `discriminator_steps` turns of the discriminator, each on images of its own, a
turn of its regulariser where one is due, and one turn of the generator (BigBiGAN's: and encoder).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dreamshard import rng
from pipeline.learning.device import sent
from pipeline.learning.ranks import rank_count, this_rank

GOLDEN = 0x9E3779B97F4A7C15
"""An odd number of 64 bits, by which seeds of batches are far apart."""


@dataclass(frozen=True)
class Facts:
    """Say what an objective is built for.

    Args:
        side: of the images (pixels).
        classes: to condition on (count); 0 for none.
        batch_size: images of a turn over all processes (count).
        seed: of the initial weights.
        device: where networks live; the objective builds them there, channels last.
        half: the trainer runs steps under autocast to bfloat16; parts that need float32 say so
            (`pipeline.learning.precise.in_float32`).
    """

    side: int
    classes: int
    batch_size: int
    seed: int
    device: torch.device
    half: bool = False

    @property
    def fused(self) -> bool | None:
        """Return whether Adam takes its step in one kernel: on a GPU; None: as torch chooses."""
        return self.device.type == "cuda" or None


@dataclass(frozen=True)
class Share:
    """One process's share of a turn: images, and random numbers that belong to their positions.

    Args:
        images: float32 (B, 3, H, W) in -1..1, channels last; in a turn of a generator that does not
            look at images they are those of the last discriminator's turn.
        labels: int64 (B,), or None where the run is not conditional.
        positions: B places in the endless stream of all processes.
        seed: of the run.
        turn: number of this turn in its step, 0, 1, ...; no two turns draw the same numbers.
        step: 1, 2, ...
        progress: how much of the run is over, 0..1, for what is annealed.
    """

    images: Tensor
    labels: Tensor | None
    positions: range
    seed: int
    turn: int
    step: int
    progress: float

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Draw standard normal numbers, float32 (B, *shape), on the images' device.

        A GPU draws its own, by batch: it would wait for numpy longer than it takes for a step.
        """
        device = self.images.device
        if device.type != "cpu":
            key = _device_key(self.seed, self.turn, purpose)
            return device_normal(key, self.positions, shape, device)
        return self._told(rng.normal(self.seed, self.positions, self.turn, _name(purpose), shape))

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Draw numbers from [0, 1), float32 (B, *shape)."""
        drawn = rng.uniform(self.seed, self.positions, self.turn, _name(purpose), shape)
        return self._told(drawn.astype(np.float32).clip(max=np.nextafter(np.float32(1), 0)))

    def integers(self, purpose: str, *shape: int, high: int) -> Tensor:
        """Draw int64 (B, *shape) from 0 .. high - 1."""
        return self._told(
            rng.integers(self.seed, self.positions, self.turn, _name(purpose), shape, high)
        )

    def _told(self, drawn: np.ndarray) -> Tensor:
        return sent(drawn, self.images.device)


class Objective(Protocol):
    """An adversarial method; modules and optimisers keep their names in checkpoints."""

    networks: Mapping[str, nn.Module]
    """By name, "discriminator" and "generator" among them; BigBiGAN's "encoder", too."""
    optimizers: Mapping[str, Optimizer]
    """The players', "discriminator" and "generator"; parameter groups may have rates of their own.
    An encoder that is trained alone is the only player, "encoder", and has the generator's turn.
    A network may be spread over several groups, a parameter is in one optimiser."""
    averaged: tuple[str, ...]
    """Names of the networks of which moving averages are kept, and from which samples come."""
    discriminator_steps: int
    """Turns of the discriminator in a step (count)."""
    regularise_every: int
    """Steps between turns of `regulariser_step` (count); 0 for none."""
    generator_sees_images: bool
    """Give the generator's turn images of its own (BigBiGAN's encoder looks at them)."""
    adaptive: dict[str, float]
    """Numbers that training changes, such as an augmentation's strength; in checkpoints. They are
    the same on every process."""

    def discriminator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the discriminator's scalar terms, "loss" among them, means over the share.

        Terms "real" and "fake", mean scores of either, feed the collapse alarm where given.
        """
        ...

    def regulariser_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the terms of a lazy regulariser of the discriminator, "loss" among them."""
        ...

    def generator_step(self, share: Share) -> Mapping[str, Tensor]:
        """Return the terms of the generator (and encoder), "loss" among them."""
        ...

    def decay(self, step: int) -> float:
        """Return the decay of the moving averages after a step (1, 2, ...), 0..1."""
        ...

    def adapt(self, step: int, terms: Mapping[str, float]) -> None:
        """Change `adaptive` by the means of terms over processes and steps since the last call."""
        ...

    def sample(self, averages: Mapping[str, nn.Module], numbers: range) -> np.ndarray:
        """Draw numbered samples of the averages, the same at any time: uint8 (N, H, W, 3)."""
        ...

    def export(
        self, averages: Mapping[str, nn.Module], folder: Path, *, dtype: torch.dtype
    ) -> tuple[Path, ...]:
        """Write what the loaders of `pipeline.teachers.gan` read, under names they find by folder.

        Args:
            averages: by name; discriminators come from `networks`.
            folder: of the teacher, there already.
            dtype: of the stored weights.

        Returns:
            The files; each was written beside its place, flushed and renamed.
        """
        ...


def device_normal(
    key: int, positions: range, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """Draw a share's rows of the standard normal numbers of a whole batch, on a device.

    Args:
        key: of seed, turn and purpose.
        positions: B consecutive ones, this process's share; all shares are of one size.

    Returns:
        float32 (B, *shape).
    """
    rows, rank = len(positions), this_rank()
    begin = positions.start - rank * rows
    drawn = torch.Generator(device).manual_seed((key + begin * GOLDEN) % 2**64)
    whole = torch.randn((rank_count() * rows, *shape), generator=drawn, device=device)
    return whole[rank * rows : (rank + 1) * rows]


@lru_cache(maxsize=64)
def _device_key(seed: int, turn: int, purpose: str) -> int:
    drawn = rng.generator(seed, 0, turn, f"{_name(purpose)}-device")
    return int(drawn.integers(2**64, dtype=np.uint64))


def _name(purpose: str) -> str:
    return f"adversarial-{purpose}"
