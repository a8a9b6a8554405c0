"""Side streams, compiled blocks and CUDA graphs give the bytes of the plain way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from pipeline.teachers.diffusion import DiffusionTeacher
from pipeline.teachers.outbox import Outbox
from tests.gpu import networks

pytestmark = pytest.mark.gpu


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)


def load(folder: Path, device: str, **settings: object) -> DiffusionTeacher:
    config = replace(networks.unet(folder), compute_dtype="bfloat16")
    config.settings = {**config.settings, **settings}  # type: ignore[dict-item]
    return cast(DiffusionTeacher, networks.load(config, device))


def test_overlapped_copies_carry_the_very_bytes(
    tmp_path: Path, device: str, images: np.ndarray
) -> None:
    teacher = load(tmp_path, device)
    found = teacher.encode(images, networks.ROWS).levels  # through the outbox
    plain = teacher.features(torch.from_numpy(images), networks.ROWS)  # left on the device
    for name, value in plain.items():
        assert np.array_equal(found[name], value.cpu().numpy()), name


def test_memory_is_not_reused_before_it_was_copied(device: str) -> None:
    """Values whose memory is free for the next computation as soon as the outbox has them."""
    where = torch.device(device)
    for turn in range(5):
        outbox = Outbox(where)
        for number in range(8):
            outbox[str(number)] = torch.full((1 << 22,), turn * 8.0 + number, device=where).half()
            torch.full((1 << 22,), -1.0, device=where).half()  # takes freed memory, if there is any
        for number, value in outbox.collect().items():
            assert (value == turn * 8 + int(number)).all()


def test_a_level_that_is_not_finite_is_named(device: str) -> None:
    from dreamshard.errors import DataError

    outbox = Outbox(torch.device(device))
    outbox["good"] = torch.ones(8, device=device)
    outbox["bad"] = torch.tensor([1.0, float("inf")], device=device)
    with pytest.raises(DataError, match="level bad"):
        outbox.collect()


def test_compiled_blocks_give_the_same_bytes_each_time(
    tmp_path: Path, cuda: torch.device, images: np.ndarray
) -> None:
    plain = load(tmp_path, "cuda").encode(images, networks.ROWS).levels
    teacher = load(tmp_path, "cuda", compile=True)
    first = teacher.encode(images, networks.ROWS).levels
    second = teacher.encode(images, networks.ROWS).levels
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
        assert networks.distance(value, plain[name]) < 2e-2, name


def test_a_replayed_graph_gives_the_same_bytes(
    tmp_path: Path, cuda: torch.device, images: np.ndarray
) -> None:
    teacher = load(tmp_path, "cuda")
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16, device=cuda)
    with torch.inference_mode():
        expected = {k: v.clone() for k, v in teacher.activations(x, 40).items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            teacher.activations(x, 40)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = teacher.activations(x, 40)
        for value in found.values():
            value.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
