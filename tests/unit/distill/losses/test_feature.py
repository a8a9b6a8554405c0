"""Feature losses against hand-computed values and the invariances the paper's form implies."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.feature import (
    attention_map,
    attention_transfer,
    cell_similarity,
    feature_loss,
    map_regression,
    whiten,
)


def random_map(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whitened_mse(student: torch.Tensor, teacher: torch.Tensor, axes: str = "c") -> torch.Tensor:
    """Equation 1 as the method takes it: only the teacher's side is whitened."""
    return map_regression(student, whiten(teacher, axes=axes))  # type: ignore[arg-type]


def test_whitening_over_channels_of_each_position() -> None:
    # One sample, channels (1, 3) at one position and (0, 4) at the other: both become (-1, 1).
    teacher = torch.tensor([[[[1.0, 0.0]], [[3.0, 4.0]]]])
    expected = torch.tensor([[[[-1.0, -1.0]], [[1.0, 1.0]]]])
    torch.testing.assert_close(whiten(teacher), expected, atol=1e-5, rtol=0)


def test_whitening_over_the_whole_map() -> None:
    # Mean of 0, 0, 0, 4 is 1, biased variance 3.
    teacher = torch.tensor([[[[0.0, 0.0]], [[0.0, 4.0]]]])
    expected = (teacher - 1) / math.sqrt(3)
    torch.testing.assert_close(whiten(teacher, axes="chw"), expected, atol=1e-5, rtol=0)


def test_whitened_mse_by_hand() -> None:
    teacher = torch.tensor([[[[1.0]], [[3.0]]]])  # whitened: -1, 1
    student = torch.tensor([[[[0.0]], [[3.0]]]])  # squared errors: 1, 4
    assert whitened_mse(student, teacher).item() == pytest.approx(2.5, abs=1e-4)


def test_attention_map_by_hand() -> None:
    # Energies over channels: 3^2 + 0 = 9 and 0 + (2 sqrt 3)^2 = 12; their norm is 15.
    features = torch.tensor([[[[3.0, 0.0]], [[0.0, math.sqrt(12)]]]])
    torch.testing.assert_close(attention_map(features), torch.tensor([[0.6, 0.8]]))
    # With p = 1: 3 and sqrt 12.
    norm = math.sqrt(9 + 12)
    expected = torch.tensor([[3 / norm, math.sqrt(12) / norm]])
    torch.testing.assert_close(attention_map(features, power=1.0), expected)


def test_attention_transfer_by_hand() -> None:
    # All energy in the left cell against all in the right one: difference (1, -1).
    student = torch.tensor([[[[2.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 5.0]], [[0.0, 1.0]]]])  # another channel count is fine
    assert attention_transfer(student, teacher).item() == pytest.approx(math.sqrt(2))
    squared = attention_transfer(student, teacher, form="squared")
    mean = attention_transfer(student, teacher, form="mean")
    assert squared.item() == pytest.approx(2.0)
    assert mean.item() == pytest.approx(1.0)
    # Energies 3 and 4 of norm 5, against all in the right cell: difference (0.6, -0.2).
    student = torch.tensor([[[[math.sqrt(3), 2.0]]]])
    for form, expected in (("norm", math.sqrt(0.4)), ("squared", 0.4), ("mean", 0.2)):
        distance = attention_transfer(student, teacher, form=form)  # pyright: ignore
        assert distance.item() == pytest.approx(expected)


def test_attention_transfer_is_a_mean_over_samples_not_a_norm_of_the_batch() -> None:
    left, right = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    student, teacher = torch.stack([left, left]), torch.stack([right, left])
    assert attention_transfer(student, teacher).item() == pytest.approx(math.sqrt(2) / 2)


@pytest.mark.parametrize("axes", ["c", "chw"])
def test_mse_does_not_see_the_teachers_scale_and_shift(axes: str) -> None:
    student, teacher = random_map(0, 2, 8, 4, 4), random_map(1, 2, 8, 4, 4)
    plain = whitened_mse(student, teacher, axes=axes)
    moved = whitened_mse(student, 40 * teacher + 7, axes=axes)
    torch.testing.assert_close(plain, moved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-2, 3.0, 1e3])
def test_attention_does_not_see_the_scale_of_either_side(scale: float) -> None:
    student, teacher = random_map(0, 2, 8, 4, 4), random_map(1, 2, 8, 4, 4)
    plain = attention_transfer(student, teacher)
    torch.testing.assert_close(plain, attention_transfer(scale * student, teacher))
    torch.testing.assert_close(plain, attention_transfer(student, scale * teacher))


