"""Similarity distillation: the same neighbours among anchors for student and teacher.

Shapes: B samples, K anchors, D and E dimensions of the student's and the teacher's embedding.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32


@in_float32
def anchor_similarity(
    student: Tensor,
    teacher: Tensor,
    *,
    student_anchors: Tensor,
    teacher_anchors: Tensor,
    temperature: float = 0.04,
) -> Tensor:
    """Return how far a student's similarities to anchors are from its teacher's.

    loss = mean over B of KL(p_t || p_s), with p_t = softmax over k of t . q_k / T of the teacher's
    anchors, and p_s of the student's; t and s are normalised here, anchors are taken as they are.
    Both sides have the same T, and the loss no factor T^2.

    Args:
        student: (B, D); the only one that gets a gradient.
        teacher: (B, E).
        student_anchors: (K, D).
        teacher_anchors: (K, E), of the same samples in the same order.
        temperature: T; 0.04 in the paper.

    Returns:
        float32 scalar, 0 or more.

    Source: CompRess, section 3, equations 1 to 3.
    """
    s, t = (F.normalize(each.float(), dim=1) for each in (student, teacher.detach()))
    own = (s @ student_anchors.detach().T / temperature).log_softmax(dim=1)
    wanted = (t @ teacher_anchors.detach().T / temperature).log_softmax(dim=1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)


@in_float32
def regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of a student's embedding.

    Args:
        student, teacher: (B, E); no gradient reaches the teacher.

    Source: CompRess's baseline Reg.
    """
    return F.mse_loss(student.float(), teacher.detach().float())


@in_float32
def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the number of each point's nearest centroid, int64 (B,).

    Args:
        points: (B, E).
        centroids: (K, E).
    """
    return (centroids.square().sum(dim=1) / 2 - points @ centroids.T).argmin(dim=1)
