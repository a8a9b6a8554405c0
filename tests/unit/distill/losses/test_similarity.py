"""CompRess's loss, regression and nearest centroids against values counted by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from distill.losses.similarity import anchor_similarity, nearest, regression


def test_it_is_the_divergence_counted_by_hand() -> None:
    # Cosines of the teacher 1 and 0, of the student 0 and 1, at T = 1 / ln 3: weights 3 to 1.
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0, 0.0]])
    loss = anchor_similarity(
        student,
        teacher,
        student_anchors=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
        teacher_anchors=torch.eye(2),
        temperature=1 / math.log(3),
    )
    by_hand = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert float(loss) == pytest.approx(by_hand)


def test_it_is_nothing_where_both_are_the_same_and_a_mean_over_the_batch() -> None:
    torch.manual_seed(0)
    s, t, anchors = torch.randn(5, 4), torch.randn(5, 4), torch.randn(7, 4)
    told: Any = {"student_anchors": anchors, "teacher_anchors": anchors}
    assert float(anchor_similarity(t * 3, t, **told)) == pytest.approx(0, abs=1e-6)
    each = [anchor_similarity(s[i : i + 1], t[i : i + 1], **told) for i in range(5)]
    torch.testing.assert_close(anchor_similarity(s, t, **told), torch.stack(each).mean())


def test_the_student_alone_gets_a_gradient() -> None:
    values = [torch.randn(3, 4, requires_grad=True) for _ in range(4)]
    anchor_similarity(
        values[0], values[1], student_anchors=values[2], teacher_anchors=values[3]
    ).backward()
    assert values[0].grad is not None and float(values[0].grad.abs().sum()) > 0
    assert all(value.grad is None for value in values[1:])
    value, target = torch.ones(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    loss = regression(value, target)
    loss.backward()
    assert float(loss.detach()) == 1.0 and target.grad is None


def test_the_nearest_centroid_is_the_one_at_the_smallest_distance() -> None:
    torch.manual_seed(0)
    points, centroids = torch.randn(40, 3), torch.randn(6, 3)
    assert torch.equal(nearest(points, centroids), torch.cdist(points, centroids).argmin(dim=1))
