"""What is refused before anything starts, and the per-step seed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from distill.train import join_ranks, train
from distill.training import launch
from dreamshard.errors import ConfigError


def test_bf16_is_refused_where_it_is_only_imitated(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "native_bf16", lambda kind: False)
    with pytest.raises(ConfigError, match=r"precision: got 'bf16', allowed fp32"):
        join_ranks(configure(precision="bf16"))


def test_a_missing_gpu_is_named(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device: got 'cuda'.*--device auto"):
        join_ranks(configure(device="cuda"))


def test_a_batch_that_the_ranks_cannot_share_shows_the_arithmetic(configure) -> None:
    problem = launch._batch_problem(65, processes=2)
    assert str(problem) == (
        "batch_size: got 65, allowed a multiple of the 2 processes (65 = 2 x 32 + 1). "
        "Try --batch_size 64 or 66."
    )
    assert launch._batch_problem(64, processes=2) is None
    parts = str(launch._batch_problem(66, processes=2, parts=4))
    assert "the 2 processes x 4 parts (accumulate) (66 = 8 x 8 + 2). Try --batch_size 64" in parts
    assert "Try --batch_size 4." in str(launch._batch_problem(3, processes=4))


def test_batch_norm_across_cpus_is_refused(configure) -> None:
    assert launch._batchnorm_problem("on", kind="cpu", processes=2) is not None
    assert launch._batchnorm_problem("auto", kind="cpu", processes=2) is None
    assert launch._batchnorm_problem("on", kind="cpu", processes=1) is None
    assert launch._batchnorm_problem("on", kind="cuda", processes=2) is None


def test_a_steps_random_numbers_depend_on_seed_step_and_rank() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        launch.seed_step(seed, step=step, rank=rank)
        return torch.rand(()).item()

    assert draw(0, 5, 1) == draw(0, 5, 1)
    assert len({draw(0, 5, 1), draw(0, 5, 0), draw(0, 6, 1), draw(1, 5, 1)}) == 4


def test_placing_keeps_the_memory_order_asked_for() -> None:
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    module = torch.nn.Conv2d(3, 4, 3)
    launch.place(
        module,  # type: ignore[arg-type]
        accelerator,  # type: ignore[arg-type]
        sync_batchnorm="auto",
        compile_mode="off",
    )
    assert module.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("ranks", "kind", "setting", "shared"),
    [
        (2, "cuda", "auto", True),
        (2, "cuda", "on", True),
        (2, "cuda", "off", False),
        (1, "cuda", "on", False),
        (2, "cpu", "auto", False),
    ],
)
def test_batch_norm_is_shared_between_gpus_where_asked(
    monkeypatch: pytest.MonkeyPatch, ranks: int, kind: str, setting: str, shared: bool
) -> None:
    """PyTorch's layer computes on GPUs alone, so here it is only seen to be in place."""
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device, **_: moved.append(device.type))
    accelerator = SimpleNamespace(num_processes=ranks, device=torch.device(kind))
    method = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    scale = torch.nn.init.uniform_(method[1].weight)
    launch.place(method, accelerator, sync_batchnorm=setting, compile_mode="off")  # type: ignore[arg-type]
    assert isinstance(method[1], torch.nn.SyncBatchNorm) == shared and moved == [kind]
    assert method[1].weight is scale, "the optimiser's and the initial weights stay"


def test_bf16_trains_in_float32_losses_and_weights(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "native_bf16", lambda kind: True)  # slow here, but right
    from distill.students.export import load_student
    from distill.train import train

    config = configure(precision="bf16", steps=2)
    student, _ = load_student(train(config))
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in student.parameters())


def test_fp16_needs_a_gpu_and_says_so_first(configure) -> None:
    with pytest.raises(ConfigError, match=r"precision: got 'fp16', allowed fp32 or bf16"):
        join_ranks(configure(precision="fp16"))


def test_a_missing_tracker_names_its_extra(configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        join_ranks(configure(trackers=["wandb", "mlflow"]))
    assert "2 problems" in str(caught.value)
    assert "pip install 'dreamshard[wandb]'" in str(caught.value)


def test_sharded_weights_are_refused_and_plain_ranks_are_not() -> None:
    assert launch._sharding_problem("MULTI_GPU") is None
    text = str(launch._sharding_problem("FSDP"))
    assert "distributed type FSDP, allowed data parallel" in text and "accelerate config" in text


def test_compiling_is_asked_of_the_backbone_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode: modes.append((type(self).__name__, mode))
    )
    accelerator = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    method = torch.nn.Module()
    method.student = torch.nn.Module()
    method.student.backbone = torch.nn.Conv2d(3, 8, 3)
    launch.place(
        method,  # type: ignore[arg-type]
        accelerator,  # type: ignore[arg-type]
        sync_batchnorm="auto",
        compile_mode="reduce-overhead",
    )
    assert modes == [("Conv2d", "reduce-overhead")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for CPUs with g++")
def test_a_compiled_student_learns_the_same(configure, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = []
    for mode in ("off", "default"):
        config = configure(run_dir=str(tmp_path / mode), steps=1, save_every=1)
        config.student.compile = mode
        found.append(load_file(train(config) / "model.safetensors"))
    eager, compiled = found
    assert list(eager) == list(compiled), "names stay those of the backbone"
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)
