"""The anchor queue's ring, and k-means."""

from __future__ import annotations

import pytest
import torch

from distill.modules.anchors import AnchorQueue
from distill.modules.kmeans import kmeans


def test_it_begins_with_noise_of_unit_norm_rows() -> None:
    torch.manual_seed(0)
    rows = AnchorQueue(2000, 48).rows
    assert float(rows.norm(dim=1).mean()) == pytest.approx(1, abs=0.02)
    assert float(rows.abs().max()) <= (3 / 48) ** 0.5


def test_the_oldest_rows_go_first_and_the_ring_wraps() -> None:
    queue = AnchorQueue(5, 1)
    before = queue.anchors()
    queue.push(torch.tensor([[1.0], [2.0], [3.0]]))
    assert queue.rows[:3, 0].tolist() == [1, 2, 3] and torch.equal(queue.rows[3:], before[3:])
    queue.push(torch.tensor([[4.0], [5.0], [6.0]]))
    assert queue.rows[:, 0].tolist() == [6, 2, 3, 4, 5] and int(queue.cursor) == 1
    assert not torch.equal(before, queue.rows), "anchors taken before stay what they were"


def test_of_a_batch_larger_than_the_queue_the_last_rows_stay() -> None:
    queue = AnchorQueue(3, 1)
    queue.push(torch.arange(8.0)[:, None])
    assert sorted(queue.rows[:, 0].tolist()) == [5, 6, 7]
    queue.push(torch.tensor([[8.0]]))
    assert sorted(queue.rows[:, 0].tolist()) == [6, 7, 8]


def test_kmeans_finds_blobs_and_fills_empty_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 20, 2)).flatten(0, 1)
    found = kmeans(points, count=3, iterations=10, seed=1)
    assert float(torch.cdist(centres, found).min(dim=1).values.max()) < 0.2
    twice = torch.cat([torch.zeros(9, 2), torch.ones(1, 2)])
    found = kmeans(twice, count=2, iterations=3, seed=0)
    assert sorted(found[:, 0].tolist()) == [0, 1]
