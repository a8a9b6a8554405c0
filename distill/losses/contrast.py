"""CRD's noise-contrastive loss.

Shapes: B samples, K negatives; the first of K + 1 scores is the positive's.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32


@in_float32
def noise_contrast(log_scores: Tensor, *, samples: int) -> Tensor:
    """Return the loss of telling a positive from K negatives drawn uniformly among N samples.

    loss = -mean over B of (log h(s_0) + sum over k of log(1 - h(s_k))), h(s) = s / (s + K / N),
    in logarithms, as exp(cosine / T) leaves float32 below T = 0.011.

    Args:
        log_scores: float (B, K + 1), log s: cosine / T less the log of the normalising constant.
        samples: N.

    Returns:
        float32 scalar.

    Source: CRD (Tian et al. 2020), equations 8 and 9; official code (ContrastLoss).
    """
    above = log_scores.float() - math.log((log_scores.shape[1] - 1) / samples)
    return (F.softplus(-above[:, 0]) + F.softplus(above[:, 1:]).sum(dim=1)).mean()
