"""A step that memory does not hold is a setting to change, before the first step."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill.configs.train import TrainConfig
from distill.data.open import open_training_set
from distill.methods.base import Method
from distill.methods.build import build_method, method_class
from distill.train import train
from distill.training import memory
from distill.training.memory import StepSize, estimate_step, free_memory, try_step
from dreamshard.errors import ConfigError


def prepared(config: TrainConfig) -> tuple[Method, StepSize]:
    kind, settings = method_class(config.method), config.method_settings()
    training_set = open_training_set(config.data, needs=kind.needs(settings))
    method = build_method(kind, settings, student=config.student, training_set=training_set, seed=0)
    step = StepSize(training_set=training_set, count=8, optimizer="adamw", averaged=False)
    return method, step


def test_the_estimate_counts_weights_and_what_the_backward_pass_needs(configure) -> None:
    method, step = prepared(configure())
    weights = sum(p.nbytes for p in method.parameters())
    eight, sixteen = (estimate_step(method, replace(step, count=n)) for n in (8, 16))
    assert eight is not None and sixteen is not None
    images = 8 * 3 * 16 * 16 * 4
    assert sixteen - eight > 4 * images, "maps of every layer, each larger than the images"
    assert 2 * eight - sixteen >= 4 * weights, "weights, gradients and two numbers each"
    plain, averaged, many = (
        estimate_step(method, replace(step, **changes))  # type: ignore[arg-type]
        for changes in ({"optimizer": "sgd"}, {"averaged": True}, {"ranks": 2})
    )
    assert plain == eight - weights and many == eight + weights
    assert averaged is not None and averaged > eight


def test_a_step_beyond_memory_is_a_setting_before_step_one(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    config = configure(accumulate=2)
    with pytest.raises(ConfigError, match=r"a step takes .* GB or more, 0.0 GB are free") as caught:
        train(config)
    assert "batch_size: got" in str(caught.value) and "--accumulate 4" in str(caught.value)
    assert not (Path(config.run_dir) / "metrics.jsonl").exists()


def test_a_step_that_was_tried_is_forgotten(configure) -> None:
    method, step = prepared(configure())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    state = torch.get_rng_state()
    try_step(method, step, device=torch.device("cpu"), autocast=nullcontext())
    after = method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in method.parameters())


def test_what_a_step_lacks_is_raised_and_forgotten(
    configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, step = prepared(configure())
    before = {name: value.clone() for name, value in method.state_dict().items()}

    def starve(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    method.register_forward_hook(starve)
    with pytest.raises(torch.OutOfMemoryError):
        try_step(method, step, device=torch.device("cpu"), autocast=nullcontext())
    assert all(torch.equal(before[name], v) for name, v in method.state_dict().items())


def test_a_group_s_limit_counts_and_its_file_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("9000\n")
    (tmp_path / "memory.stat").write_text("anon 4000\ninactive_file 3000\nactive_file 2000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) > 100_000, "no limit"
    (tmp_path / "memory.max").write_text("10000\n")
    assert free_memory(tmp_path) == 6000
