"""What a process that runs a teacher is set to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dreamshard.errors import TeacherError
from pipeline.cluster.worker import explain_memory, same_device, settle_torch

torch = pytest.importorskip("torch")


@pytest.fixture
def as_it_was() -> Iterator[None]:
    """Leave torch as it was found."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic)
    tf32 = (cudnn.allow_tf32, matmul.allow_tf32)
    strict = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.set_num_threads(before[0])
    cudnn.benchmark, cudnn.deterministic = before[1:]
    cudnn.allow_tf32, matmul.allow_tf32 = tf32
    torch.use_deterministic_algorithms(strict)


@pytest.mark.usefixtures("as_it_was")
def test_torch_computes_the_same_bytes_every_time() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.benchmark, cudnn.deterministic = True, False
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    settle_torch(1)
    assert torch.get_num_threads() == 1
    assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
    assert (cudnn.allow_tf32, matmul.allow_tf32) == (False, False)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory, "no NaN into every buffer"


def test_a_lack_of_memory_is_explained_and_nothing_else() -> None:
    other = RuntimeError("shapes do not match")
    assert explain_memory(other, 8) is other
    explained = explain_memory(MemoryError(), 8)
    assert isinstance(explained, TeacherError)
    assert "micro_batch: got 8" in str(explained) and "--halve_on_oom" in str(explained)


def test_a_teachers_thread_uses_its_ranks_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    same_device()()
    assert used == [3]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    same_device()()
    assert used == [3], "nothing to choose without a GPU"
