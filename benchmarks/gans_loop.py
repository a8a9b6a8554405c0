"""What benchmarks/gans.py trains with: a bare loop, and units that several processes share.

A unit is an arm with a seed. Whoever makes its claim file trains it, and leaves figures; a unit
that was stopped leaves its state and no claim, and the next one goes on from there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.teacher_study import read_images
from dreamshard.rng import generator
from pipeline.learning.device import sent
from pipeline.learning.pretraining.adversarial.bigbigan.objective import BigBiGANObjective
from pipeline.learning.pretraining.adversarial.objective import Share
from pipeline.learning.pretraining.adversarial.ssgan.objective import SSGANObjective
from pipeline.teachers.pixels import signed

EVERY = 50
"""Steps between looks at the clock and at the losses (count)."""
SAVED_S = 20.0
"""Seconds between checkpoints."""
Images = tuple[np.ndarray, np.ndarray]
Objective = SSGANObjective | BigBiGANObjective


class StoppedError(Exception):
    """The deadline has come; the state is kept."""


class Keeper:
    """Keep one unit: its claim, its state while it trains, what it measured at each mark.

    Args:
        work: folder that processes share.
        name: of the unit.
        deadline: when to stop (seconds since the epoch); None: never.
        settings: that decide its figures; a unit begun with others is an error.
    """

    def __init__(
        self, work: Path, name: str, deadline: float | None, settings: Mapping[str, Any]
    ) -> None:
        self.name, self._deadline, self._saved = name, deadline, time.monotonic()
        self._settings = dict(settings)
        self.claim, self.state = work / f"{name}.claim", work / f"{name}.pt"
        self.told, self.picture = work / f"{name}.json", work / f"{name}.png"

    def found(self) -> dict[str, Any]:
        """Return what was measured so far; "done" once it is whole."""
        found = json.loads(self.told.read_text()) if self.told.exists() else {}
        if (other := found.get("settings", self._settings)) != self._settings:
            raise SystemExit(f"{self.told} is of {other}, not of {self._settings}")
        return found

    def make(self, train: Callable[[], None]) -> bool:
        """Train the unit unless it is done or another's; tell whether this process did."""
        if self.found().get("done") or self._is_late():
            return False
        try:
            os.close(os.open(self.claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        try:
            begun = time.monotonic()
            if not self.found().get("done"):  # it may have been finished meanwhile
                self.note({"settings": self._settings})
                train()
                self.note({"done": True, "seconds": round(time.monotonic() - begun, 1)})
                self.state.unlink(missing_ok=True)
        finally:
            self.claim.unlink(missing_ok=True)
        return True

    def note(self, figures: Mapping[str, Any]) -> None:
        """Add figures to those of the unit."""
        part = self.told.with_suffix(".partial")
        part.write_text(json.dumps({**self.found(), **figures}) + "\n")
        part.replace(self.told)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Return the last checkpoint."""
        there = self.state.exists()
        return torch.load(self.state, weights_only=True, map_location=device) if there else None

    def save(self, state: Callable[[], Mapping[str, Any]], *, always: bool = False) -> None:
        """Write a checkpoint in place of the last, now and then, and before stopping.

        Raises: StoppedError: the deadline has come.
        """
        late = self._is_late()
        if late or always or time.monotonic() - self._saved > SAVED_S:
            part = self.state.with_suffix(".partial")
            torch.save(dict(state()), part)
            part.replace(self.state)
            self._saved = time.monotonic()
        if late:
            raise StoppedError(self.name)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.time() > self._deadline


def cached_images(work: Path, which: str, path: str, samples: int) -> Images:
    """Return a seeded subset, uint8 (N, 32, 32, 3) and int64 (N,), decoded once and kept."""
    file = work / f"{which}-{samples}.npz"
    if not file.exists():
        images, labels = read_images(path, 32, samples, 0)
        part = work / f"{which}-{samples}.{os.getpid()}.partial"
        with part.open("wb") as told:
            np.savez(told, images=images, labels=labels)
        part.replace(file)
    with np.load(file) as kept:
        return kept["images"], kept["labels"]


def train(
    objective: Objective,
    images: Tensor,
    steps: int,
    *,
    batch: int,
    seed: int,
    keeper: Keeper,
    half: bool = False,
) -> Iterator[tuple[int, dict[str, nn.Module]]]:
    """Train with a bare loop; yield steps done and averages, at the beginning and after each step.

    Args:
        images: uint8 (N, 32, 32, 3), on the device.
        keeper: of the checkpoints, one of which it goes on from.
        half: under autocast to bfloat16.
    """
    averages = {name: deepcopy(objective.networks[name]) for name in objective.averaged}
    parts: dict[str, Any] = {
        **objective.networks, **{f"average {k}": v for k, v in averages.items()},
        **{f"optimizer {k}": v for k, v in objective.optimizers.items()},
    }  # fmt: skip
    at, lost = 0, torch.zeros((), device=images.device)
    if state := keeper.load(images.device):
        at = state.pop("at")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    yield at, averages
    for step in range(at + 1, steps + 1):
        turns = [("discriminator", turn) for turn in range(objective.discriminator_steps)]
        for who, turn in [*turns, ("generator", objective.discriminator_steps)]:
            share = _share(images, batch, seed=seed, step=step, turn=turn, progress=step / steps)
            lost = lost + _turn(objective, who, share, half=half)
        for name, average in averages.items():
            _follow(average, objective.networks[name], 1 - objective.decay(step))
        if step % EVERY == 0:
            if not bool(torch.isfinite(lost)):
                raise FloatingPointError(f"a loss within {EVERY} steps before {step}")
            kept = {name: part.state_dict for name, part in parts.items()}
            keeper.save(
                lambda kept=kept, step=step: {"at": step, **{n: make() for n, make in kept.items()}}
            )
        yield step, averages


def _follow(average: nn.Module, network: nn.Module, rate: float) -> None:
    pairs = [
        (old, new)
        for old, new in zip(
            average.state_dict().values(), network.state_dict().values(), strict=True
        )
        if old.is_floating_point()
    ]
    torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], rate)  # pyright: ignore


def _turn(objective: Objective, who: str, share: Share, *, half: bool) -> Tensor:
    optimizer = objective.optimizers[who]
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for network in objective.networks.values():
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in learned)
    step = objective.discriminator_step if who == "discriminator" else objective.generator_step
    with torch.autocast(share.images.device.type, dtype=torch.bfloat16, enabled=half):
        loss = step(share)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach().float()


def _share(
    images: Tensor, batch: int, *, seed: int, step: int, turn: int, progress: float
) -> Share:
    drawn = generator(seed, step, turn, "gans-batch")
    device = images.device
    x = signed(images[sent(drawn.integers(len(images), size=batch), device)])
    flipped = sent(drawn.integers(2, size=batch), device).bool()[:, None, None, None]
    x = torch.where(flipped, x.flip(3), x).contiguous(memory_format=torch.channels_last)
    positions = range(step * batch, (step + 1) * batch)
    return Share(x, None, positions, seed=seed, turn=turn, step=step, progress=progress)
