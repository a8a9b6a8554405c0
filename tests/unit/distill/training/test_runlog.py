"""What a step tells the run's record."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.training.runlog import RunLog
from dreamshard.errors import DreamshardError
from pipeline.learning.loop import Taken


def opened(*, scaled: bool) -> RunLog:
    told: list[dict[str, float]] = []
    accelerator: Any = SimpleNamespace(
        scaler=object() if scaled else None,
        gather=lambda values: values,
        log=lambda figures, step: told.append(figures),
        device=torch.device("cpu"),
        told=told,
    )
    source = SimpleNamespace(stored=None)
    training_set: Any = SimpleNamespace(levels=(), source=source)
    return RunLog(
        None, accelerator=accelerator, training_set=training_set, steps=3, batch_size=4, start=0
    )


def taken(step: int, *, norm: float, skipped: bool) -> Taken:
    return Taken(
        step=step,
        terms={"loss": torch.tensor(2.0)},
        norm=torch.tensor(norm),
        rate=0.1,
        skipped=skipped,
        last=False,
    )


def test_the_norm_of_a_step_that_was_skipped_is_no_divergence() -> None:
    with opened(scaled=True) as log:
        log.note(taken(1, norm=math.inf, skipped=True), index=np.arange(4))
        log.note(taken(2, norm=6.0, skipped=False), index=np.arange(4))
        log.line(rate=0.1, waited_s=0.0, every=10)
    assert log.figures["skipped"] == 0.5 and log.figures["grad_norm"] == 3.0


@pytest.mark.parametrize("scaled", [False, True])
def test_the_norm_of_a_step_that_was_taken_must_be_finite(scaled: bool) -> None:
    with opened(scaled=scaled) as log:
        log.note(taken(1, norm=1.0, skipped=False), index=np.arange(4))
        log.note(taken(2, norm=math.inf, skipped=False), index=np.arange(4))
        with pytest.raises(DreamshardError, match=r"step 2: .*grad_norm inf"):
            log.line(rate=0.1, waited_s=0.0, every=10)
