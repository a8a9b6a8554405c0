"""What every test can rely on: one thread, no network, no colours, few processes with Ray."""

import gc
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports numpy or torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["NO_COLOR"] = "1"


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def as_new() -> Generator[None, None, None]:
    """Begin as any other test, and leave a process as it was.

    Whatever ran before, torch draws the same numbers. Runs name the process's readers, and may turn
    oneDNN off for all of it.
    """
    if holds := sys.modules.get("storage.ledger.holds"):
        holds.name_readers("reader")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)
    before = torch is None or torch.backends.mkldnn.enabled
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.backends.mkldnn.enabled != before:
        torch.backends.mkldnn.enabled = before


def _has_gpu() -> bool:
    if os.environ.get("DREAMSHARD_GPU_TESTS") == "cpu":  # a rehearsal of tests/gpu, see there
        return True
    try:
        import torch
    except ModuleNotFoundError:
        return False
    return torch.cuda.is_available()


def pytest_collection_finish() -> None:
    """Look through what is loaded by now for the last time: with torch, each look takes seconds."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before xdist reads the groups, also first of all
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    no_gpu = any(item.get_closest_marker("gpu") for item in items) and not _has_gpu()
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group(f"ray-{item.path.parent.name}"))
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    return (yield)
