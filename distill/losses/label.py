"""Label distillation: soft cross-entropy with a temperature (DreamTeacher, section 3.2).

Shapes: B samples, K classes, cells h x w of a map, or none for labels of whole images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32


@in_float32
def soft_cross_entropy(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, scaled: bool = False
) -> Tensor:
    """Return the cross-entropy of softened predictions, the mean over samples and cells.

    L_ld = - sum_k p_k log q_k, p = softmax(teacher / tau), q = softmax(student / tau).

    Args:
        student: logits, float (B, K, h, w) or (B, K).
        teacher: logits of the same shape; no gradient flows into them. Classes of -inf have no
            probability.
        temperature: tau; 4 in the paper.
        scaled: multiply by tau^2, so that gradients do not shrink with it (Hinton et al. 2015); the
            paper does not say so.

    Returns:
        float32 scalar.

    Source: DreamTeacher, equation 5.
    """
    target = (teacher.detach().float() / temperature).softmax(dim=1)
    logs = (student.float() / temperature).log_softmax(dim=1)
    loss = -(target * logs).sum(dim=1).mean()
    return loss * temperature**2 if scaled else loss


@in_float32
def from_top_k(logits: Tensor, classes: Tensor, *, num_classes: int) -> Tensor:
    """Spread pairs of logit and class over all classes; the others get -inf.

    The softmax of the result is that of the whole logits, renormalised over the classes kept.

    Args:
        logits: float (B, k, ...).
        classes: integers of the same shape, 0..K-1, each once per cell.
        num_classes: K.

    Returns:
        float32 (B, K, ...).
    """
    shape = (len(logits), num_classes, *logits.shape[2:])
    whole = torch.full(shape, -torch.inf, device=logits.device)
    return whole.scatter_(1, classes.long(), logits.float())


@in_float32
def resized_logits(logits: Tensor, *, size: tuple[int, ...]) -> Tensor:
    """Bring logits (B, K, h, w) to another resolution, bilinear; without cells, as they are."""
    if logits.dim() < 4 or tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=list(size), mode="bilinear", antialias=True)
