"""Feature distillation: whitened regression and attention transfer (DreamTeacher, section 3.1).

Shapes: B samples, C channels, h and w cells of one level's map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.precise import in_float32

WhitenAxes = Literal["c", "chw"]
AttentionForm = Literal["norm", "squared", "mean"]
Regression = Literal["mse", "smooth_l1", "cos_smooth_l1"]

# Far below the variance of any feature map in use, so that scaling a teacher leaves the loss alone.
WHITEN_EPS = 1e-6


@in_float32
def whiten(features: Tensor, *, axes: WhitenAxes = "c") -> Tensor:
    """Normalise a teacher's map to zero mean and unit variance, without parameters.

    W(f) = (f - mean(f)) / sqrt(var(f) + eps), the biased variance, as LayerNorm has it.

    Args:
        features: (B, C, h, w), any floating dtype; worked on in float32.
        axes: "c" takes mean and variance over the channels of each position, "chw" over the whole
            map of each sample. The paper says "LayerNorm" and names no axes.

    Returns:
        float32 (B, C, h, w).

    Source: DreamTeacher, equation 1 (the whitening operator W).
    """
    features = features.float()
    if axes == "chw":
        return F.layer_norm(features, features.shape[1:], eps=WHITEN_EPS)
    per_position = features.permute(0, 2, 3, 1)
    return F.layer_norm(per_position, per_position.shape[-1:], eps=WHITEN_EPS).permute(0, 3, 1, 2)


@in_float32
def map_regression(
    student: Tensor,
    target: Tensor,
    *,
    form: Regression = "mse",
    cosine_share: float = 0.9,
    each: bool = False,
) -> Tensor:
    """Return the distance between a student's map and a target that is standardised already.

    "mse" is the mean of squares; "smooth_l1" Huber's loss with its corner at 1; "cos_smooth_l1" is
    s (1 - cos) + (1 - s) smooth_l1, the cosine of the channels of each position.

    Args:
        student, target: (B, C, h, w); no gradient reaches the target.
        form: which distance.
        cosine_share: s; 0.9 in Theia, 0.5 in UNIC and DUNE.
        each: of each sample.

    Returns:
        float32 scalar, the mean over B, h, w (and C but for the cosine); (B,) with `each`.

    Source: Theia (Shang et al. 2024); UNIC (Sariyildiz et al. 2024).
    """
    student, target = student.float(), target.detach().float()
    mean = _mean_of_each if each else torch.mean
    if form == "mse":
        return mean((student - target).square()) if each else F.mse_loss(student, target)
    smooth = F.smooth_l1_loss(student, target, reduction="none" if each else "mean")
    smooth = mean(smooth) if each else smooth
    if form == "smooth_l1":
        return smooth
    cosine = mean(F.cosine_similarity(student, target, dim=1))
    return cosine_share * (1 - cosine) + (1 - cosine_share) * smooth


def _mean_of_each(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


@in_float32
def cell_similarity(student: Tensor, teacher: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Return how far the likeness of a student's cells to one another is from its teacher's.

    For every cell: KL(softmax(g_t / T) || softmax(g_s / T)), g the cosines of its channels with
    those of every other cell of the image; the mean over B and cells. A cell's likeness to itself,
    1 on both sides, is left out.

    Args:
        student: (B, C, h, w), of two cells or more.
        teacher: (B, C', h, w); the channel counts may differ. No gradient reaches it.
        temperature: T; 0.07 in LightlyTrain.

    Returns:
        float32 scalar, 0 or more.
    """
    logs = []
    for features in (student.float(), teacher.detach().float()):
        cells = F.normalize(features.flatten(2), dim=1)
        likeness = cells.transpose(1, 2) @ cells / temperature  # (B, cells, cells)
        count = likeness.shape[1]
        off = ~torch.eye(count, dtype=torch.bool, device=likeness.device)
        others = likeness.masked_select(off).view(len(likeness), count, count - 1)
        logs.append(others.log_softmax(dim=2).flatten(0, 1))
    return F.kl_div(logs[0], logs[1], reduction="batchmean", log_target=True)


