"""SimSiam's loss: each view's prediction of the other's projection.

Shapes: B samples, D dimensions of an embedding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32


@in_float32
def simsiam_loss(
    first_prediction: Tensor,
    second_prediction: Tensor,
    first_projection: Tensor,
    second_projection: Tensor,
) -> Tensor:
    """Return the symmetric negative cosine, without gradient through the projections.

    loss = -(cos(p1, stop(z2)) + cos(p2, stop(z1))) / 2, the mean over samples.

    Args:
        first_prediction, second_prediction: p1 and p2, (B, D).
        first_projection, second_projection: z1 and z2, (B, D).

    Returns:
        float32 scalar, -1..1.

    Source: SimSiam, equations 1 and 3.
    """
    one = F.cosine_similarity(first_prediction.float(), second_projection.detach().float())
    other = F.cosine_similarity(second_prediction.float(), first_projection.detach().float())
    return -(one.mean() + other.mean()) / 2
