"""Random numbers of samples, the same ones at any number of ranks.

PyTorch's generators are seeded per step and rank, which is right for dropout; what an objective
draws of the data (negatives, teachers to drop, shifts) would differ from that of one process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Steps and factors of splitmix64."""
LANE = 1 << 20
"""Most numbers that a sample draws at once; of one draw to the next as far apart."""


class SampleDraws(nn.Module):
    """Draw from a sample's number and how often there were draws; a part of checkpoints.

    Args:
        seed: of the run's draws of this purpose.
    """

    count: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def integers(self, numbers: Tensor, width: int, *, below: int) -> Tensor:
        """Return whole numbers of 0..below - 1, int64 (B, width); the next call draws others.

        Args:
            numbers: int64 (B,), of the samples.
            width: numbers per sample, at most `LANE`.
            below: end of their range, at most 2^31: far fewer than there are bits.
        """
        lane = torch.arange(width, device=numbers.device) + self.count * LANE
        start = hashed(hashed(numbers + hashed_int(self.seed))[:, None] + lane)
        self.count.add_(1)
        return shifted(start, 1) % below

    def uniform(self, numbers: Tensor, width: int) -> Tensor:
        """Return numbers of 0..1, 1 left out, float32 (B, width); arguments as of `integers`."""
        return self.integers(numbers, width, below=1 << 24).float() / (1 << 24)


def hashed(values: Tensor) -> Tensor:
    """Spread int64 numbers over all 64 bits: splitmix64's step and finaliser, wrapping around."""
    step, first, second = (constant - (1 << 64) for constant in MIX)
    values = values * step + step
    values = (values ^ shifted(values, 30)) * first
    values = (values ^ shifted(values, 27)) * second
    return values ^ shifted(values, 31)


def shifted(values: Tensor, bits: int) -> Tensor:
    """Shift int64 numbers right as if they had no sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def hashed_int(seed: int) -> int:
    """Return a seed's hash as a Python number that fits int64."""
    return int(hashed(torch.tensor(seed % (1 << 62))))
