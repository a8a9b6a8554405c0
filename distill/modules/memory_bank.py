"""CRD's memory: one embedding of each sample of the dataset.

Shapes: B samples of a batch, N of the dataset, K negatives, D dimensions.
"""

from __future__ import annotations

import math

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
    log_constant: Tensor

    def __init__(self, samples: int, width: int, *, momentum: float) -> None:
        super().__init__()
        bound = (3 / width) ** 0.5
        self.momentum = momentum
        self.register_buffer("rows", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("log_constant", torch.tensor(torch.nan))

    @in_float32
    def log_scores(self, embeddings: Tensor, numbers: Tensor, *, temperature: float) -> Tensor:
        """Return log(exp(cosine / T) / Z) with chosen rows; Z is N times the first batch's mean.

        Args:
            embeddings: (B, D), normalised.
            numbers: int64 (B, K + 1), rows; the positive's first.
            temperature: T.

        Returns:
            float32 (B, K + 1).
        """
        chosen = self.rows[numbers]  # a copy: later updates leave it as it is
        likeness = torch.einsum("bkd,bd->bk", chosen, embeddings.float())
        logs = likeness / temperature
        sums = gathered_rows(logs.detach().flatten().logsumexp(dim=0)[None])
        share = len(self.rows) / (logs.numel() * len(sums))
        fresh = sums.logsumexp(dim=0) + math.log(share)
        self.log_constant.copy_(torch.where(self.log_constant.isnan(), fresh, self.log_constant))
        return logs - self.log_constant.clone()

    @torch.no_grad()
    def update(self, embeddings: Tensor, numbers: Tensor) -> None:
        """Move the rows of a batch's samples towards their embeddings, (B, D) and int64 (B,).

        Of a sample that comes twice, where one epoch ends and another begins, the last one counts.
        """
        every = gathered_rows(embeddings.detach().float())
        places = gathered_rows(numbers)
        order = torch.arange(len(places), device=places.device)
        last = ((places[:, None] == places) * order).amax(dim=1)
        moved = self.momentum * self.rows[places] + (1 - self.momentum) * every[last]
        self.rows.index_copy_(0, places, F.normalize(moved, dim=1))
