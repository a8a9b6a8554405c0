"""Standardised features, logistic regression and how its penalty is chosen."""

from __future__ import annotations

import numpy as np

from distill.probes.draws import label_draws
from distill.probes.logistic import choose_strength, probe_accuracy, standardise
from tests.unit.distill.probes.clusters import LABELS, clusters


def test_standardised_features_have_unit_size_whatever_their_scale_and_number() -> None:
    features = np.random.default_rng(0).standard_normal((200, 50)) * 7 + 3
    (ours,) = standardise(features, features)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose((ours**2).sum(axis=1).mean(), 1, rtol=1e-4)
    (scaled,) = standardise(features * 100 + 5, features * 100 + 5)
    np.testing.assert_allclose(ours, scaled, atol=1e-4)


def test_other_features_get_the_references_statistics() -> None:
    reference, other = np.array([[0.0], [2.0]]), np.array([[5.0]])
    assert standardise(reference, other)[0].tolist() == [[4.0]]


def test_constant_and_nearly_constant_features_stay_small() -> None:
    features = np.random.default_rng(0).standard_normal((100, 3))
    features[:, 1] = 4.0
    features[:, 2] = 1e-9 * features[:, 2]
    (ours,) = standardise(features, features)
    assert np.abs(ours[:, 1]).max() == 0 and np.abs(ours[:, 2]).max() < 1e-5
    assert not standardise(np.ones((3, 2)), np.ones((3, 2)))[0].any()


def test_separable_classes_are_told_apart() -> None:
    features = clusters(0, spread=0.1)
    accuracy = probe_accuracy(features, LABELS, features, LABELS, strength=10.0)
    assert accuracy == 1.0


def test_the_strength_is_chosen_by_its_accuracy_on_training_samples() -> None:
    (features,) = standardise(clusters(0, spread=2.0), clusters(0, spread=2.0))
    strengths = [1e-9, 1.0, 100.0]
    chosen = choose_strength(features, LABELS, shots=5, strengths=strengths, draws=3, seed=0)
    draws = label_draws(LABELS, shots=5, draws=3, seed=0, purpose="probe-selection")
    means = []
    for strength in strengths:
        scores = []
        for picked in draws:
            rest = np.setdiff1d(np.arange(90), picked)
            scores.append(
                probe_accuracy(
                    features[picked],
                    LABELS[picked],
                    features[rest],
                    LABELS[rest],
                    strength=strength,
                )
            )
        means.append(np.mean(scores))
    assert chosen == strengths[int(np.argmax(means))]


def test_of_equal_strengths_the_stronger_penalty_is_taken() -> None:
    features = clusters(0, spread=0.01)
    chosen = choose_strength(
        features, LABELS, shots=5, strengths=[100.0, 10.0, 1000.0], draws=2, seed=0
    )
    assert chosen == 10.0
