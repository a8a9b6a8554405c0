"""Scaled losses: a step that overflowed is a skipped step, and is counted as one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.amp.grad_scaler import GradScaler

from distill.configs.train import OptimizerConfig
from distill.training.learner import build_learner
from distill.training.optim import build_optimizer


def test_an_overflowed_step_is_skipped_and_said_so() -> None:
    Accelerator(cpu=True)
    module, scaler = nn.Linear(2, 1), GradScaler("cpu", init_scale=4.0)
    plain = build_optimizer(module, OptimizerConfig(), fused=False)
    stepper = AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for gradient, skipped in ((float("inf"), True), (1.0, False), (float("nan"), True)):
        scaler.scale(module(torch.ones(3, 2)).sum()).backward()
        module.weight.grad.fill_(gradient)  # type: ignore[union-attr]
        stepper.step()
        stepper.zero_grad()
        now = module.state_dict()
        moved = not all(torch.equal(before[name], value) for name, value in now.items())
        assert (stepper.step_was_skipped, moved) == (skipped, not skipped)
        before = {name: value.clone() for name, value in now.items()}
    assert scaler.get_scale() == 1.0, "halved by each overflow"


@pytest.mark.parametrize("scaler", [None, GradScaler("cpu")])
def test_only_unscaled_runs_take_the_fused_step(configure, scaler: GradScaler | None) -> None:
    from distill.data.open import open_training_set
    from distill.methods.build import build_method, method_class

    config = configure()
    method = build_method(
        method_class(config.method),
        config.dreamteacher,
        student=config.student,
        training_set=open_training_set(config.data),
        seed=config.seed,
    )
    accelerator: Any = SimpleNamespace(scaler=scaler, num_processes=1, device=torch.device("cpu"))
    learner = build_learner(
        method,
        accelerator,
        optimizer=config.optimizer,
        student=config.student,
        image_size=(16, 16),
        steps=config.steps,
        batch_size=config.batch_size,
        ema=0.0,
        sync_batchnorm="auto",
    )
    assert learner.optimizer.defaults["fused"] is (scaler is None)
    assert learner.scaler is scaler and learner.network is method.student
