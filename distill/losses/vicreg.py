"""VICReg's three terms: variance, invariance, covariance.

Shapes: B samples, D dimensions of an embedding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32

EPS = 1e-4  # inside the square root; a collapsed embedding then has a hinge of 1 - 0.01


@in_float32
def variance(z: Tensor) -> Tensor:
    """Return the hinge that keeps every dimension's standard deviation at 1 or above.

    var(Z) = mean over D of relu(1 - sqrt(Var(z_j) + 1e-4)), the unbiased variance over the batch.

    Args:
        z: (B, D), B of 2 or more.

    Returns:
        float32 scalar, 0..0.99.

    Source: VICReg, equation 1; Squeeze-and-Span, equation 8.
    """
    return F.relu(1 - (z.float().var(dim=0) + EPS).sqrt()).mean()


@in_float32
def covariance(z: Tensor) -> Tensor:
    """Return how much the dimensions repeat one another.

    cov(Z) = (1/D) sum over i != j of C_ij^2, with C = Zc^T Zc / (B - 1), Zc centred.

    Args:
        z: (B, D), B of 2 or more.

    Returns:
        float32 scalar.

    Source: VICReg, equations 3 and 4.
    """
    z = z.float()
    centred = z - z.mean(dim=0)
    matrix = centred.T @ centred / (len(z) - 1)
    squares = matrix.square()
    return (squares.sum() - squares.diagonal().sum()) / z.shape[1]


@in_float32
def vicreg_loss(
    first: Tensor,
    second: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    halve_variance: bool = False,
) -> dict[str, Tensor]:
    """Return VICReg's loss of two views' embeddings, with its terms.

    loss = l * mean((first - second)^2) + m * (var(first) + var(second)) + n * (cov(first) +
    cov(second)). The distance is the mean over B and D, as in the official code; with 25/25/1 the
    paper's sum over D would drown the other terms.

    Args:
        first, second: (B, D), one view each of the same samples; both get gradients.
        invariance_weight, variance_weight, covariance_weight: l, m, n.
        halve_variance: halve the variance hinge, as the official code does and the paper does not.

    Returns:
        float32 scalars "loss", "invariance", "variance", "covariance", the last three unweighted.

    Source: VICReg, equation 6.
    """
    distance = F.mse_loss(first.float(), second.float())
    spread = variance(first) + variance(second)
    if halve_variance:
        spread = spread / 2
    repeated = covariance(first) + covariance(second)
    loss = invariance_weight * distance + variance_weight * spread + covariance_weight * repeated
    return {"loss": loss, "invariance": distance, "variance": spread, "covariance": repeated}
