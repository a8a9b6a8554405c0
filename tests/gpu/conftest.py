"""Where these tests run: on the GPU; `DREAMSHARD_GPU_TESTS=cpu` rehearses them without one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig
from pipeline.cluster.worker import settle_torch
from tests.unit.distill.small_data import make_dataset

REHEARSAL = os.environ.get("DREAMSHARD_GPU_TESTS") == "cpu"
SMALL = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 16, 16]})


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if REHEARSAL else "cuda"


@pytest.fixture
def cuda(device: str) -> torch.device:
    """For what exists on a GPU alone: streams, scaled losses in float16."""
    if device == "cpu":
        pytest.skip("a rehearsal: needs CUDA itself")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def settled() -> Generator[None]:
    """Give each test the pipeline's settings, and torch its own ones back."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    strict = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore
    settle_torch(torch.get_num_threads())
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(strict)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=96).url


@pytest.fixture
def configure(url: str, tmp_path: Path, device: str) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / "run"), "steps": 6, "batch_size": 16, "log_every": 1,
            "save_every": 3, "device": device, "data": DataConfig(dataset=url), "ema": 0.9,
            "student": SMALL, "dreamteacher": DreamTeacherConfig(width=8),
        }  # fmt: skip
        return TrainConfig(**(settings | changes))

    return make
