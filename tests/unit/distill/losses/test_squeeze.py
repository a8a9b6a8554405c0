"""Squeeze-and-Span's loss by hand: distance, hinge, covariance, sides and reductions."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.squeeze import regularised_distance

FIRST = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])  # variances 1, covariance 1
SECOND = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]])  # variances 1/4 and 0


def test_three_by_two_numbers_give_the_terms_counted_by_hand() -> None:
    terms = regularised_distance(FIRST, SECOND)
    distance = (0 + 0 + 0.25 + 1 + 1 + 4) / 6
    hinge = [1 - math.sqrt(0.25 + 1e-4), 1 - math.sqrt(1e-4)]
    spread = 0 + sum(hinge) / 2  # sqrt(1 + 1e-4) is above 1
    repeated = (1 + 1) / 2 + 0
    assert float(terms["distance"]) == pytest.approx(distance)
    assert float(terms["variance"]) == pytest.approx(spread)
    assert float(terms["covariance"]) == pytest.approx(repeated)
    assert float(terms["loss"]) == pytest.approx(25 * distance + 25 * spread + repeated)


def test_one_side_is_the_student_s_and_the_sum_is_over_dimensions() -> None:
    terms = regularised_distance(FIRST, SECOND, both_sides=False, reduction="sum")
    assert float(terms["distance"]) == pytest.approx(2 * 6.25 / 6)
    assert float(terms["variance"]) == 0 and float(terms["covariance"]) == pytest.approx(1)


def test_both_embeddings_learn_and_a_collapsed_one_costs_its_hinge() -> None:
    first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    regularised_distance(first, second, both_sides=False)["loss"].backward()
    assert first.grad is not None and second.grad is not None
    constant = torch.ones(4, 3)
    terms = regularised_distance(constant, constant)
    assert float(terms["variance"]) == pytest.approx(2 * 0.99)
    assert float(terms["covariance"]) == float(terms["distance"]) == 0


def test_whitened_embeddings_cost_nothing() -> None:
    torch.manual_seed(0)
    z = torch.randn(64, 4, dtype=torch.float64)
    z = z - z.mean(dim=0)
    left, values, _ = torch.linalg.svd(z, full_matrices=False)
    white = (left * math.sqrt(63)).float()
    assert len(values) == 4
    terms = regularised_distance(white, white)
    assert float(terms["loss"]) == pytest.approx(0, abs=1e-5)
