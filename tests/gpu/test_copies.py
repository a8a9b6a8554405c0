"""Copies beside the computation carry the very bytes: batches to the device, records from it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from distill.configs.train import DataConfig
from distill.data.batches import Batches
from distill.data.open import open_training_set
from dreamshard.errors import DataError
from pipeline.cluster.worker import same_device
from pipeline.teachers.recording.outbox import Outbox
from storage.batches.filler import Share

pytestmark = pytest.mark.gpu


def test_batches_copied_beside_the_training_are_the_bytes_of_the_shards(
    url: str, device: str
) -> None:
    """Thirty batches through a ring of few buffers, while the device is kept busy."""
    training_set = open_training_set(DataConfig(dataset=url, prefetch=1))

    def batches(where: str) -> Batches:
        return Batches(
            training_set,
            share=Share(batch_size=16, rank=0, world_size=1, start=0),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            device=torch.device(where),
        )

    here, there = batches("cpu"), batches(device)
    busy = torch.randn(1500, 1500, device=device)
    kept = []
    for _ in range(30):
        batch = there.next()
        kept.append((batch.images, batch.targets))
        if device == "cuda":
            busy = busy @ busy / 1500
    for images, targets in kept:
        expected = here.next()
        torch.testing.assert_close(images.cpu(), expected.images, rtol=1e-6, atol=1e-6)
        for name, value in targets.items():
            torch.testing.assert_close(value.cpu(), expected.targets[name], rtol=0, atol=0)
    assert there.waited_s > 0
    here.close()
    there.close()


def test_memory_is_not_reused_before_it_was_copied(device: str) -> None:
    """Values whose memory is free for the next computation as soon as the outbox has them."""
    where = torch.device(device)
    for turn in range(5):
        outbox = Outbox(where)
        for number in range(8):
            outbox[str(number)] = torch.full((1 << 20,), turn * 8.0 + number, device=where).half()
            torch.full((1 << 20,), -1.0, device=where).half()  # takes freed memory, if there is any
        for number, value in outbox.collect().items():
            assert (value == turn * 8 + int(number)).all()


def test_a_level_that_is_not_finite_is_named(device: str) -> None:
    outbox = Outbox(torch.device(device))
    outbox["good"] = torch.ones(8, device=device)
    outbox["bad"] = torch.tensor([1.0, float("inf")], device=device)
    with pytest.raises(DataError, match="level bad"):
        outbox.collect()


def test_new_buffers_are_not_filled_in_deterministic_mode(device: str) -> None:
    assert torch.are_deterministic_algorithms_enabled()
    pinned = device == "cuda"
    for turn in range(3):  # the allocators hand the same memory out again
        host = torch.empty(1 << 20, pin_memory=pinned)
        there = torch.empty(1 << 20, device=device)
        if turn:
            assert not host.isnan().all() and not bool(there.isnan().all())
        host.fill_(turn + 1.0)
        there.fill_(turn + 1.0)
        del host, there


def test_threads_of_a_rank_s_teacher_use_its_device(cuda: torch.device) -> None:
    last = torch.cuda.device_count() - 1
    before = torch.cuda.current_device()
    torch.cuda.set_device(last)
    try:
        torch.zeros(1, device="cuda")
        with ThreadPoolExecutor(1, initializer=same_device()) as pool:
            assert pool.submit(torch.cuda.current_device).result() == last
            made = pool.submit(torch.zeros, 1, device="cuda").result()
        assert made.device.index == last
    finally:
        torch.cuda.set_device(before)
