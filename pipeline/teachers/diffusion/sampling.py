"""Samplers and inversion as plain functions of a `Schedule`; nothing here knows a network.

Two conventions of the DDIM inversion exist. This project uses guided-diffusion's ("guided"): at
level i the network is asked at level i's own timestep and the result moves to level i+1; the clean
image is taken as the level of the first timestep. (diffusers' DDIMInverseScheduler asks at the
target timestep instead; results differ clearly.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.teachers.diffusion.schedules import Schedule

Tensor = Any
Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t, timestep) -> the network's raw output for that input."""


def leading_timesteps(total: int, steps: int, offset: int = 0) -> list[int]:
    """Return `steps` evenly spaced timesteps from 0 up, ascending (diffusers 'leading')."""
    stride = total // steps
    return [min(step * stride + offset, total - 1) for step in range(steps)]


Level = tuple[float, float]
"""Factors of the clean image and of the noise; `CLEAN` is the image itself."""
CLEAN: Level = (1.0, 0.0)


@dataclass(frozen=True)
class SamplerSettings:
    """How to walk from noise to an image."""

    name: str = "ddim"
    """ddim (Song et al. 2021) or dpm (DPM-Solver++ 2M, Lu et al. 2022)."""
    eta: float = 0.0
    """Share of fresh noise per DDIM step, 0 (deterministic) .. 1 (as ancestral sampling)."""
    clip: bool = True
    """Clip the estimate of the clean image to [-1, 1] at each step (pixel space only)."""
    visit: Callable[[Tensor, int], None] = field(default=lambda _x, _t: None)
    """Called with (x_t, timestep) before each network call, to record features there."""


def ddim_step(
    schedule: Schedule,
    x_t: Tensor,
    output: Tensor,
    *,
    now: Level,
    then: Level,
    eta: float = 0.0,
    fresh: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """Take one DDIM step from the level `now` to the level `then`.

    With `clip` the noise estimate is recomputed from the clipped image, as the official code does.

    Source: Song et al. 2021, eq. 12 and 16; for EDM and flow models the same line through the two
    levels (their deterministic Euler step).
    """
    x0, eps = schedule.predict(x_t, output, now)
    if clip:
        x0 = x0.clip(-1, 1)
        eps = (x_t - now[0] * x0) / now[1]
    sigma = 0.0
    if eta and then[1] > 0:
        sigma = eta * (then[1] / now[1]) * math.sqrt(max(0.0, 1 - (now[0] / then[0]) ** 2))
    moved = then[0] * x0 + math.sqrt(max(0.0, then[1] ** 2 - sigma**2)) * eps
    return moved if fresh is None or sigma == 0 else moved + sigma * fresh


def sample(
    schedule: Schedule,
    denoise: Denoiser,
    x: Tensor,
    timesteps: Sequence[int],
    settings: SamplerSettings,
    fresh: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Walk from pure noise to a clean image.

    Args:
        denoise: the network.
        x: standard normal noise, the image's shape.
        timesteps: ascending; the highest is visited first.
        fresh: gives the noise of a step when eta > 0.

    Returns:
        the clean image (or latent), same shape as x.
    """
    levels = [CLEAN, *map(schedule.level, timesteps)]
    solver = _DpmSolver() if settings.name == "dpm" else None
    signal, noise = levels[-1]
    if signal > 0.5:  # variance-exploding: the start is noise of the highest level's size
        x = noise * x
    for rung in reversed(range(len(timesteps))):
        timestep, now, then = timesteps[rung], levels[rung + 1], levels[rung]
        settings.visit(x, timestep)
        output = denoise(x, timestep)
        if solver is not None:
            x0, _ = schedule.predict(x, output, now)
            x = solver.step(x, x0.clip(-1, 1) if settings.clip else x0, now, then)
            continue
        noise_now = fresh(rung) if fresh is not None and settings.eta else None
        x = ddim_step(
            schedule, x, output, now=now, then=then, eta=settings.eta, fresh=noise_now,
            clip=settings.clip,
        )  # fmt: skip
    return x


class _DpmSolver:
    """DPM-Solver++ 2M: a second-order multistep solver on the clean-image estimate.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2; the first step and the last are first order.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, float] | None = None

    def step(self, x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
        if then[1] == 0:
            return x0
        half_log_snr = math.log(max(now[0], 1e-12) / now[1])
        h = math.log(then[0] / then[1]) - half_log_snr
        estimate = x0
        if self._last is not None:
            previous, h_previous = self._last
            ratio = h / (2 * h_previous)
            estimate = (1 + ratio) * x0 - ratio * previous
        self._last = (x0, h)
        return (then[1] / now[1]) * x - then[0] * math.expm1(-h) * estimate


def invert(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tensor,
    timesteps: Sequence[int],
    visit: Callable[[Tensor, int], None],
) -> Tensor:
    """Walk without noise from a clean image up to the last of `timesteps` ("guided" convention).

    Args:
        denoise: the network; called once for every timestep but the last.
        x0: the clean image; it enters as the level of timesteps[0].
        timesteps: ascending.
        visit: called with (x_t, timestep) at every timestep, the last included.

    Returns:
        the noisy image at timesteps[-1].

    Source: Song et al. 2021, eq. 14 reversed; Dhariwal and Nichol's `ddim_reverse_sample`.
    """
    visit(x0, timesteps[0])
    x = x0
    for low, high in itertools.pairwise(timesteps):
        now, then = schedule.level(low), schedule.level(high)
        x = ddim_step(schedule, x, denoise(x, low), now=now, then=then, clip=False)
        visit(x, high)
    return x
