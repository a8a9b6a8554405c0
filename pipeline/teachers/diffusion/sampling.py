"""Samplers and inversion as plain functions of a `Schedule`; nothing here knows a network.

Two conventions of the DDIM inversion exist. This project uses guided-diffusion's ("guided"): at
level i the network is asked at level i's own timestep and the result moves to level i+1; the clean
image is taken as the level of the first timestep. (diffusers' DDIMInverseScheduler asks at the
target timestep instead; results differ clearly.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.teachers.diffusion.schedules import Schedule

Tensor = Any
Denoiser = Callable[[Tensor, int], Tensor]
"""(x_t, timestep) -> the network's raw output for that input."""


def leading_timesteps(total: int, steps: int, offset: int = 0) -> list[int]:
    """Return `steps` evenly spaced timesteps from 0 up, ascending (diffusers 'leading')."""
    stride = total // steps
    return [min(step * stride + offset, total - 1) for step in range(steps)]


def respaced_timesteps(total: int, respacing: str) -> list[int]:
    """Return the original timesteps a guided-diffusion `timestep_respacing` string keeps.

    Args:
        total: number of training timesteps.
        respacing: "" for all, "ddimN" for every (total/N)-th, "N" for N from first to last,
            or "a,b,c" for that many in each of as many equal sections.

    Source: Dhariwal and Nichol 2021, official option of that name.
    """
    if not respacing:
        return list(range(total))
    if respacing.startswith("ddim"):
        wanted = int(respacing.removeprefix("ddim"))
        for stride in range(1, total):
            if len(range(0, total, stride)) == wanted:
                return list(range(0, total, stride))
        raise ConfigError(Problem("timestep_respacing", respacing, f"a stride dividing {total}"))
    counts = [int(part) for part in respacing.split(",")]
    chosen: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = total // len(counts) + (1 if section < total % len(counts) else 0)
        if not 1 <= count <= size:
            allowed = f"1..{size} steps in a section of {size}"
            raise ConfigError(Problem("timestep_respacing", respacing, allowed))
        gap, place = ((size - 1) / (count - 1) if count > 1 else 1.0), 0.0
        for _ in range(count):  # added up, not multiplied: rounding must be the official code's
            chosen.append(start + round(place))
            place += gap
        start += size
    return sorted(set(chosen))


@dataclass
class _Ladder:
    """The noise levels a sampler visits, with the clean image below the lowest."""

    schedule: Schedule
    timesteps: Sequence[int]  # ascending

    def at(self, rung: int) -> tuple[float, float]:
        """Return (signal, noise) of a rung; rung -1 is the clean image."""
        if rung < 0:
            return 1.0, 0.0
        timestep = self.timesteps[rung]
        return float(self.schedule.signal[timestep]), float(self.schedule.noise[timestep])


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
    now: tuple[float, float],
    then: tuple[float, float],
    eta: float = 0.0,
    fresh: Tensor | None = None,
    clip: bool = True,
) -> Tensor:
    """Take one DDIM step from noise level `now` to `then`, each (signal, noise).

    With `clip` the noise estimate is recomputed from the clipped image, as the official code does.

    Source: Song et al. 2021, eq. 12 and 16; for EDM and flow models the same line through the two
    levels (their deterministic Euler step).
    """
    x0, eps = schedule.predict_at(x_t, output, signal=now[0], noise=now[1])
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
    ladder = _Ladder(schedule, timesteps)
    solver = _DpmSolver() if settings.name == "dpm" else None
    signal, noise = ladder.at(len(timesteps) - 1)
    if signal > 0.5:  # variance-exploding: the start is noise of the highest level's size
        x = noise * x
    for rung in reversed(range(len(timesteps))):
        timestep = timesteps[rung]
        now, then = ladder.at(rung), ladder.at(rung - 1)
        settings.visit(x, timestep)
        output = denoise(x, timestep)
        if solver is not None:
            x0, _ = schedule.predict_at(x, output, signal=now[0], noise=now[1])
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

    def step(
        self, x: Tensor, x0: Tensor, now: tuple[float, float], then: tuple[float, float]
    ) -> Tensor:
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
    visit: Callable[[Tensor, int], None] | None = None,
    *,
    clip: bool = False,
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
    ladder = _Ladder(schedule, timesteps)
    x = x0
    for rung, timestep in enumerate(timesteps):
        if visit is not None:
            visit(x, timestep)
        if rung == len(timesteps) - 1:
            break
        output = denoise(x, timestep)
        x = ddim_step(schedule, x, output, now=ladder.at(rung), then=ladder.at(rung + 1), clip=clip)
    return x


def posterior(
    betas: np.ndarray, timestep: int, *, x_t: Tensor, x0: Tensor, variance: Tensor | None
) -> tuple[Tensor, Tensor | float]:
    """Return mean and log variance of q(x_{t-1} | x_t, x_0), the latter between its two bounds.

    Args:
        betas: float64 (T,).
        variance: the network's variance channels in [-1, 1] ("learned range"), or None for the
            fixed small variance.

    Source: DDPM eq. 7; Nichol and Dhariwal 2021 eq. 15.
    """
    bar = np.cumprod(1 - betas)
    before = np.append(1.0, bar[:-1])
    beta, bar_t, bar_b = float(betas[timestep]), float(bar[timestep]), float(before[timestep])
    mean = (beta * math.sqrt(bar_b) / (1 - bar_t)) * x0
    mean = mean + ((1 - bar_b) * math.sqrt(1 - beta) / (1 - bar_t)) * x_t
    small = betas * (1 - before) / (1 - bar)
    # The first posterior variance is 0; the official code uses the second in its place.
    low = math.log(float(small[timestep] if timestep else small[1]))
    if variance is None:
        return mean, low
    share = (variance + 1) * 0.5
    return mean, share * math.log(beta) + (1 - share) * low
