"""The linear probe: logistic regression; scaling and regularisation chosen on training labels.

The same procedure for every representation, whatever its size and scale. Shapes: N samples, D
features; features are float (N, D), labels int64 (N,).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from distill.probes.draws import label_draws
from distill.probes.scaling import Scaling

TOLERANCE = 1e-4
"""Largest gradient of the mean loss at which a fit is done. Gradients are small where features are
many: at 1e-3 a fit of 50,000 samples of 256 stopped after 28 steps, 4 points below its end."""
MOST_STEPS = 3000
"""Steps of L-BFGS at most (count)."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Say what a probe was given, by what was best on training samples.

    Args:
        scaling: of the features.
        strength: scikit-learn's C.
        accuracy: on the training samples that chose it, 0..1.
    """

    scaling: Scaling
    strength: float
    accuracy: float


def probe_classes(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, *, strength: float
) -> np.ndarray:
    """Fit a multinomial logistic regression and return the classes it finds for other samples.

    Args:
        train: features that are fitted, brought to scale.
        train_labels: their classes.
        test: features (M, D) that are judged.
        strength: scikit-learn's C, the inverse of the L2 penalty's weight.

    Returns:
        int64 (M,).

    A fit that does not converge is logged as a warning.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(C=strength, max_iter=MOST_STEPS, tol=TOLERANCE)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        probe.fit(train, train_labels)
    if any(issubclass(each.category, ConvergenceWarning) for each in said):
        log.warning(
            "linear probe: no end after %d steps (%d samples of %d features, C %g): its accuracy "
            "is that of an unfinished fit", MOST_STEPS, *train.shape, strength,
        )  # fmt: skip
    return np.asarray(probe.predict(test))


def probe_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    strength: float,
) -> float:
    """Return the share of the test samples whose class `probe_classes` finds, 0..1."""
    return float(
        (probe_classes(train, train_labels, test, strength=strength) == test_labels).mean()
    )


def choose(
    scaled: Mapping[Scaling, np.ndarray],
    labels: np.ndarray,
    *,
    shots: int,
    strengths: Sequence[float],
    draws: int,
    seed: int,
) -> Choice:
    """Choose scaling and regularisation for a number of labels per class, on training samples.

    Each candidate is fitted on several draws of `shots` labels per class and judged on the training
    samples that were not drawn; the best mean accuracy wins, of equals the first scaling and the
    stronger penalty.

    Args:
        scaled: the features of the training samples under each scaling to choose from.
        labels: their classes.
        shots: labels per class.
        strengths: candidates for C.
        draws: draws to average over, apart from those of the evaluation.
        seed: of these draws.
    """
    chosen = label_draws(labels, shots=shots, draws=draws, seed=seed, purpose="probe-selection")
    choices: list[Choice] = []
    for scaling, features in scaled.items():
        for strength in sorted(strengths):
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
            choices.append(Choice(scaling, strength, float(np.mean(scores))))
    return max(choices, key=lambda each: each.accuracy)
