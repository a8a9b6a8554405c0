"""Noise schedules: how an image is mixed with noise at a timestep, what the output means.

Everything here is float64 numpy on scalars; it multiplies torch tensors and numpy arrays alike,
so this module needs neither torch nor diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any
"""A numpy array or a torch tensor."""


@dataclass(frozen=True)
class Schedule:
    """Describe a forward process `x_t = signal[t] x_0 + noise[t] eps` and the network's target.

    Args:
        signal: float64 (T,), factor of the clean image at each timestep.
        noise: float64 (T,), factor of the standard normal noise at each timestep.
        prediction: what the network predicts (epsilon, sample, v_prediction, flow_prediction, edm).
        time: float64 (T,), what the network is told at each timestep.
        sigma_data: EDM only, standard deviation of the data the preconditioning assumes.
        shift: flow only, how a sampling grid leans towards noise (1 = evenly spaced).
        offset: added to 'leading' sampling timesteps (`steps_offset` of a scheduler config).

    Source: DDPM (Ho et al. 2020) eq. 4; EDM (Karras et al. 2022) table 1; rectified flow.
    """

    signal: np.ndarray
    noise: np.ndarray
    prediction: str
    time: np.ndarray
    sigma_data: float = 0.5
    shift: float = 1.0
    offset: int = 0

    def __len__(self) -> int:
        return len(self.signal)

    def level(self, timestep: int) -> tuple[float, float]:
        """Return a timestep's factors of the clean image and of the noise."""
        return float(self.signal[timestep]), float(self.noise[timestep])

    def add_noise(self, x0: Array, eps: Array, timestep: int) -> Array:
        """Mix a clean image with noise; x0 and eps have the same shape and any float dtype."""
        signal, noise = self.level(timestep)
        return signal * x0 + noise * eps

    def model_input(self, x_t: Array, timestep: int) -> Array:
        """Scale a noisy image the way the network expects it (EDM's c_in; else unchanged)."""
        if self.prediction != "edm":
            return x_t
        return x_t * (1.0 / math.hypot(float(self.noise[timestep]), self.sigma_data))

    def predict(self, x_t: Array, output: Array, level: tuple[float, float]) -> tuple[Array, Array]:
        """Turn the network's output at a `level` into its estimates of (x_0, eps)."""
        signal, noise = level
        if self.prediction == "epsilon":
            gain = 1.0 / max(signal, 1e-12)
            return gain * x_t - (gain * noise) * output, output
        if self.prediction == "v_prediction":
            return signal * x_t - noise * output, signal * output + noise * x_t
        if self.prediction == "flow_prediction":
            return x_t - noise * output, x_t + signal * output
        if self.prediction == "edm":
            total = noise**2 + self.sigma_data**2
            skip, out = self.sigma_data**2 / total, noise * self.sigma_data / math.sqrt(total)
            output = skip * x_t + out * output
        return output, (x_t - signal * output) * (1.0 / max(noise, 1e-12))


def cosine_betas(steps: int) -> np.ndarray:
    """Return betas of the cosine schedule, float64 (steps,).

    Source: Nichol and Dhariwal 2021, eq. 17, with their cap of 0.999.
    """
    u = np.arange(steps + 1, dtype=np.float64) / steps
    bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def from_betas(
    betas: np.ndarray, *, prediction: str = "epsilon", zero_snr: bool = False, offset: int = 0
) -> Schedule:
    """Build a variance-preserving schedule from betas, float64 (T,).

    Args:
        zero_snr: rescale so that the last timestep is pure noise (Lin et al. 2023, algorithm 1).
    """
    bar = np.cumprod(1.0 - np.asarray(betas, dtype=np.float64))
    if zero_snr:
        root = np.sqrt(bar)
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    time = np.arange(len(bar), dtype=np.float64)
    return Schedule(np.sqrt(bar), np.sqrt(1 - bar), prediction, time, offset=offset)


def flow(steps: int = 1000, *, time_scale: float = 1000.0, shift: float = 1.0) -> Schedule:
    """Build a rectified-flow schedule: timestep t mixes `(1 - t/steps) x_0 + t/steps eps`.

    Timesteps are 0..steps inclusive, and mean the noise share in thousandths whatever the
    sampler's shift, which only moves the sampling grid.
    """
    sigma = np.arange(steps + 1, dtype=np.float64) / steps
    return Schedule(1 - sigma, sigma, "flow_prediction", sigma * time_scale, shift=shift)


def edm(
    steps: int = 1000,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
) -> Schedule:
    """Build an EDM schedule: timestep 0 is sigma_min, the last one sigma_max, spaced by rho.

    Source: Karras et al. 2022, eq. 5 and table 1 (preconditioning).
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma = (low + np.linspace(0, 1, steps) * (high - low)) ** rho
    return Schedule(np.ones(steps), sigma, "edm", np.log(sigma) / 4, sigma_data=sigma_data)
