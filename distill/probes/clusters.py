"""Cluster alignment: k-means of training features, its clusters given classes, as a classifier.

Shapes: N training and M held-out samples, D features, K classes and clusters.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamshard.rng import generator


@dataclass(frozen=True)
class Alignment:
    """Say how well clusters stand for classes.

    Args:
        accuracy: of held-out samples, 0..1.
        information: normalised mutual information of clusters and classes there, 0..1.
        empty: clusters without a training sample (count).
    """

    accuracy: float
    information: float
    empty: int


def unit_rows(features: np.ndarray) -> np.ndarray:
    """L2-normalise rows, float32; a row of zeros stays."""
    rows = np.asarray(features, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def k_means(
    train: np.ndarray, *others: np.ndarray, clusters: int, iterations: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Find clusters by scikit-learn's k-means, from centres drawn as k-means++ does.

    Args:
        train: float (N, D).
        others: arrays (M, D), assigned to their nearest centres.
        clusters: how many.
        iterations: most iterations.
        seed: of the first centres.

    Returns:
        Centres float (clusters, D), and the clusters of train and of each of the others, int64.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    state = int(generator(seed, 0, 0, "k-means").integers(2**31))
    once: Any = 1  # scikit-learn's annotation says text
    method = KMeans(clusters, n_init=once, max_iter=iterations, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different samples: empty ones
        method.fit(train)
    assigned = [np.asarray(method.predict(each), np.int64) for each in (train, *others)]
    return method.cluster_centers_, assigned


def align(clusters: np.ndarray, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Give each of K clusters a class of its own, so that the sum of precisions is largest.

    Args:
        clusters: int64 (N,), 0..K-1.
        labels: int64 (N,), 0..K-1.
        classes: K.

    Returns:
        int64 (K,), class of each cluster. A cluster without samples gets what is left.

    Source: CompRess's evaluation: S[c, y] = |c and y| / |c|, the Hungarian method; METHODS 3.3.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((classes, classes))
    np.add.at(counts, (clusters, labels), 1.0)
    precision = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    return np.asarray(linear_sum_assignment(precision, maximize=True)[1], np.int64)


def cluster_alignment(
    train: np.ndarray,
    labels: np.ndarray,
    heldout: np.ndarray,
    truth: np.ndarray,
    *,
    iterations: int,
    seed: int,
) -> Alignment:
    """Cluster L2-normalised training features, align with their labels, judge on held-out ones.

    Args:
        train, heldout: float (N, D) and (M, D).
        labels, truth: int64 (N,) and (M,), classes 0..K-1, all of which are among the labels.
        iterations: most iterations of k-means.
        seed: of its first centres.
    """
    from sklearn.metrics import normalized_mutual_info_score

    classes = int(labels.max()) + 1
    parts = unit_rows(train), unit_rows(heldout)
    _, (known, clusters) = k_means(*parts, clusters=classes, iterations=iterations, seed=seed)
    classes_of = align(known, labels, classes=classes)
    return Alignment(
        accuracy=float((classes_of[clusters] == truth).mean()),
        information=float(normalized_mutual_info_score(truth, clusters)),
        empty=classes - len(np.unique(known)),
    )
