"""Latents drawn from a truncated normal distribution, by sample index."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dreamshard import rng

BOUND = 2.0
FORMS: dict[str, Callable[[float], float]] = {
    "scaled": lambda _: BOUND,
    "bounded": lambda tau: BOUND * tau,
}
"""Name of a form -> bound at which the normal distribution is cut, by tau.

scaled: tau times a normal cut at 2, as BigGAN's published samples; bounded: a normal cut at 2 tau,
not scaled, as in IC-GAN's notebooks.
"""


def truncated_normal(
    seed: int, indices: Sequence[int] | np.ndarray, shape: tuple[int, ...], *, bound: float
) -> np.ndarray:
    """Draw from the standard normal distribution cut to [-bound, bound].

    Args:
        seed: the run's seed.
        indices: int64 (N,), of the samples.
        shape: of one sample's latent.
        bound: above 0.

    Returns:
        float32 (N, *shape).
    """
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-bound), ndtr(bound)
    drawn = rng.uniform(seed, indices, 0, "latent", shape)
    return np.clip(ndtri(low + drawn * (high - low)), -bound, bound).astype(np.float32)
