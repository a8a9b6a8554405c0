"""The unbiased estimate against values counted by hand and torchmetrics' KID."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill.probes import mmd
from distill.probes.mmd import bandwidth, squared_mmd

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((9, 4)).astype(np.float32)
SECOND = (RNG.standard_normal((7, 4)) + 1).astype(np.float32)


def test_two_points_each_by_hand() -> None:
    """Unit vectors at 0 and 90 degrees against 90 and 90: distances 1.414 within, 0 within, mixed.

    E k(x, x') = exp(-1), k(y, y') = 1, k(x, y) = (exp(-1) + 1) / 2 each, for a width of 1.
    """
    first = np.array([[2.0, 0.0], [0.0, 5.0]])
    second = np.array([[0.0, 1.0], [0.0, 3.0]])
    expected = math.exp(-1) + 1 - 2 * (math.exp(-1) + 1) / 2
    found = squared_mmd(first, second, kernel="rbf", width=1.0)
    assert found == pytest.approx(expected, abs=1e-12) and abs(found) < 1e-12
    away = squared_mmd(np.array([[1.0, 0.0]] * 3), second, kernel="rbf", width=1.0)
    assert away == pytest.approx(2 - 2 * math.exp(-1))


def test_kid_is_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    kid = pytest.importorskip("torchmetrics.image.kid")
    # It takes both samples to be of one size.
    expected = float(kid.poly_mmd(torch.from_numpy(FIRST[:7]), torch.from_numpy(SECOND)))
    assert squared_mmd(FIRST[:7], SECOND, kernel="kid") == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(mmd, "CHUNK", 2)
    assert squared_mmd(FIRST[:7], SECOND, kernel="kid") == pytest.approx(expected, rel=1e-4)


def test_no_difference_is_none_on_average() -> None:
    rng = np.random.default_rng(1)
    draws = [rng.standard_normal((2, 60, 5)) for _ in range(60)]
    found = [squared_mmd(a, b, kernel="rbf", width=bandwidth(a, b)) for a, b in draws]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(60) and min(found) < 0
    shifted = [squared_mmd(a, b + 1, kernel="rbf", width=bandwidth(a, b + 1)) for a, b in draws]
    assert min(shifted) > max(found)


def test_the_width_is_the_median_distance_of_unit_vectors() -> None:
    first, second = np.array([[3.0, 0.0]]), np.array([[0.0, 2.0], [0.0, -9.0]])
    assert bandwidth(first, second) == pytest.approx(math.sqrt(2))  # of 1.414, 1.414 and 2
    assert bandwidth(np.ones((5, 3)), np.ones((4, 3))) == pytest.approx(0, abs=1e-6)
