"""Diffusion training losses as pure functions of images, noise and noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamshard import rng
from pipeline.teachers.diffusion import schedulers
from pipeline.teachers.diffusion.schedules import Schedule

if TYPE_CHECKING:
    from torch import Tensor

P_MEAN, P_STD = -1.2, 1.2
"""Mean and standard deviation of log sigma in EDM training (Karras et al. 2022, table 1)."""


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels of a batch: float64 (N,) each; `time` is what the network is told."""

    signal: np.ndarray
    noise: np.ndarray
    time: np.ndarray


@dataclass(frozen=True)
class Example:
    """One training batch: the network's input and time, its target and the loss weights (N,)."""

    x: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor


def scheduler_config(kind: str, noise_schedule: str, timesteps: int) -> dict[str, Any]:
    """Return the diffusers scheduler config that goes with a training objective.

    Args:
        kind: epsilon, v_prediction, sample, flow or edm.
        noise_schedule: linear, cosine or scaled_linear.
        timesteps: of the schedule (count).
    """
    if kind == "flow":
        name = "FlowMatchEulerDiscreteScheduler"
        return {"_class_name": name, "num_train_timesteps": timesteps, "shift": 1.0}
    if kind == "edm":
        sigmas = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
        head = {"_class_name": "EDMEulerScheduler", "num_train_timesteps": timesteps}
        return {**head, **sigmas, "prediction_type": "epsilon"}
    beta = {"cosine": "squaredcos_cap_v2"}.get(noise_schedule, noise_schedule)
    # The usual 1e-4 and 0.02 are meant for 1000 steps; others keep the same total noise.
    start, end = (0.00085, 0.012) if noise_schedule == "scaled_linear" else (1e-4, 0.02)
    scale = 1000 / timesteps
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": timesteps,
        "beta_schedule": beta,
        "beta_start": start * scale,
        "beta_end": min(end * scale, 0.999),
        "prediction_type": kind,
        "clip_sample": True,
    }


def draw_levels(schedule: Schedule, *, seed: int, positions: Sequence[int]) -> NoiseLevels:
    """Draw each position's noise level: a uniform timestep, or EDM's log-normal sigma."""
    if schedule.prediction == "edm":
        normal = rng.normal(seed, positions, 0, "pretrain-sigma", ()).astype(np.float64)
        sigma = np.exp(P_MEAN + P_STD * normal)
        return NoiseLevels(np.ones_like(sigma), sigma, np.log(sigma) / 4)
    steps = rng.integers(seed, positions, 0, "pretrain-timestep", (), len(schedule))
    return NoiseLevels(schedule.signal[steps], schedule.noise[steps], schedule.time[steps])


def example(
    schedule: Schedule, x0: Tensor, eps: Tensor, levels: NoiseLevels, *, min_snr: float = 0.0
) -> Example:
    """Make a training batch.

    Args:
        schedule: decides the target by its `prediction`.
        x0, eps: images in [-1, 1] and standard normal noise, float32 (N, C, H, W).
        levels: of each image.
        min_snr: cap gamma on the signal-to-noise ratio, in terms of the image's error; 0 for none.

    Source: DDPM eq. 14; Salimans and Ho 2022 (v); Hang et al. 2023 eq. 8 (min-SNR); EDM eq. 8.
    """
    import torch

    def column(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(x0.device)[:, None, None, None]

    a, s = column(levels.signal), column(levels.noise)
    x_t = a * x0 + s * eps
    snr = (levels.signal / np.maximum(levels.noise, 1e-12)) ** 2
    capped = np.minimum(snr, min_snr) if min_snr else snr
    weight, x, kind = np.ones_like(snr), x_t, schedule.prediction
    if kind == "epsilon":
        target = eps
        weight = np.divide(capped, snr, out=weight, where=snr > 0)
    elif kind == "v_prediction":
        target = a * eps - s * x0
        weight = capped / (snr + 1) if min_snr else weight
    elif kind == "sample":
        target = x0
        weight = capped if min_snr else weight
    elif kind == "flow_prediction":
        target = eps - x0
    else:
        total = levels.noise**2 + schedule.sigma_data**2
        x = x_t * column(total**-0.5)
        skip, out = schedule.sigma_data**2 / total, levels.noise * schedule.sigma_data * total**-0.5
        # EDM's weight makes the loss of the raw network's output weigh the same at every sigma.
        target = (x0 - column(skip) * x_t) / column(out)
    whole = bool(np.all(levels.time == np.round(levels.time)))
    time = torch.from_numpy(levels.time.astype(np.int64 if whole else np.float32)).to(x0.device)
    return Example(x, time, target, column(weight)[:, 0, 0, 0])


def loss_of(output: Tensor, batch: Example) -> Tensor:
    """Return the weighted mean squared error of a batch, a float32 scalar."""
    errors = (output.float() - batch.target).square().mean((1, 2, 3))
    return (batch.weight * errors).mean()


def schedule_for(kind: str, noise_schedule: str, timesteps: int) -> Schedule:
    """Return the schedule of a training objective."""
    return schedulers.from_config(scheduler_config(kind, noise_schedule, timesteps))
