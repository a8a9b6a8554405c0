"""The interpreter's loss: cross-entropy and the generalised Dice loss.

Shapes: B samples, K classes, h and w pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def generalised_dice(logits: Tensor, target: Tensor, *, ignore: int) -> Tensor:
    """Return 1 - 2 * sum_c w_c I_c / sum_c w_c U_c over a batch, w_c = 1 / (pixels of class c)^2.

    I_c is the sum of the probabilities of class c over its own pixels, U_c that over all pixels
    plus the number of its own. Pixels to ignore are in neither; classes that the batch has no pixel
    of have weight 0 (they would have an infinite one).

    Args:
        logits: float (B, K, h, w).
        target: int64 (B, h, w), classes 0..K-1 or `ignore`.
        ignore: value of pixels without a class.

    Returns:
        float32 scalar in 0..1; 0 where no pixel has a class.

    Source: Sudre et al. 2017 (generalised Dice overlap), cited by DreamTeacher for its interpreter.
    """
    known = target != ignore
    if not bool(known.any()):
        return logits.float().sum() * 0.0  # keeps the graph
    probabilities = logits.float().softmax(dim=1).movedim(1, -1)[known]
    truth = F.one_hot(target[known], logits.shape[1]).float()
    pixels = truth.sum(dim=0)
    weight = torch.where(pixels > 0, pixels.clamp(min=1).square().reciprocal(), 0.0)
    intersection = (weight * (truth * probabilities).sum(dim=0)).sum()
    union = (weight * (truth + probabilities).sum(dim=0)).sum()
    return 1 - 2 * intersection / union


def interpreter_loss(
    logits: Tensor, target: Tensor, *, ignore: int, dice_weight: float
) -> dict[str, Tensor]:
    """Return cross-entropy + dice_weight * generalised Dice, with its terms.

    Args:
        logits: float (B, K, h, w) of masks, or (B, K) of class labels, which have no Dice term.
        target: int64 (B, h, w) or (B,), classes 0..K-1 or `ignore`.
        ignore: value without a class.
        dice_weight: 3 in the paper.

    Returns:
        float32 scalars "loss", "ce" and, for masks, "dice"; 0 where nothing has a class.

    Source: DreamTeacher, appendix (feature interpreter).
    """
    known = (target != ignore).sum().clamp(min=1)
    summed = F.cross_entropy(logits.float(), target, ignore_index=ignore, reduction="sum")
    terms = {"ce": summed / known}
    loss = terms["ce"]
    if logits.dim() == 4:
        terms["dice"] = generalised_dice(logits, target, ignore=ignore)
        loss = loss + dice_weight * terms["dice"]
    return {"loss": loss, **terms}
