"""Standardised features, logistic regression and how its penalty is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from distill.probes import logistic
from distill.probes.draws import label_draws
from distill.probes.logistic import choose, probe_accuracy
from distill.probes.scaling import SCALINGS, scaled, standardise
from tests.unit.distill.probes.clusters import LABELS, clusters


def test_separable_classes_are_told_apart() -> None:
    features = clusters(0, spread=0.1)
    accuracy = probe_accuracy(features, LABELS, features, LABELS, strength=10.0)
    assert accuracy == 1.0


def test_a_fit_goes_on_until_it_is_done_where_features_are_of_many_sizes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As maps of a student are: at a tolerance of 1e-3 it stopped 3 points short."""
    drawn, classes = np.random.default_rng(0), np.arange(4000) % 5
    sizes = np.arange(1, 33) ** -1.5
    means = drawn.standard_normal((5, 32)) * 0.6
    raw = ((drawn.standard_normal((4000, 32)) + means[classes]) * sizes).astype(np.float32)
    features, _ = scaled("centred", raw, raw, raw)
    fits = {}
    for tolerance in (1e-3, logistic.TOLERANCE, 1e-6):
        monkeypatch.setattr(logistic, "TOLERANCE", tolerance)
        fits[tolerance] = probe_accuracy(features, classes, features, classes, strength=1000.0)
    early, ours, whole = fits.values()
    assert early < whole - 0.01 and abs(ours - whole) < 0.005
    assert not caplog.records
    monkeypatch.setattr(logistic, "MOST_STEPS", 20)
    probe_accuracy(features, classes, features, classes, strength=1000.0)
    assert "no end after 20 steps (4000 samples of 32 features" in caplog.text


def test_the_strength_is_chosen_by_its_accuracy_on_training_samples() -> None:
    (features,) = standardise(clusters(0, spread=2.0), clusters(0, spread=2.0))
    strengths = [1e-9, 1.0, 100.0]
    given = {"standardised": features}
    chosen = choose(given, LABELS, shots=5, strengths=strengths, draws=3, seed=0)
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
    assert chosen.strength == strengths[int(np.argmax(means))]
    assert chosen.accuracy == max(means) and chosen.scaling == "standardised"


def test_of_equal_strengths_the_stronger_penalty_is_taken() -> None:
    features = clusters(0, spread=0.01)
    given = {"standardised": features, "centred": features}
    chosen = choose(given, LABELS, shots=5, strengths=[100.0, 10.0, 1000.0], draws=2, seed=0)
    assert (chosen.strength, chosen.scaling) == (10.0, "standardised")


def test_the_scaling_is_chosen_by_its_accuracy_on_training_samples() -> None:
    """Noise beside the clusters: loud, it drowns them unless standardised; faint, if it is."""
    rng = np.random.default_rng(0)
    for noise, better in ((100.0, "standardised"), (1e-3, "centred")):
        raw = np.hstack([clusters(0, spread=0.5), noise * rng.standard_normal((90, 60))])
        given = {each: scaled(each, raw, raw)[0] for each in SCALINGS}
        found = choose(given, LABELS, shots=2, strengths=[1.0, 100.0], draws=4, seed=0)
        assert found.scaling == better and found.accuracy > 0.45, noise
