"""Clusters stand for classes as CompRess counts it."""

from __future__ import annotations

import numpy as np

from distill.probes.clusters import align, cluster_alignment, k_means, unit_rows


def test_permuted_labels_are_found_again() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    permutation = np.array([3, 0, 4, 1, 2])
    classes_of = align(permutation[labels], labels, classes=5)
    np.testing.assert_array_equal(classes_of[permutation], np.arange(5))


def test_precision_decides_not_counts() -> None:
    """Cluster 0: 60 of class 0, 40 of class 1; cluster 1: 9 of class 0, 1 of class 1.

    By counts the map 0 -> 0, 1 -> 1 is better (61 to 49); by precision 0 -> 1, 1 -> 0 (1.3 to .7).
    """
    clusters = np.repeat([0, 0, 1, 1], [60, 40, 9, 1])
    labels = np.repeat([0, 1, 0, 1], [60, 40, 9, 1])
    assert align(clusters, labels, classes=2).tolist() == [1, 0]


def test_an_empty_cluster_gets_what_is_left() -> None:
    classes_of = align(np.array([0, 0, 2]), np.array([1, 1, 0]), classes=3)
    assert classes_of.tolist() == [1, 2, 0]


def test_separate_classes_are_classified_and_length_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    labels, truth = rng.integers(0, 3, 90), rng.integers(0, 3, 60)
    centres = 5 * np.eye(3, 4)
    train, heldout = (
        (centres[each] + 0.1 * rng.standard_normal((len(each), 4)))
        * rng.uniform(1, 9, (len(each), 1))
        for each in (labels, truth)
    )
    found = cluster_alignment(train, labels, heldout, truth, iterations=20, seed=0)
    assert (found.accuracy, found.empty) == (1.0, 0) and found.information > 0.999


def test_a_collapsed_student_leaves_clusters_empty_and_is_chance() -> None:
    labels = np.arange(60) % 3
    same = np.ones((60, 4), np.float32)
    found = cluster_alignment(same, labels, same, labels, iterations=20, seed=0)
    assert (found.empty, found.information) == (2, 0.0)
    assert abs(found.accuracy - 1 / 3) < 1e-9


def test_k_means_is_a_fixed_point_of_its_means() -> None:
    rows = unit_rows(np.random.default_rng(2).standard_normal((80, 3)))
    centres, (known, again) = k_means(rows, rows, clusters=4, iterations=300, seed=0)
    np.testing.assert_array_equal(known, again)
    means = [rows[known == each].mean(axis=0) for each in range(4)]
    np.testing.assert_allclose(centres, means, atol=1e-5)
    assert unit_rows(np.zeros((1, 3))).tolist() == [[0, 0, 0]]
