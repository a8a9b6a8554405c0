"""Squeeze-and-Span's loss: two embeddings agree, in dimensions that vary and differ.

Shapes: B samples, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from distill.losses.vicreg import covariance, variance
from pipeline.learning.precise import in_float32

Reduction = Literal["mean", "sum"]


@in_float32
def regularised_distance(
    first: Tensor,
    second: Tensor,
    *,
    distance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    both_sides: bool = True,
    reduction: Reduction = "mean",
) -> dict[str, Tensor]:
    """Return Squeeze-and-Span's loss of two embeddings of the same samples, with its terms.

    loss = l * RD(first, second) + m * (var(first) + var(second)) + n * (cov(first) + cov(second)),
    RD the squared distance. Both embeddings get gradients, whichever side is regularised.

    Args:
        first: (B, D), the student's.
        second: (B, D), the squeezed teacher's, or the student's of another view.
        distance_weight, variance_weight, covariance_weight: l, m, n.
        both_sides: regularise both (the paper), or the first alone (the official code).
        reduction: RD's over D, the mean (the official code, to which 25/25/1 belong) or the sum
            (the paper's norm); the mean over B.

    Returns:
        float32 scalars "loss", "distance", "variance", "covariance", the last three unweighted.

    Source: Squeeze-and-Span, equations 8 to 12.
    """
    distance = F.mse_loss(first.float(), second.float())
    if reduction == "sum":
        distance = distance * first.shape[1]
    regularised = (first, second) if both_sides else (first,)
    spread = sum((variance(z) for z in regularised[1:]), variance(first))
    repeated = sum((covariance(z) for z in regularised[1:]), covariance(first))
    loss = distance_weight * distance + variance_weight * spread + covariance_weight * repeated
    return {"loss": loss, "distance": distance, "variance": spread, "covariance": repeated}
