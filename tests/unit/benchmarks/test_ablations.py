"""Which images judge the ablations, and how differences are paired."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

pytest.importorskip("torch")

from benchmarks import ablations, cifar10


def test_encoded_images_do_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "SAMPLES_PER_UNIT", 10)
    train = np.arange(100), np.arange(100) % 10
    held = np.arange(1000, 1005), np.arange(5)
    options = Namespace(probe_images=20, samples=75, unseen=30)
    monkeypatch.setattr(cifar10, "images", lambda _: [train, held])
    ablations.read_images(options)
    (known, labels), (judges, truth) = options.loaded
    assert known.tolist() == list(range(20)) and len(labels) == 20
    assert judges.tolist() == [*range(1000, 1005), *range(85, 100)], "80 were encoded: whole units"
    assert len(truth) == len(judges)


def test_differences_are_paired_by_seed() -> None:
    base = {seed: {"linear_100": 50.0 + seed, "knn_20": 40.0} for seed in range(3)}
    int8 = {seed: {"linear_100": 51.0 + seed, "knn_20": 40.0 + seed} for seed in range(3)}
    table = ablations.compare({ablations.BASE: base, "int8": int8})
    assert table["int8"]["linear_100"]["difference"] == pytest.approx(1)
    assert table["int8"]["linear_100"]["half_interval"] == pytest.approx(0)
    # Student's t with 2 degrees of freedom: 4.303 x 1 / sqrt(3).
    assert table["int8"]["knn_20"]["half_interval"] == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert "difference" not in table[ablations.BASE]["linear_100"]
