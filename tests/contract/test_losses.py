"""What every distillation method must do, by its table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.configs.methods import METHODS
from distill.configs.train import SimSiamConfig, StudentConfig, TrainConfig, VICRegConfig
from distill.methods.base import Method
from distill.methods.build import build_method, method_class
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS, make_batch


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    student = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 12, 16]}
    )
    config = TrainConfig(
        method=request.param,
        student=student,
        simsiam=SimSiamConfig(width=16, predictor_width=8),
        vicreg=VICRegConfig(width=16, hidden=16),
    )
    kind, settings = method_class(config.method), config.method_settings()
    training_set: Any = SimpleNamespace(
        levels=tuple(sorted(LEVELS, key=lambda level: level.stride)),
        strides=(2, 4),
        num_classes=3,
        finest=0,
        image_size=IMAGE_SIZE,
        needs=kind.needs(settings),
    )
    return build_method(kind, settings, student=student, training_set=training_set, seed=0)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = make_batch(np.arange(16))
    assert rows.image is not None
    images = torch.from_numpy(rows.image).permute(0, 3, 1, 2) / 127.5 - 1
    assert rows.label is not None
    targets = {name: torch.from_numpy(v).float() for name, v in rows.levels.items()}
    return images, targets | {"label": torch.from_numpy(rows.label)}


def test_twenty_steps_of_sgd_lower_the_loss(method: Method, batch) -> None:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(21):
        torch.manual_seed(0)  # the same views every step
        loss = method(*batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)  # the losses' scales differ
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2 * abs(losses[0])


def test_terms_are_finite_float32_scalars(method: Method, batch) -> None:
    terms = method(*batch)
    assert "loss" in terms
    for value in terms.values():
        assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)


def test_every_parameter_gets_a_gradient(method: Method, batch) -> None:
    # DistributedDataParallel waits for ever for one that does not.
    method(*batch)["loss"].backward()
    assert [name for name, p in method.named_parameters() if p.grad is None] == []


def test_the_student_is_a_part_of_it_and_learns(method: Method, batch) -> None:
    method(*batch)["loss"].backward()
    gradients = [p.grad for p in method.student.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any((g != 0).any() for g in gradients if g is not None)


def test_memory_order_changes_nothing(method: Method, batch) -> None:
    images, targets = batch
    method.eval()
    torch.manual_seed(0)
    plain = method(images, targets)["loss"]
    last = torch.channels_last
    torch.manual_seed(0)
    method.to(memory_format=last)  # pyright: ignore[reportCallIssue]
    other = method(
        images.to(memory_format=last),
        {n: v.to(memory_format=last) if v.dim() == 4 else v for n, v in targets.items()},
    )["loss"]
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)
