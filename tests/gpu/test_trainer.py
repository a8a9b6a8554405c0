"""The trainer on the device: formats, skipped steps, going on, the average."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import train as script
from distill.config import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig
from distill.export import load_student
from tests.unit.distill.small_data import make_dataset

pytestmark = pytest.mark.gpu
Configure = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_dataset(tmp_path_factory.mktemp("data")).url


@pytest.fixture
def configure(url: str, tmp_path: Path, device: str) -> Configure:
    def make(**changes: object) -> TrainConfig:
        settings: dict = {
            "run_dir": str(tmp_path / "run"), "steps": 6, "batch_size": 16, "log_every": 1,
            "save_every": 3, "device": device, "data": DataConfig(dataset=url), "ema": 0.9,
            "student": StudentConfig(
                name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 16, 16]}
            ),
            "dreamteacher": DreamTeacherConfig(width=8),
        }  # fmt: skip
        return TrainConfig(**(settings | changes))

    return make


def lines(config: TrainConfig) -> list[dict[str, float]]:
    text = (Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_student(Path(config.run_dir))[0].state_dict()


def formats(device: str) -> list[str]:
    from distill.launch import native_bf16

    return ["fp32", *["bf16"] * native_bf16(device), *["fp16"] * (device == "cuda")]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_is_that_of_the_cpu(
    configure: Configure, precision: str, device: str, tmp_path: Path
) -> None:
    if precision not in formats(device):
        pytest.skip(f"{device} does not compute in {precision}")
    here = configure(run_dir=str(tmp_path / "cpu"), device="cpu")
    there = configure(precision=precision)
    script.train(here)
    script.train(there)
    expected = [line["loss"] for line in lines(here)]
    found = [line["loss"] for line in lines(there)]
    close = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 2e-3}[precision]
    taken = len(found)
    if precision == "fp16":  # the scale starts high: its first steps overflow and are left out
        skipped = [line["skipped"] for line in lines(there)]
        assert sum(skipped) < len(skipped) / 2
        taken = 1 + skipped.index(1) if 1 in skipped else taken
    np.testing.assert_allclose(found[:taken], expected[:taken], rtol=close)
    assert found[-1] < found[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_was_cut_ends_as_an_undisturbed_one(
    configure: Configure, precision: str, device: str
) -> None:
    if precision not in formats(device):
        pytest.skip(f"{device} does not compute in {precision}")
    config = configure(precision=precision)
    script.train(config)
    whole, told = weights(config), lines(config)
    shutil.rmtree(Path(config.run_dir) / "student")
    shutil.rmtree(Path(config.run_dir) / "checkpoint-000006")
    script.train(config)
    assert all(torch.equal(value, whole[name]) for name, value in weights(config).items())
    assert [line["loss"] for line in lines(config)] == [line["loss"] for line in told]


def test_an_overflowed_step_is_a_skipped_step(
    configure: Configure, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient at step 6, once the scale has settled: weights stay, the scale falls."""
    config = configure(precision="fp16", steps=9)
    add, seen = script.add_gradients, []

    def spoiled(model, stepper, batches, accelerator, *, parts):
        found = add(model, stepper, batches, accelerator, parts=parts)
        some = next(p for p in model.parameters() if p.grad is not None)
        seen.append((some.detach().clone(), accelerator.scaler.get_scale()))
        if len(seen) == 6:
            some.grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(script, "add_gradients", spoiled)
    script.train(config)
    (sixth, scale), (seventh, lower) = seen[5], seen[6]
    assert torch.equal(sixth, seventh) and lower == scale / 2
    assert not torch.equal(seventh, seen[7][0])
    skipped = [line["skipped"] for line in lines(config)]
    assert skipped[4:] == [0, 1, 0, 0, 0], "overflows of the scale's start are over by step 5"


def test_the_average_follows_on_the_device(configure: Configure, device: str) -> None:
    config = configure()
    script.train(config)
    student = load_student(Path(config.run_dir))[0]
    from safetensors.torch import load_file

    folder = Path(config.run_dir) / "checkpoint-000006"
    average, model = (load_file(folder / f"{n}.safetensors") for n in ("average", "model"))
    kept = student.state_dict()
    assert all(torch.equal(kept[name].cpu(), value) for name, value in average.items())
    moved = [name for name in average if name.endswith("conv1.weight")]
    assert moved and not any(torch.equal(average[n], model[f"student.{n}"]) for n in moved)


def test_batches_copied_beside_the_training_are_the_bytes_of_the_shards(
    tmp_path: Path, device: str
) -> None:
    """Thirty batches through three buffers, while the device is kept busy."""
    from types import SimpleNamespace
    from typing import Any, cast

    from distill.checkpoint import TrainState
    from distill.data import ShardBatches, open_training_set

    dataset = make_dataset(tmp_path, num_samples=96)
    config = TrainConfig(batch_size=16, data=DataConfig(dataset=dataset.url, prefetch=1))
    training_set = open_training_set(config.data)
    student = SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))

    def batches(where: str) -> ShardBatches:
        accelerator = SimpleNamespace(device=torch.device(where), process_index=0, num_processes=1)
        told: Any = {"student": student, "accelerator": accelerator, "state": TrainState()}
        return ShardBatches(training_set, config=config, **cast(Any, told))

    here, there = batches("cpu"), batches(device)
    busy = torch.randn(1500, 1500, device=device)
    kept = []
    for _ in range(30):
        batch = there.next()
        kept.append((batch.images, batch.targets))
        busy = busy @ busy / 1500
    for images, targets in kept:
        expected = here.next()
        torch.testing.assert_close(images.cpu(), expected.images, rtol=1e-6, atol=1e-6)
        for name, value in targets.items():
            torch.testing.assert_close(value.cpu(), expected.targets[name], rtol=0, atol=0)
    here.close()
    there.close()
