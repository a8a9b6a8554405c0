"""CRD's memory: one embedding of each sample of the dataset.

Shapes: B samples of a batch, N of the dataset, K negatives, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.learning.precise import in_float32
from pipeline.learning.ranks import gathered_rows


class MemoryBank(nn.Module):
    """Keep a moving average of every sample's embedding; the same on every rank.

    Args:
        samples: N.
        width: D.
        momentum: share of itself that a row keeps when its sample comes.

    Source: CRD's official code (ContrastMemory); Wu et al. 2018.
    """

    rows: Tensor
    constant: Tensor

    def __init__(self, samples: int, width: int, *, momentum: float) -> None:
        super().__init__()
        bound = (3 / width) ** 0.5
        self.momentum = momentum
        self.register_buffer("rows", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("constant", torch.tensor(0.0))

    @in_float32
    def scores(self, embeddings: Tensor, numbers: Tensor, *, temperature: float) -> Tensor:
        """Return exp(cosine / T) / Z with chosen rows; Z is N times the first batch's mean.

        Args:
            embeddings: (B, D), normalised.
            numbers: int64 (B, K + 1), rows; the positive's first.
            temperature: T.

        Returns:
            float32 (B, K + 1).
        """
        chosen = self.rows[numbers]  # a copy: later updates leave it as it is
        likeness = torch.einsum("bkd,bd->bk", chosen, embeddings.float())
        values = (likeness / temperature).exp()
        mean = gathered_rows(values.detach().mean()[None]).mean()
        fresh = mean * len(self.rows)
        self.constant.copy_(torch.where(self.constant > 0, self.constant, fresh))
        return values / self.constant.clone()

    @torch.no_grad()
    def update(self, embeddings: Tensor, numbers: Tensor) -> None:
        """Move the rows of a batch's samples towards their embeddings, (B, D) and int64 (B,)."""
        every = gathered_rows(embeddings.detach().float())
        places = gathered_rows(numbers)
        moved = self.momentum * self.rows[places] + (1 - self.momentum) * every
        self.rows.index_copy_(0, places, F.normalize(moved, dim=1))
