"""CRD's noise-contrastive loss.

Shapes: B samples, K negatives; the first of K + 1 scores is the positive's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.learning.precise import in_float32

EPS = 1e-7


@in_float32
def noise_contrast(scores: Tensor, *, samples: int) -> Tensor:
    """Return the loss of telling a positive from K negatives drawn uniformly among N samples.

    loss = -mean over B of (log h(s_0) + sum over k of log(1 - h(s_k))), h(s) = s / (s + K / N).

    Args:
        scores: float (B, K + 1), above 0: exp(cosine / T) over their normalising constant.
        samples: N.

    Returns:
        float32 scalar.

    Source: CRD (Tian et al. 2020), equations 8 and 9; official code (ContrastLoss).
    """
    scores = scores.float()
    noise = (scores.shape[1] - 1) / samples
    positive = (scores[:, 0] / (scores[:, 0] + noise + EPS)).log()
    negative = torch.log(noise / (scores[:, 1:] + noise + EPS)).sum(dim=1)
    return -(positive + negative).mean()
