from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dreamshard.errors import ConfigError
from pipeline.images.quality import (
    frechet_distance,
    kernel_distance,
    open_extractor,
    pixel_features,
)


def blobs(shift: float, scale: float, count: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (count, 5))


def test_frechet_distance_is_that_of_the_formula() -> None:
    x, y = blobs(0, 1), blobs(0.5, 2, 300, 1)
    x[:, 0] += x[:, 1]
    root = np.real(sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    few, others = blobs(0, 1, 3), blobs(1, 2, 4, 1)  # fewer samples than features
    assert np.isfinite(frechet_distance(few, y))
    root = np.real(sqrtm(np.cov(few, rowvar=False) @ np.cov(others, rowvar=False)))
    expected = ((few.mean(0) - others.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(few, rowvar=False) + np.cov(others, rowvar=False) - 2 * root)
    assert frechet_distance(few, others) == pytest.approx(expected, rel=1e-4)


def test_kernel_distance_has_no_bias_and_tells_sets_apart() -> None:
    same = [kernel_distance(blobs(0, 1, 100, s), blobs(0, 1, 100, s + 50)) for s in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20**0.5 and min(same) < 0 < max(same)
    assert kernel_distance(blobs(0, 1), blobs(1, 1, seed=1)) > 10 * np.std(same)
    x, y = blobs(0, 1, 4), blobs(1, 1, 3, 1)
    kernel = lambda a, b: (a @ b / 5 + 1) ** 3  # noqa: E731
    inside = [
        np.mean([kernel(a, b) for i, a in enumerate(v) for j, b in enumerate(v) if i != j])
        for v in (x, y)
    ]
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(sum(inside) - 2 * across)


def test_pixels_are_means_over_cells() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 16, 3), dtype=np.uint8)
    found = pixel_features(images).reshape(2, 8, 8, 3)
    assert found[1, 2, 3, 0] == pytest.approx(images[1, 8:12, 6:8, 0].mean() / 255)
    assert pixel_features(images[:, :4, :4]).shape == (2, 48)


def test_extractors_by_name() -> None:
    images = np.zeros((3, 32, 32, 3), np.uint8)
    assert open_extractor("pixels")(images).shape == (3, 192)
    mine = open_extractor(f"{__name__}:make_extractor")
    assert mine(images).tolist() == [[0.0], [0.0], [0.0]]
    for name in ("pixel", "timm:", "timm:no_such_net", "json:nothing"):
        with pytest.raises(ConfigError, match="extractor: got"):
            open_extractor(name)


def make_extractor():  # type: ignore[no-untyped-def]
    return lambda images: images.mean((1, 2, 3))[:, None]
