"""Neighbours vote as published, whatever the chunk."""

from __future__ import annotations

import numpy as np
import pytest

from distill.probes import knn
from distill.probes.knn import choose_scalings, knn_classes

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


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_memory_does_not_depend_on_the_classes_numbers(temperature: float) -> None:
    """Labels up to 9,000,000,000,000: a vote per class number would take a petabyte."""
    far = np.array([0, 7, 9_000_027, 9_000_000_000_000])
    found = knn_classes(TRAIN, far[LABELS], QUERIES, ks=[1, 8], temperature=temperature)
    near = knn_classes(TRAIN, LABELS, QUERIES, ks=[1, 8], temperature=temperature)
    np.testing.assert_array_equal(found, far[near])


def test_many_training_samples_take_fewer_queries_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = knn_classes(TRAIN, LABELS, QUERIES, ks=[5])
    seen: list[int] = []
    vote = knn._vote
    monkeypatch.setattr(knn, "SIMILARITIES", 4 * len(TRAIN))
    monkeypatch.setattr(
        knn,
        "_vote",
        lambda near, classes, **rest: seen.append(len(near)) or vote(near, classes, **rest),
    )
    np.testing.assert_array_equal(knn_classes(TRAIN, LABELS, QUERIES, ks=[5]), expected)
    assert max(seen) == 4 and sum(seen) == len(QUERIES)


def test_the_scaling_is_chosen_on_training_samples() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    signal = np.eye(3)[labels] + 0.1 * rng.standard_normal((200, 3))
    offset = np.hstack([signal + 1e8, 0.01 * rng.standard_normal((200, 40))])  # too far to see
    loud = np.hstack([signal, 1e3 * rng.standard_normal((200, 3))])
    found = [choose_scalings(each, labels, ks=[5], seed=0)[0] for each in (signal, offset, loud)]
    assert [scaling for scaling, _ in found] == ["raw", "centred", "standardised"]
    assert all(accuracy > 0.7 for _, accuracy in found)


def test_of_tied_classes_the_nearest_ones_wins_however_deep_it_stands() -> None:
    """Behind 120 neighbours of 60 classes, two classes of 40 members each, nearer by one place."""
    angles = np.linspace(0.1, 1.0, 200)  # nearest first
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.repeat(np.arange(60), 2)  # two votes each
    deep = np.array([777, 500] * 40)  # 777 stands one place before 500
    query = np.array([[1.0, 0.0]], np.float32)
    found = knn_classes(train, np.concatenate([labels, deep]), query, ks=[200], temperature=0)
    assert found.tolist() == [[777]]
    swapped = np.array([500, 777] * 40)
    found = knn_classes(train, np.concatenate([labels, swapped]), query, ks=[200], temperature=0)
    assert found.tolist() == [[500]]


def test_random_ties_fall_to_each_class_alike_whatever_the_chunk() -> None:
    train = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [0.0, 1.0]], np.float32)
    labels, queries = np.array([2, 2, 9, 9, 4]), np.tile(np.float32([[1.0, -0.1]]), (600, 1))
    how: dict = {"ks": [4, 1], "temperature": 0, "ties": "random", "seed": 1}
    found = knn_classes(train, labels, queries, **how)
    assert set(found[:, 0].tolist()) == {2, 9} and set(found[:, 1].tolist()) == {2}
    assert 250 < (found[:, 0] == 9).sum() < 350
    np.testing.assert_array_equal(found, knn_classes(train, labels, queries, chunk=7, **how))
