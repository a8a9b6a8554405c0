"""What every distillation method must do, by its table."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.configs.methods import METHODS
from distill.configs.mix import (
    FeaturePartConfig,
    GramPartConfig,
    MixConfig,
    SimilarityPartConfig,
    SpanPartConfig,
    SqueezePartConfig,
    SupervisedPartConfig,
)
from distill.configs.similarity import ClusterConfig, CompressConfig, CRDConfig
from distill.configs.squeeze import SqueezeAndSpanConfig
from distill.configs.train import (
    DataConfig,
    SimSiamConfig,
    StudentConfig,
    TrainConfig,
    VICRegConfig,
)
from distill.data.open import open_training_set
from distill.data.sets import NUMBER, REAL
from distill.methods.base import Method
from distill.methods.build import build_method, method_class
from storage.dataset import Dataset
from tests.unit.distill.small_data import LEVELS, VECTOR, make_batch, make_dataset


@pytest.fixture(scope="module")
def every_level(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data"), levels=(*LEVELS, VECTOR))


@pytest.fixture(params=sorted(METHODS))
def method(request: pytest.FixtureRequest, every_level: Dataset) -> Method:
    student = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 12, 16]}
    )
    config = TrainConfig(
        method=request.param,
        student=student,
        data=DataConfig(dataset=every_level.url),
        compress=CompressConfig(queue=48),
        cc=ClusterConfig(clusters=4),
        crd=CRDConfig(negatives=8, width=8),
        squeeze_and_span=SqueezeAndSpanConfig(width=16, squeeze_width=16, projector_layers=3),
        mix=MixConfig(
            feature=FeaturePartConfig(weight=1.0, width=8),
            gram=GramPartConfig(weight=1.0, temperature=1.0),
            similarity=SimilarityPartConfig(weight=0.5, queue=48, temperature=0.5),
            squeeze=SqueezePartConfig(weight=0.1, width=16, squeeze_width=16),
            span=SpanPartConfig(weight=0.1, width=16),
            supervised=SupervisedPartConfig(weight=0.5),
        ),
        simsiam=SimSiamConfig(width=16, predictor_width=8),
        vicreg=VICRegConfig(width=16, hidden=16),
    )
    kind, settings = method_class(config.method), config.method_settings()
    needs = kind.needs(settings)
    data = replace(config.data, real=every_level.url if needs.real else "")
    training_set = open_training_set(data, needs=needs)
    return build_method(kind, settings, student=student, training_set=training_set, seed=0)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    rows = make_batch(np.arange(16))
    assert rows.image is not None
    images = torch.from_numpy(rows.image).permute(0, 3, 1, 2) / 127.5 - 1
    assert rows.label is not None
    targets = {name: torch.from_numpy(v).float() for name, v in rows.levels.items()}
    return images, targets | {
        "label": torch.from_numpy(rows.label),
        REAL: images.flip(0),
        NUMBER: torch.arange(16),
    }


def test_twenty_steps_of_sgd_lower_the_loss(method: Method, batch) -> None:
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    before = copy.deepcopy(method.state_dict())
    losses = []
    for _ in range(21):
        torch.manual_seed(0)  # the same views every step
        loss = method(*batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)  # the losses' scales differ
        optimizer.step()
        # Anchors and averages stay as they were, or no two steps have the same loss.
        own = {
            name: value for name, value in before.items() if "_queue." in name or "_bank." in name
        }
        method.load_state_dict(own, strict=False)
    assert losses[-1] < losses[0] - 0.2 * abs(losses[0])


def test_terms_are_finite_float32_scalars(method: Method, batch) -> None:
    terms = method(*batch)
    assert "loss" in terms
    for value in terms.values():
        assert value.shape == () and value.dtype == torch.float32 and torch.isfinite(value)


def test_every_parameter_gets_a_gradient(method: Method, batch) -> None:
    # DistributedDataParallel waits for ever for one that does not.
    method(*batch)["loss"].backward()
    learning = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    assert [name for name, p in learning if p.grad is None] == []


def test_the_student_is_a_part_of_it_and_learns(method: Method, batch) -> None:
    method(*batch)["loss"].backward()
    gradients = [p.grad for p in method.student.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any((g != 0).any() for g in gradients if g is not None)


def test_memory_order_changes_nothing(method: Method, batch) -> None:
    images, targets = batch
    method.eval()
    torch.manual_seed(0)
    before = copy.deepcopy(method.state_dict())
    plain = method(images, targets)["loss"]
    method.load_state_dict(before)  # the anchors there were
    last = torch.channels_last
    torch.manual_seed(0)
    method.to(memory_format=last)  # pyright: ignore[reportCallIssue]
    other = method(
        images.to(memory_format=last),
        {n: v.to(memory_format=last) if v.dim() == 4 else v for n, v in targets.items()},
    )["loss"]
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)
