"""Ctrl-C and SIGTERM while a network trains: the step ends, all is saved, it goes on exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamshard.errors import ConfigError, DataError, Interrupted, run_main
from pipeline.learning.average import build_average
from pipeline.learning.loop import Learner, take_steps
from pipeline.learning.resume import load_stopped, save_stopped
from pipeline.learning.schedule import WarmupCosine
from pipeline.learning.stopping import StopAfterStep

STEPS = 6


def learner() -> Learner:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - as timm's mixup does
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    return Learner(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=0.1),
        schedule=WarmupCosine(peak=0.1, steps=STEPS),
        average=build_average(module, decay=0.9),
    )


def loss(model: nn.Module, step: int, part: int) -> Mapping[str, Tensor]:
    """Depend on both generators."""
    noise = torch.from_numpy(np.random.rand(3, 4)).float()  # noqa: NPY002
    return {"loss": model(torch.randn(3, 4) + noise).square().mean()}


def train(folder: Path, *, stop_at: int = 0, number: int = signal.SIGTERM) -> Learner:
    ours = learner()
    done = load_stopped(folder, ours, key="a")
    with StopAfterStep("train") as stopping:
        for taken in take_steps(ours, loss, done=done):
            if taken.step == stop_at:
                os.kill(os.getpid(), number)
            stop = stopping.now(taken, every=3)
            if stop or taken.last:
                save_stopped(folder, ours, step=taken.step, key="a")
            if stop:
                stopping.leave(taken.step, STEPS)
    return ours


def weights(ours: Learner) -> list[Tensor]:
    return [*ours.module.state_dict().values(), *ours.kept.state_dict().values()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_goes_on_exactly(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)  # Ray has one of its own
    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted, match="after step 2 of 6, a checkpoint is saved") as caught:
        train(tmp_path / "stopped", stop_at=2, number=number)
    assert "The same command goes on from there:\n  " in str(caught.value)
    assert signal.getsignal(signal.SIGTERM) is before, "handlers are put back"
    resumed = train(tmp_path / "stopped")
    pairs = zip(weights(whole), weights(resumed), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    again = train(tmp_path / "stopped")  # finished: loaded, not trained
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))


def test_the_last_step_is_no_stop(tmp_path: Path) -> None:
    train(tmp_path, stop_at=STEPS)


def test_several_ranks_agree_only_where_they_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.learning.stopping.rank_count", lambda: 2)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        train(tmp_path, stop_at=2)


def test_a_rank_whose_launcher_died_saves_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.learning.launcher._parents", [-1])
    with pytest.raises(Interrupted, match="after step 1 of 6, a checkpoint is saved"):
        train(tmp_path)


def test_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, stop_at=2)
    with pytest.raises(ConfigError, match="of a run with other settings"):
        load_stopped(tmp_path, learner(), key="b")
    state = tmp_path / "checkpoint-000002" / "state.json"
    state.write_text(state.read_text().replace('"torch": "', '"torch": "zz'))
    with pytest.raises(DataError, match="checkpoint-000002"):
        load_stopped(tmp_path, learner(), key="a")


def test_an_interrupted_command_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_: object) -> None:
        raise Interrupted("train: stopped")

    assert run_main(stopped, []) == 130
    assert capsys.readouterr().err == "interrupted: train: stopped\n"
