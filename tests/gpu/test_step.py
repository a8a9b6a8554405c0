"""Parts of a step on the device: losses in float32, batch norm, what a try leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.configs.train import DreamTeacherConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.methods.build import build_method, method_class
from distill.students.student import build_student
from distill.training.batch_norm import share_batch_norm
from distill.training.launch import place
from distill.training.memory import StepSize, estimate_step, try_step
from tests.unit.pipeline.learning.test_precise import WHAT, maps, moved

pytestmark = pytest.mark.gpu
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("what", WHAT)
def test_the_same_numbers_inside_autocast(what: str, dtype: torch.dtype, device: str) -> None:
    def compute() -> torch.Tensor:
        with torch.device(device):  # where all that is drawn comes to lie
            return WHAT[what]()

    expected = compute()
    with torch.autocast(device, dtype=dtype):
        inside = compute()
    assert inside.dtype == torch.float32 and inside.device.type == device
    torch.testing.assert_close(inside, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_products_on_the_device_are_float32_inside_autocast(
    dtype: torch.dtype, device: str
) -> None:
    from distill.losses.vicreg import covariance, vicreg_loss

    first, second = maps(256, 96).to(device), maps(256, 96, seed=1).to(device)
    expected = (20 * first).double()
    expected = expected - expected.mean(0)
    product = (expected.T @ expected / 255).square()
    expected = (product.sum() - product.diagonal().sum()) / 96
    with torch.autocast(device, dtype=dtype):
        found = covariance(20 * first)
        loss = vicreg_loss(20 * first, 20 * second)["loss"]
    assert found.dtype == loss.dtype == torch.float32 and bool(loss.isfinite())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_views_of_448_pixels_are_those_of_float32(dtype: torch.dtype, device: str) -> None:
    images = torch.ones(1, 3, 448, 448, device=device)
    expected = moved(images)
    with torch.autocast(device, dtype=dtype):
        found = moved(images)
    assert found.isfinite().all() and found.device.type == device
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnetv2_50", "cifar_resnet18"])
def test_shared_batch_norm_keeps_what_a_network_computes(name: str, device: str) -> None:
    student = build_student(StudentConfig(name=name), strides=(4, 8), seed=0, image_size=(32, 32))
    student = student.to(device).eval()
    images = torch.randn(2, 3, 32, 32, device=device)
    with torch.no_grad():
        before = student(images)
        share_batch_norm(student)
        after = student(images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_a_step_that_was_tried_is_forgotten(configure, device: str) -> None:
    from accelerate import Accelerator

    config: TrainConfig = configure(dreamteacher=DreamTeacherConfig(width=8))
    training_set = open_training_set(config.data)
    method = build_method(
        method_class(config.method),
        config.dreamteacher,
        student=config.student,
        training_set=training_set,
        seed=0,
    )
    step = StepSize(training_set=training_set, count=64, optimizer="adamw", averaged=False)
    least = estimate_step(method, step)
    place(method, Accelerator(cpu=device == "cpu"), sync_batchnorm="off", compile_mode="off")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    where = next(method.parameters()).device
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        state = torch.cuda.get_rng_state(where)
    try_step(method, step, device=where, autocast=torch.autocast(device, enabled=False))
    assert all(torch.equal(before[name], v) for name, v in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    if where.type == "cuda":
        assert torch.equal(state, torch.cuda.get_rng_state(where))
        assert least is not None and torch.cuda.max_memory_allocated(where) > 0.8 * least
