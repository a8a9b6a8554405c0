"""Latents drawn from a truncated normal distribution, by sample index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamshard import rng

BOUND = 2.0
FORMS = ("scaled", "bounded")
"""Ways to truncate by tau.

scaled: tau times a normal cut at 2, as BigGAN's published samples; bounded: a normal cut at 2 tau,
not scaled, as in IC-GAN's notebooks.
"""


def truncated_normal(
    seed: int,
    indices: Sequence[int] | np.ndarray,
    shape: tuple[int, ...],
    *,
    tau: float,
    form: str,
) -> np.ndarray:
    """Draw from the standard normal distribution, truncated.

    Args:
        seed: the run's seed.
        indices: int64 (N,), of the samples.
        shape: of one sample's latent.
        tau: above 0.
        form: one of `FORMS`.

    Returns:
        float32 (N, *shape).
    """
    from scipy.special import ndtr, ndtri

    bound, scale = (BOUND, tau) if form == "scaled" else (BOUND * tau, 1.0)
    low, high = ndtr(-bound), ndtr(bound)
    drawn = rng.uniform(seed, indices, 0, "latent", shape)
    cut = np.clip(ndtri(low + drawn * (high - low)), -bound, bound).astype(np.float32)
    return cut * np.float32(scale)