@in_float32
def attention_map(features: Tensor, *, power: float = 2.0) -> Tensor:
    """Return where in the map the energy is, as one unit vector per sample.

    Q = sum over C of |f|^power, flattened over space, divided by its L2 norm.

    Args:
        features: (B, C, h, w).
        power: the exponent p.

    Returns:
        float32 (B, h*w); a map that is zero everywhere stays zero.

    Source: DreamTeacher, equation 2 (vec(F_sum^p) and its normalisation).
    """
    features = features.float()
    energy = features.square() if power == 2.0 else features.abs().pow(power)
    return F.normalize(energy.sum(dim=1).flatten(1), dim=1)


@in_float32
def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2.0,
    form: AttentionForm = "norm",
    each: bool = False,
) -> Tensor:
    """Return the distance between a student's and a teacher's attention maps.

    With d = Q_student - Q_teacher, per sample: "norm" is ||d||_2 (DreamTeacher's formula),
    "squared" is ||d||_2^2, "mean" is the mean of d^2 over cells (the form of Zagoruyko's code,
    about a hundred times smaller). Then the mean over samples. The teacher's map is taken raw,
    not whitened, so that this term restores the spatial energy that whitening removes. Scaling
    either map by a constant changes nothing.

    Args:
        student: (B, C, h, w), the regressor's output.
        teacher: (B, C', h, w), the recorded features; the channel counts may differ.
        power: the exponent p of `attention_map`.
        form: which distance.
        each: of each sample.

    Returns:
        float32 scalar; (B,) with `each`.

    Source: DreamTeacher, equation 2, one level's term.
    """
    target = attention_map(teacher.detach(), power=power)
    difference = attention_map(student, power=power) - target
    if form == "norm":
        distance = torch.linalg.vector_norm(difference, dim=1)
    else:
        squares = difference.square()
        distance = squares.sum(dim=1) if form == "squared" else squares.mean(dim=1)
    return distance if each else distance.mean()


@in_float32
def feature_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    mse_weight: float = 1.0,
    attention_weight: float = 10.0,
    whiten_axes: WhitenAxes = "c",
    attention_power: float = 2.0,
    attention_form: AttentionForm = "norm",
    standardised: Mapping[str, Tensor] | None = None,
    regression: Regression = "mse",
    cosine_share: float = 0.9,
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return DreamTeacher's feature loss over all levels, with its two terms.

    loss = mse_weight * (1/L) sum_l L_MSE(l) + attention_weight * (1/L) sum_l L_AT(l).

    Args:
        student: level name to the regressor's output, (B, C_l, h_l, w_l).
        teacher: level name to the recorded features of the same shape.
        mse_weight: weight of the whitened regression.
        attention_weight: weight of attention transfer; 10 in the paper.
        whiten_axes: see `whiten`.
        attention_power: see `attention_map`.
        attention_form: see `attention_transfer`.
        standardised: the teacher's maps where the dataset's statistics standardise them; None:
            they are whitened.
        regression, cosine_share: see `map_regression`; the paper's is "mse".
        weigh: given both terms of each sample and level (B, L), returns what each counts (B, L),
            1 in sum over the levels; None: 1/L.

    Returns:
        float32 scalars "loss", "mse" and "at", the last two unweighted.

    Source: DreamTeacher, equation 3.
    """
    mse = [
        map_regression(
            student[name],
            whiten(teacher[name].detach(), axes=whiten_axes)
            if standardised is None
            else standardised[name],
            form=regression,
            cosine_share=cosine_share,
            each=weigh is not None,
        )
        for name in student
    ]
    attention = [
        attention_transfer(
            student[name],
            teacher[name],
            power=attention_power,
            form=attention_form,
            each=weigh is not None,
        )
        for name in student
    ]
    if weigh is None:
        mse_mean, at_mean = torch.stack(mse).mean(), torch.stack(attention).mean()
    else:
        both = torch.stack(mse, dim=1), torch.stack(attention, dim=1)
        counts = weigh(*both)
        mse_mean, at_mean = ((counts * each).sum(dim=1).mean() for each in both)
    loss = mse_weight * mse_mean + attention_weight * at_mean
    return {"loss": loss, "mse": mse_mean, "at": at_mean}
