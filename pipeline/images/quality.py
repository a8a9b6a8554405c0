"""How close a set of images is to another: Fréchet and kernel distance of their features.

The extractor is the caller's choice, so the numbers are proxies: comparable between runs with one
extractor and one sample count. Published FID and KID fix an Inception network (`inception:FILE`)
and 50,000 samples; with fewer, not even those compare.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dreamshard.errors import ConfigError, Problem, TeacherError
from dreamshard.foreign import trusted

Extractor = Callable[[np.ndarray], np.ndarray]
"""uint8 images (N, H, W, 3) -> features, float (N, D)."""

CELLS = 8
"""Cells per side to which `pixels` averages an image."""
BATCH = 64


def open_extractor(name: str, *, key: str = "extractor") -> Extractor:
    """Return the extractor of a name.

    Args:
        name: `pixels` (means over an 8x8 grid of cells: no network), `timm:MODEL` with an optional
            `@FILE` of weights (any timm network, pooled features), `resnet56:FILE` (a classifier of
            CIFAR), `inception:FILE` (the network of published FID, whose extractor has `logits`,
            too), or `module:function` of your own; a function without arguments that returns an
            `Extractor`.
        key: of the setting that told it.

    Raises: ConfigError: there is no such extractor, or its package is missing.
    """
    if name == "pixels":
        return pixel_features
    kind, _, rest = name.partition(":")
    try:
        if kind == "timm" and rest:
            return _timm(*rest.split("@", 1))
        if kind == "resnet56" and rest:
            return _resnet56(rest)
        if kind == "inception" and rest:
            return _inception(rest)
        return trusted.find(name, table={})()
    except (ImportError, AttributeError, RuntimeError, ValueError, OSError, TeacherError) as error:
        got = f"{name} ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        allowed = "pixels | timm:MODEL[@FILE] | resnet56:FILE | inception:FILE | module:function"
        raise ConfigError(Problem(key, got, allowed)) from error


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Average images over a grid of cells, scaled to [0, 1]: float64 (N, 3 * cells)."""
    _, height, width, _ = images.shape
    rows, columns = (
        np.linspace(0, side, min(CELLS, side) + 1).astype(int) for side in (height, width)
    )
    sums = np.add.reduceat(images.astype(np.float64), rows[:-1], axis=1)
    sums = np.add.reduceat(sums, columns[:-1], axis=2)
    area = np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None]
    return (sums / (255 * area)).reshape(len(images), -1)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the squared Fréchet distance of two Gaussians fitted to features.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, with the trace of the root from the eigenvalues
    of `S1^(1/2) S2 S1^(1/2)`, which is symmetric. With fewer samples than features, `S = A^T A` has
    factors that are smaller than S, and the trace is the sum of the singular values of `A1 A2^T`.

    Args:
        first: features (N, D), N at least 2; fewer samples than D give a biased, larger value.
        second: features (M, D).

    Source: Heusel et al. 2017, eq. 6.
    """
    from scipy.linalg import eigh, svdvals

    sets = [features.astype(np.float64) for features in (first, second)]
    means = [features.mean(0) for features in sets]
    # A of S = A^T A, (N, D).
    roots = [(f - m) / np.sqrt(len(f) - 1) for f, m in zip(sets, means, strict=True)]
    if max(map(len, roots)) < roots[0].shape[1]:
        cross = np.sum(svdvals(roots[0] @ roots[1].T))
    else:
        values, vectors = eigh(roots[0].T @ roots[0])
        half = roots[1] @ (vectors * np.sqrt(values.clip(0))) @ vectors.T
        cross = np.sqrt(eigh(half.T @ half, eigvals_only=True).clip(0)).sum()
    distance = float(((means[0] - means[1]) ** 2).sum())
    spread = sum(float((root**2).sum()) for root in roots)
    return max(0.0, distance + spread - 2 * float(cross))


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy with the kernel `(x.y / D + 1)^3`.

    Unlike the Fréchet distance it has no bias at small counts; it may fall below 0.

    Args:
        first: features (N, D), N at least 2.
        second: features (M, D).

    Source: Binkowski et al. 2018, eq. 4 and section 4.
    """
    x, y = first.astype(np.float64), second.astype(np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        grid = kernel(a, a)
        return float((grid.sum() - np.trace(grid)) / (len(a) * (len(a) - 1)))

    return within(x) + within(y) - 2 * float(kernel(x, y).mean())


def inception_score(logits: np.ndarray, *, parts: int = 1) -> tuple[float, float]:
    """Return exp of the mean divergence of a sample's classes from those of all; mean, deviation.

    Args:
        logits: (N, K), of samples in the order they were drawn.
        parts: into which they are cut, each with its own mean classes (count); published: 10 of
            5,000. The deviation is over the parts.

    Source: Salimans et al. 2016, section 4.
    """
    from scipy.special import log_softmax

    scores = []
    for part in np.array_split(logits.astype(np.float64), parts):
        told = log_softmax(part, axis=1)
        among = np.log(np.exp(told).mean(0).clip(1e-300))
        scores.append(float(np.exp((np.exp(told) * (told - among)).sum(1).mean())))
    return float(np.mean(scores)), float(np.std(scores))


def _inception(file: str) -> Extractor:
    from pipeline.images.judges.inception import Inception

    return Inception(Path(file))


def _resnet56(file: str) -> Extractor:
    from pipeline.images.judges.resnet56 import CifarFeatures

    return CifarFeatures(file)


def _timm(model: str, file: str = "") -> Extractor:
    import timm
    import torch

    from pipeline.teachers import weights

    if file and not Path(file).is_file():
        raise ValueError(f"{file}: not found")
    network = timm.create_model(model, pretrained=not file, num_classes=0).eval()
    if file:
        network.load_state_dict(weights.read([Path(file)]))
    data = timm.data.resolve_data_config({}, model=network)  # type: ignore[attr-defined]
    mean, std = (torch.tensor(data[key]).reshape(3, 1, 1) for key in ("mean", "std"))

    def extract(images: np.ndarray) -> np.ndarray:
        features = []
        for start in range(0, len(images), BATCH):
            x = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float() / 255
            with torch.inference_mode():
                features.append(network((x - mean) / std).numpy())
        return np.concatenate(features)

    return extract
