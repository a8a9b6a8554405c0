"""Where these tests run: on the GPU; `DREAMSHARD_GPU_TESTS=cpu` rehearses them without one."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch

REHEARSAL = os.environ.get("DREAMSHARD_GPU_TESTS") == "cpu"


@pytest.fixture(scope="session")
def device() -> str:
    return "cpu" if REHEARSAL else "cuda"


@pytest.fixture
def cuda(device: str) -> torch.device:
    """For what exists on a GPU alone: streams, graphs, scaled losses in float16."""
    if device == "cpu":
        pytest.skip("a rehearsal: needs CUDA itself")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def settled() -> Generator[None]:
    """Give each test the pipeline's settings, and torch its own ones back."""
    from pipeline.actor import settle_torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32)
    strict = torch.are_deterministic_algorithms_enabled()
    settle_torch(torch.get_num_threads())
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(strict)
