"""Neighbours vote as published, whatever the chunk."""

from __future__ import annotations

import numpy as np
import pytest

from distill.probes.knn import knn_classes

RNG = np.random.default_rng(0)
TRAIN = RNG.standard_normal((60, 5)).astype(np.float32)
LABELS = RNG.integers(0, 4, 60)
QUERIES = RNG.standard_normal((17, 5)).astype(np.float32)


def by_hand(query: np.ndarray, *, k: int, temperature: float) -> int:
    known = TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True)
    similarity = known @ (query / np.linalg.norm(query))
    near = np.argsort(-similarity)[:k]
    votes = np.zeros(4)
    for index in near:
        votes[LABELS[index]] += np.exp(similarity[index] / temperature) if temperature else 1
    tied = np.flatnonzero(votes == votes.max())
    return int(next(LABELS[index] for index in near if LABELS[index] in tied))


@pytest.mark.parametrize("temperature", [0.0, 0.07, 1.0])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_votes_are_those_counted_by_hand(temperature: float, chunk: int) -> None:
    ks = [1, 3, 8]
    found = knn_classes(TRAIN, LABELS, QUERIES, ks=ks, temperature=temperature, chunk=chunk)
    expected = [[by_hand(query, k=k, temperature=temperature) for k in ks] for query in QUERIES]
    np.testing.assert_array_equal(found, expected)


def test_l1_takes_l1_normalised_features() -> None:
    train = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    # L1-normalised (0.8, 0.2): 0.4 from the first, 0.6 from the second.
    found = knn_classes(
        train, np.array([0, 1]), np.array([[8.0, 2.0]], np.float32), ks=[1], metric="l1"
    )
    assert found.tolist() == [[0]]


def test_scale_of_the_features_is_nothing_to_it() -> None:
    base = knn_classes(TRAIN, LABELS, QUERIES, ks=[5])
    scaled = knn_classes(1000 * TRAIN, LABELS, 0.001 * QUERIES, ks=[5])
    np.testing.assert_array_equal(base, scaled)