def test_a_perfect_student_has_no_loss_and_finite_gradients() -> None:
    teacher = whiten(random_map(0, 2, 8, 4, 4))
    student = teacher.clone().requires_grad_()
    terms = feature_loss({"a": student}, {"a": teacher})
    terms["loss"].backward()
    assert terms["loss"].item() == pytest.approx(0, abs=1e-4)
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_dead_maps_give_finite_losses_and_gradients() -> None:
    student = torch.zeros(2, 8, 4, 4, requires_grad=True)
    terms = feature_loss({"a": student}, {"a": torch.zeros(2, 8, 4, 4)})
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_terms_are_means_over_levels_with_the_papers_weights() -> None:
    shapes = {"s4": (2, 8, 4, 4), "s8": (2, 16, 2, 2)}
    student = {name: random_map(n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    teacher = {name: random_map(n + 9, *shape) for n, (name, shape) in enumerate(shapes.items())}
    terms = feature_loss(student, teacher)
    mse = sum(whitened_mse(student[n], teacher[n]) for n in shapes) / 2
    attention = sum(attention_transfer(student[n], teacher[n]) for n in shapes) / 2
    torch.testing.assert_close(terms["mse"], mse)
    torch.testing.assert_close(terms["at"], attention)
    torch.testing.assert_close(terms["loss"], mse + 10 * attention)


def test_the_two_terms_are_of_one_scale_with_the_papers_weight() -> None:
    # "lambda_AT = 10 ... to make the two losses in the same scale": between unrelated random maps.
    student, teacher = random_map(0, 8, 64, 8, 8), random_map(1, 8, 64, 8, 8)
    terms = feature_loss({"a": student}, {"a": teacher})
    assert 0.3 < 10 * terms["at"].item() / terms["mse"].item() < 3


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = random_map(0, 1, 4, 2, 2), random_map(1, 1, 4, 2, 2)
    student.requires_grad_()
    teacher.requires_grad_()
    feature_loss({"a": student}, {"a": teacher})["loss"].backward()
    assert student.grad is not None and teacher.grad is None


def test_half_precision_inputs_are_worked_on_in_float32() -> None:
    # 300^2 overflows float16: squares of raw features must not be taken in it.
    teacher = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)
    student = random_map(0, 1, 4, 2, 2).half()
    terms = feature_loss({"a": student}, {"a": teacher})
    assert terms["loss"].dtype == torch.float32 and torch.isfinite(terms["loss"])


def test_memory_order_changes_nothing() -> None:
    student, teacher = random_map(0, 2, 8, 4, 4), random_map(1, 2, 8, 4, 4)
    plain = feature_loss({"a": student}, {"a": teacher})
    last = torch.channels_last
    other = feature_loss(
        {"a": student.to(memory_format=last)}, {"a": teacher.to(memory_format=last)}
    )
    torch.testing.assert_close(plain["loss"], other["loss"])


def test_regressions_of_a_standardised_map_are_those_counted_by_hand() -> None:
    student = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    target = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    assert float(map_regression(student, target)) == pytest.approx(8.0)
    smooth = (0 + (4 - 0.5)) / 2
    assert float(map_regression(student, target, form="smooth_l1")) == pytest.approx(smooth)
    both = map_regression(student, target, form="cos_smooth_l1")
    assert float(both) == pytest.approx(0.9 * (1 - 0.6) + 0.1 * smooth)
    half = map_regression(student, target, form="cos_smooth_l1", cosine_share=0.5)
    assert float(half) == pytest.approx(0.5 * (1 - 0.6) + 0.5 * smooth)


@pytest.mark.parametrize("form", ["mse", "smooth_l1", "cos_smooth_l1"])
def test_the_regression_of_each_sample_is_that_of_it_alone(form: str) -> None:
    student, target = random_map(0, 3, 4, 2, 2), random_map(1, 3, 4, 2, 2)
    each = map_regression(student, target, form=form, each=True)  # type: ignore[arg-type]
    alone = [
        map_regression(student[i : i + 1], target[i : i + 1], form=form)  # type: ignore[arg-type]
        for i in range(3)
    ]
    assert each.shape == (3,)
    torch.testing.assert_close(each, torch.stack(alone))


def test_cells_that_are_alike_in_the_same_way_cost_nothing_whatever_their_channels() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 2, 3)
    rotation = torch.linalg.qr(torch.randn(5, 3)).Q
    student = 7 * torch.einsum("dc,bchw->bdhw", rotation, teacher)
    assert float(cell_similarity(student, teacher)) == pytest.approx(0, abs=1e-5)
    # Three cells: the teacher's first is like its second (cosine 1) and not its third (0).
    teacher = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 1, 3)
    student = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 3, 1, 3)
    at_one = math.exp(1) / (math.exp(1) + 1)
    one_cell = at_one * math.log(at_one / 0.5) + (1 - at_one) * math.log((1 - at_one) / 0.5)
    loss = cell_similarity(student, teacher, temperature=1.0)
    assert float(loss) == pytest.approx(2 * one_cell / 3)  # the third is like none of the others
