"""One small dataset per test process, and the smallest training on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill.configs.train import (
    DataConfig,
    DreamTeacherConfig,
    OptimizerConfig,
    StudentConfig,
    TrainConfig,
)
from storage.dataset import Dataset
from tests.unit.distill.small_data import make_dataset

Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def configure(dataset: Dataset, tmp_path: Path) -> Configure:
    """Return a function that makes the smallest training's configuration, with changes."""

    def make(**changes: object) -> TrainConfig:
        settings: dict = {
            "run_dir": str(tmp_path / "run"),
            "steps": 4,
            "batch_size": 8,
            "log_every": 1,
            "save_every": 2,
            "device": "cpu",
            "data": DataConfig(dataset=dataset.url),
            # oneDNN 3.13 on AVX2 overruns memory in the gradient of strided 1x1 convolutions of
            # fewer than 8 channels that lie channels last.
            "student": StudentConfig(
                name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
            ),
            "dreamteacher": DreamTeacherConfig(width=8),
            "optimizer": OptimizerConfig(),
        }
        return TrainConfig(**(settings | changes))

    return make
