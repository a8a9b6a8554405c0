"""Checkpoints are whole or not there; a run goes on only as itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.training import checkpoint
from distill.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    read_state,
    resume_point,
    save_checkpoint,
    trim_metrics,
)
from distill.training.learner import Learner, build_average
from distill.training.state import TrainState
from dreamshard.errors import ConfigError, DataError

FRESH = TrainState(config={"seed": 0, "optimizer": {"lr": 0.1}, "keep": 2}, content_key="a")


def learner(module: Any, optimizer: torch.optim.Optimizer | None = None, **parts: Any) -> Learner:
    return Learner(module, optimizer or torch.optim.AdamW(module.parameters()), **parts)


def trained(steps: int = 3) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return learner(module, optimizer)


def save(run_dir: Path, *steps: int, keep: int = 9) -> None:
    ours = trained()
    for step in steps:
        state = replace(FRESH, step=step, position=8 * step)
        save_checkpoint(run_dir, state, ours, keep=keep)


def test_weights_and_optimiser_come_back_exactly(tmp_path: Path) -> None:
    first, second = trained(), trained(steps=1)
    load_checkpoint(save_checkpoint(tmp_path, FRESH, first, keep=1), second)
    for each in (first, second):
        torch.manual_seed(1)
        network: Any = each.method
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        each.optimizer.step()
    other: Any = second.method
    ours, theirs = first.method.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    weight = other[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 2, 4, 10, 100, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-000010",
        "checkpoint-000100",
    ]


def test_a_death_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4)
    state, last = resume_point(tmp_path, fresh=FRESH)
    assert state.step == 2 and last == tmp_path / "checkpoint-000002"
    monkeypatch.undo()
    save(tmp_path, 4)
    assert not list(tmp_path.glob(".*")), "the half-written folder is gone"


def test_a_run_begins_at_the_start_or_goes_on_at_its_last_checkpoint(tmp_path: Path) -> None:
    assert resume_point(tmp_path, fresh=FRESH) == (FRESH, None)
    save(tmp_path, 2, 4)
    state, last = resume_point(tmp_path, fresh=FRESH)
    assert (state.step, state.position) == (4, 32)
    assert last is not None and last.name == "checkpoint-000004"


def test_the_snapshot_of_the_first_start_is_kept(tmp_path: Path) -> None:
    began = replace(FRESH, step=2, snapshot="64-1-abc")
    save_checkpoint(tmp_path, began, trained(), keep=1)
    state, _ = resume_point(tmp_path, fresh=replace(FRESH, snapshot="96-2-def"))
    assert state.snapshot == "64-1-abc"


def test_other_settings_are_named_with_two_ways_out(tmp_path: Path) -> None:
    save(tmp_path, 2)
    changed = replace(FRESH, config={"seed": 1, "optimizer": {"lr": 0.2}, "keep": 2})
    with pytest.raises(ConfigError) as caught:
        resume_point(tmp_path, fresh=changed)
    text = str(caught.value)
    assert "optimizer.lr: 0.1 there, 0.2 asked for" in text
    assert "seed: 0 there, 1 asked for" in text
    assert "--run_dir" in text and "--restart true" in text
    assert resume_point(tmp_path, fresh=changed, restart=True) == (changed, None)


def test_settings_that_decide_nothing_may_change(tmp_path: Path) -> None:
    save(tmp_path, 2)
    state, _ = resume_point(tmp_path, fresh=replace(FRESH, config=FRESH.config | {"keep": 7}))
    assert state.step == 2 and state.config["keep"] == 7


def test_a_setting_that_is_newer_than_the_run_had_its_default(tmp_path: Path) -> None:
    save(tmp_path, 1)
    known = replace(FRESH, config={**FRESH.config, "accumulate": 1})
    assert resume_point(tmp_path, fresh=known)[0].step == 1
    other = replace(FRESH, config={**FRESH.config, "batch_size": 7})
    with pytest.raises(ConfigError, match="batch_size: 256 there, 7 asked for"):
        resume_point(tmp_path, fresh=other)


def test_another_dataset_is_another_run(tmp_path: Path) -> None:
    save(tmp_path, 2)
    with pytest.raises(ConfigError, match=r"data\.dataset"):
        resume_point(tmp_path, fresh=replace(FRESH, content_key="b"))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    tmp_path: Path, name: str, damage: str
) -> None:
    save(tmp_path, 2)
    path = tmp_path / "checkpoint-000002"
    if damage == "cut":
        (path / name).write_bytes((path / name).read_bytes()[:20])
    else:
        (path / name).unlink()
    with pytest.raises(DataError, match="checkpoint-000002.*Delete that folder"):
        read_state(path)
        load_checkpoint(path, trained())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 2)
    other = nn.Conv2d(3, 5, 3)
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_checkpoint(tmp_path / "checkpoint-000002", learner(other))


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    import os
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    save(tmp_path, 2)
    path = tmp_path / "checkpoint-000002"
    (path / "optimizer.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    with pytest.raises(DataError, match="holds more than tensors"):
        load_checkpoint(path, trained())
    assert not (tmp_path / "executed").exists()


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (10, 20, 30)]
    path.write_text("\n".join(lines) + '\n{"step": 4', encoding="utf-8")
    trim_metrics(path, step=20)
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == [10, 20]
    trim_metrics(tmp_path / "absent.jsonl", step=0)


def test_the_average_and_the_scaler_come_back_too(tmp_path: Path) -> None:
    from torch.amp.grad_scaler import GradScaler

    def with_parts(scale: float) -> Learner:
        ours = trained()
        student: Any = ours.method
        scaler = GradScaler("cpu", init_scale=scale)
        return learner(student, average=build_average(student, decay=0.5), scaler=scaler)

    first, second = with_parts(8.0), with_parts(4.0)
    assert first.average is not None and second.average is not None
    assert first.scaler is not None and second.scaler is not None
    with torch.no_grad():
        next(first.average.module.parameters()).add_(1.0)
    path = save_checkpoint(tmp_path, FRESH, first, keep=1)
    load_checkpoint(path, second)
    ours, theirs = first.average.module.state_dict(), second.average.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert second.scaler.state_dict() == first.scaler.state_dict()
    (path / "average.safetensors").unlink()
    with pytest.raises(DataError, match="checkpoint-000000"):
        load_checkpoint(path, second)
