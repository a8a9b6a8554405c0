"""Weights of several teachers by hand: by levels, alike, by their losses; who is left out."""

from __future__ import annotations

import pytest
import torch

from distill.modules.teachers import KEPT, TeacherWeights

LOSSES = torch.tensor([[1.0, 3.0, 8.0], [5.0, 1.0, 2.0]])
"""Of two levels of one teacher and one of another: 2 and 8, 3 and 2 by teacher."""


def test_levels_and_teachers_weigh_by_hand() -> None:
    levels = TeacherWeights([4, 4, 7], balance="levels", dropping=0, seed=0)(LOSSES, None)
    torch.testing.assert_close(levels, torch.full((2, 3), 1 / 3))
    alike = TeacherWeights([4, 4, 7], balance="teachers", dropping=0, seed=0)(LOSSES, None)
    torch.testing.assert_close(alike, torch.tensor([[0.25, 0.25, 0.5]] * 2))


def test_losses_count_alike_by_their_moving_averages() -> None:
    weights = TeacherWeights([0, 0, 1], balance="losses", dropping=0, seed=0)
    found = weights.weigh(torch.tensor([[2.0, 8.0], [3.0, 2.0]]), None)  # means 2.5 and 5
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3]] * 2))
    weights.weigh(torch.tensor([[1.0, 5.0]]), None)
    expected = torch.tensor([KEPT * 2.5 + (1 - KEPT) * 1.0, 5.0])
    torch.testing.assert_close(weights.averages, expected)
    assert "averages" in weights.state_dict()


def test_all_but_the_largest_are_left_out_by_chance_and_the_rest_sums_to_one() -> None:
    weights = TeacherWeights([0, 1, 2], balance="teachers", dropping=0.5, seed=0)
    losses = torch.tensor([[1.0, 3.0, 2.0]]).repeat(4000, 1)
    found = weights.weigh(losses, torch.arange(4000))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(4000))
    assert (found[:, 1] > 0).all(), "the largest is never left out"
    share = (found > 0).float().mean(dim=0)
    assert share.tolist() == pytest.approx([0.5, 1.0, 0.5], abs=0.05)
    kinds = {tuple(round(value, 3) for value in row) for row in found.tolist()}
    assert kinds == {(0.333, 0.333, 0.333), (0.5, 0.5, 0.0), (0.0, 0.5, 0.5), (0.0, 1.0, 0.0)}
    assert not torch.equal(found, weights.weigh(losses, torch.arange(4000)))
