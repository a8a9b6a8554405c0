"""The linear probe: standardise, logistic regression, regularisation chosen on training labels.

The same procedure for every representation, whatever its size and scale. Shapes: N samples, D
features; features are float (N, D), labels int64 (N,).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from distill.probes.draws import label_draws

# A feature that hardly varies (a corner pixel) must not be blown up to unit variance.
SMALLEST_SPREAD = 1e-3


def standardise(reference: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Shift and scale features by the reference's statistics.

    Every feature gets mean 0 and standard deviation 1 over the reference, where its own deviation
    is at least a thousandth of the largest; all are then divided by sqrt(D), so that a
    regularisation strength means the same for representations of different sizes.

    Args:
        reference: (N, D), whose mean and deviation are used; no labels are.
        others: arrays (M, D) to transform.

    Returns:
        float32 arrays, one per entry of `others`.
    """
    mean, spread = reference.mean(axis=0), reference.std(axis=0)
    floor = SMALLEST_SPREAD * float(spread.max()) or 1.0
    scale = np.maximum(spread, floor) * np.sqrt(reference.shape[1])
    return [((features - mean) / scale).astype(np.float32) for features in others]


def probe_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    strength: float,
) -> float:
    """Fit a multinomial logistic regression and return its accuracy on other samples.

    Args:
        train: features that are fitted, standardised.
        train_labels: their classes.
        test: features that are judged.
        test_labels: their classes.
        strength: scikit-learn's C, the inverse of the L2 penalty's weight.

    Returns:
        Share of the test samples whose class is found, 0..1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ranks are settled long before
        probe.fit(train, train_labels)
    return float(probe.score(test, test_labels))


def choose_strength(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    shots: int,
    strengths: Sequence[float],
    draws: int,
    seed: int,
) -> float:
    """Choose the regularisation for a number of labels per class, on training samples alone.

    Each candidate is fitted on several draws of `shots` labels per class and judged on the training
    samples that were not drawn; the best mean accuracy wins, of equals the stronger penalty.

    Args:
        features: of the training samples, standardised.
        labels: their classes.
        shots: labels per class.
        strengths: candidates for C.
        draws: draws to average over, apart from those of the evaluation.
        seed: of these draws.
    """
    chosen = label_draws(labels, shots=shots, draws=draws, seed=seed, purpose="probe-selection")
    means = []
    candidates = sorted(strengths)
    for strength in candidates:
        scores = []
        for picked in chosen:
            rest = np.setdiff1d(np.arange(len(labels)), picked)
            scores.append(
                probe_accuracy(
                    features[picked],
                    labels[picked],
                    features[rest],
                    labels[rest],
                    strength=strength,
                )
            )
        means.append(np.mean(scores))
    return candidates[int(np.argmax(means))]
