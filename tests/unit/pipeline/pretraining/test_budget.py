"""A budget in minutes becomes steps, and everything that goes with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamshard.errors import ConfigError, DataError
from pipeline import pretrain as script
from pipeline.images import ImageConfig
from pipeline.pretrain_config import PretrainConfig, UNetConfig
from pipeline.pretraining import budget, state


def tiny(out: Path, **changes: object) -> PretrainConfig:
    values: dict[str, object] = {
        "out": str(out),
        "image": ImageConfig(size=16, flip="random"),
        "unet": UNetConfig(block_out_channels=[8, 8], norm_num_groups=4, dropout=0.1),
        "batch_size": 4,
        "warmup_steps": 2,
        "num_samples": 1,
        "sample_steps": 1,
        "threads": 1,
        "checkpoint_every": 2,
        "device": "cpu",
        "minutes": 1.0,
    }
    return PretrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def plan_of(config: PretrainConfig, **changes: float) -> budget.Plan:
    return budget.make_plan(config, **{"seconds_per_step": 0.1, **changes})


def test_time_becomes_steps_and_the_average_follows(tmp_path: Path) -> None:
    plan = plan_of(tiny(tmp_path), spent_s=10.0)
    assert plan.steps == int(0.97 * 50 / 0.1) == 485
    assert plan.ema ** (0.03 * 485) == pytest.approx(0.5)
    config = plan.apply(tiny(tmp_path))
    assert (config.steps, config.warmup_steps, config.ema) == (485, 2, plan.ema)
    assert "1 minutes buy 485 steps of 4 (1,940 images, 40 a second)" in plan.sentence()
    assert plan_of(tiny(tmp_path, ema=0.0)).ema == 0.0, "no average stays no average"


def test_a_budget_shorter_than_the_warm_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"minutes: got 1, allowed more than 5.*warmup_steps"):
        plan_of(tiny(tmp_path, warmup_steps=3000))
    plan_of(tiny(tmp_path, warmup_steps=300))


def test_a_plan_is_kept_and_belongs_to_its_recipe(tmp_path: Path) -> None:
    plan = plan_of(tiny(tmp_path))
    assert budget.read_plan(tmp_path, "key") is None
    budget.write_plan(tmp_path, plan, "key")
    assert budget.read_plan(tmp_path, "key") == plan
    with pytest.raises(ConfigError, match="of a run with other settings"):
        budget.read_plan(tmp_path, "another")
    (tmp_path / budget.FILE).write_text("[1]")
    with pytest.raises(DataError, match="damaged"):
        budget.read_plan(tmp_path, "key")


def test_a_budgeted_run_ends_as_one_told_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the measured steps trained is thrown away, averages and optimiser with it."""
    monkeypatch.setattr(budget, "_measure", lambda step, wait: (step(0), step(1), 10.0)[2])
    script.pretrain(tiny(tmp_path / "budget"))
    kept = json.loads((tmp_path / "budget" / "run" / budget.FILE).read_text())
    told = {"minutes": None, "steps": kept["steps"], "ema": kept["ema"]}
    script.pretrain(tiny(tmp_path / "told", **told))
    one, two = (load_file(tmp_path / name / state.WEIGHTS) for name in ("budget", "told"))
    assert all(torch.equal(one[name], two[name]) for name in two)
    card = json.loads((tmp_path / "budget" / "teacher_card.json").read_text())
    assert card["steps"] == kept["steps"] == 5 and card["images_seen"] == 20
    assert script.pretrain(tiny(tmp_path / "budget")) == tmp_path / "budget", "reused"


def test_a_rerun_keeps_the_plan_of_the_run_it_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_measure", lambda step, wait: 10.0)
    script.pretrain(tiny(tmp_path / "whole"))
    original = script._Run._step

    def stopped(self: object, number: int, batch: object) -> object:
        if number == 4:
            raise KeyboardInterrupt
        return original(self, number, batch)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(script._Run, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            script.pretrain(tiny(tmp_path / "cut"))
    monkeypatch.setattr(budget, "_measure", lambda step, wait: 1.0)  # a faster hour
    script.pretrain(tiny(tmp_path / "cut"))
    whole, cut = (load_file(tmp_path / name / state.WEIGHTS) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
