"""The trainer on the device: formats, skipped steps, going on, the average, memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.configs.train import TrainConfig
from distill.students.export import load_student
from distill.train import train
from distill.training.launch import native_bf16
from dreamshard.errors import ConfigError
from pipeline.learning import loop

pytestmark = pytest.mark.gpu
Configure = Callable[..., TrainConfig]
FORMATS = ["fp32", "bf16", "fp16"]


def lines(config: TrainConfig) -> list[dict[str, float]]:
    text = (Path(config.run_dir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_student(Path(config.run_dir))[0].state_dict()


def needs(precision: str, device: str) -> None:
    known = {"fp32": True, "bf16": native_bf16(device), "fp16": device == "cuda"}
    if not known[precision]:
        pytest.skip(f"{device} does not compute in {precision}")


@pytest.mark.parametrize("precision", FORMATS)
def test_the_loss_is_that_of_the_cpu(
    configure: Configure, precision: str, device: str, tmp_path: Path
) -> None:
    needs(precision, device)
    here = configure(run_dir=str(tmp_path / "cpu"), device="cpu", precision="fp32")
    there = configure(precision=precision)
    train(here)
    train(there)
    expected = [line["loss"] for line in lines(here)]
    found = [line["loss"] for line in lines(there)]
    taken = len(found)
    if precision == "fp16":  # the scale starts high: its first steps overflow and are left out
        skipped = [line.get("skipped", 0) for line in lines(there)]
        taken = 1 + skipped.index(1) if 1 in skipped else taken
    close = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 2e-3}[precision]
    np.testing.assert_allclose(found[:taken], expected[:taken], rtol=close)
    assert all(np.isfinite(found))


@pytest.mark.parametrize("precision", FORMATS)
def test_a_run_that_was_cut_ends_as_an_undisturbed_one(
    configure: Configure, precision: str, device: str
) -> None:
    needs(precision, device)
    config = configure(precision=precision)
    train(config)
    whole, told = weights(config), lines(config)
    shutil.rmtree(Path(config.run_dir) / "student")
    shutil.rmtree(Path(config.run_dir) / "checkpoint-000006")
    train(config)
    assert all(torch.equal(value, whole[name]) for name, value in weights(config).items())
    assert [line["loss"] for line in lines(config)] == [line["loss"] for line in told]


def test_an_overflowed_step_is_a_skipped_step(
    configure: Configure, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An infinite gradient at step 6, once the scale has settled: weights stay, the scale falls."""
    add, seen = loop.add_gradients, []

    def spoiled(model, optimizer, forward, *, step, parts, engine):
        found = add(model, optimizer, forward, step=step, parts=parts, engine=engine)
        some = next(p for p in model.parameters() if p.grad is not None)
        seen.append((some.detach().clone(), engine.scaler.get_scale()))
        if step == 6:
            some.grad.fill_(float("inf"))
        return found

    monkeypatch.setattr(loop, "add_gradients", spoiled)
    config = configure(precision="fp16", steps=9)
    train(config)
    (sixth, scale), (seventh, lower) = seen[5], seen[6]
    assert torch.equal(sixth, seventh) and lower == scale / 2
    assert not torch.equal(seventh, seen[7][0])
    assert len(lines(config)) == 9, "a run goes on after it"


def test_the_average_follows_on_the_device(configure: Configure) -> None:
    config = configure()
    train(config)
    folder = Path(config.run_dir) / "checkpoint-000006"
    average, model = (load_file(folder / f"{name}.safetensors") for name in ("average", "model"))
    kept = weights(config)
    assert all(torch.equal(kept[name].cpu(), value) for name, value in average.items())
    moved = [name for name in average if name.endswith("conv1.weight")]
    assert moved and not any(torch.equal(average[n], model[f"student.{n}"]) for n in moved)


def test_a_batch_beyond_the_device_s_memory_is_a_setting_before_step_one(
    configure: Configure, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.cuda.get_device_properties(cuda).total_memory // (16 * 16 * 3 * 4 * 8)
    config = configure(batch_size=int(images))
    with pytest.raises(ConfigError, match="batch_size: got .* memory does not suffice"):
        train(config)
    assert not (Path(config.run_dir) / "metrics.jsonl").exists()
