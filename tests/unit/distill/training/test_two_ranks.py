"""Students, methods and losses on two processes: the same weights, and the loss of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distill.configs.augment import AugmentConfig
from distill.configs.methods import METHODS, SimSiamConfig, SupervisedConfig, VICRegConfig
from distill.configs.mix import (
    ContrastPartConfig,
    FeaturePartConfig,
    GramPartConfig,
    MixConfig,
    RegressionPartConfig,
    SimilarityPartConfig,
    SpanPartConfig,
    SqueezePartConfig,
)
from distill.configs.similarity import ClusterConfig, CompressConfig, CRDConfig, RegConfig
from distill.configs.squeeze import SqueezeAndSpanConfig
from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig, TrainConfig
from distill.data.open import open_training_set
from distill.data.sets import NUMBER, REAL
from distill.losses.vicreg import vicreg_loss
from distill.methods.base import Method
from distill.methods.build import build_method, method_class
from distill.training.rehearsal import rehearse
from distill.training.start import plan_of
from pipeline.learning.ranks import gathered_rows
from tests.two_ranks import on_two_ranks
from tests.unit.distill.small_data import LEVELS, VECTOR, make_dataset

SMALL = {"name": "cifar_resnet", "settings": {"depths": [1, 1, 1], "widths": [8, 8, 8]}}
RUNS: dict[str, dict[str, Any]] = {
    "dreamteacher": {"student": SMALL},
    "simsiam": {"student": SMALL, "method": "simsiam"},
    "supervised": {"student": SMALL, "method": "supervised"},
    "a pyramid whose branches no loss looks at": {
        "student": {"name": "test_vit", "strides": [4, 8, 16]},
        "method": "vicreg",
    },
    "a network with a dead end": {"student": {"name": "mobilenetv3_small_050"}},
}


def configured(folder: Path, *, student: dict[str, Any], method: str = "dreamteacher"):
    return TrainConfig(
        run_dir=str(folder / "run"),
        batch_size=8,
        device="cpu",
        data=DataConfig(dataset=str(folder / "data" / "boxes")),
        student=StudentConfig(**student),
        method=method,
        dreamteacher=DreamTeacherConfig(width=8),
        vicreg=VICRegConfig(width=8, hidden=8),
        simsiam=SimSiamConfig(width=8, predictor_width=8),
        supervised=SupervisedConfig(classes=3),
    )


def _targets(method_set: Any, count: int) -> dict[str, torch.Tensor]:
    targets = {level.name: torch.randn(count, *level.shape) for level in method_set.levels}
    return targets | {"label": torch.arange(count) % 3}


def _three_steps(config: TrainConfig) -> Method:
    kind, settings = method_class(config.method), config.method_settings()
    training_set = open_training_set(config.data, needs=kind.needs(settings))
    method = build_method(kind, settings, student=config.student, training_set=training_set, seed=0)
    rehearse(method, plan=plan_of(config), training_set=training_set, ranks=2)
    model = DistributedDataParallel(method)
    learning = [weight for weight in method.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        size = training_set.image_size
        model(torch.randn(4, 3, *size), _targets(training_set, 4))["loss"].backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in learning)
    return method


def _weights_stay_the_same(rank: int, folder: Path) -> None:
    for what, changes in RUNS.items():
        torch.manual_seed(rank)  # every rank sees other images
        method = _three_steps(configured(folder, **changes))
        for name, weight in method.named_parameters():
            chief = weight.detach().clone()
            torch.distributed.broadcast(chief, src=0)
            assert torch.equal(chief, weight), (what, name)


def _vicreg_is_that_of_one_process(rank: int, folder: Path) -> None:
    del folder
    torch.manual_seed(0)
    network, images = nn.Linear(12, 32), torch.randn(2, 16, 12)
    whole = vicreg_loss(network(images[0]), network(images[1]))
    (gradient,) = torch.autograd.grad(whole["loss"], network.weight)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
            return vicreg_loss(*(gathered_rows(self.network(x)) for x in (first, second)))

    mine = images[:, rank * 8 : rank * 8 + 8]
    model = DistributedDataParallel(Loss())  # kept: it shares the gradients
    terms = model(mine[0], mine[1])
    terms["loss"].backward()
    for name, value in terms.items():
        torch.testing.assert_close(value, whole[name])
    torch.testing.assert_close(network.weight.grad, gradient, rtol=1e-4, atol=1e-5)


UNMOVED = AugmentConfig(crop_scale=[1.0, 1.0], flip=0.0, jitter=[0.0] * 4, grayscale=0.0)
DROPPED = DreamTeacherConfig(width=8, shift_cells=1, balance="losses", teacher_dropping=0.5)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dreamteacher": {"dreamteacher": DreamTeacherConfig(width=8)},
    "dreamteacher of two teachers": {"dreamteacher": DROPPED},
    "compress": {"compress": CompressConfig(queue=20, augment=UNMOVED)},
    "reg": {"reg": RegConfig(augment=UNMOVED)},
    "cc": {"cc": ClusterConfig(clusters=4, augment=UNMOVED)},
    "crd": {"crd": CRDConfig(negatives=20, width=8, augment=UNMOVED)},
    "simsiam": {"simsiam": SimSiamConfig(width=8, predictor_width=8, augment=UNMOVED)},
    "vicreg": {"vicreg": VICRegConfig(width=8, hidden=8, augment=UNMOVED)},
    "supervised": {"supervised": SupervisedConfig(classes=3, augment=UNMOVED)},
    "squeeze_and_span": {
        "squeeze_and_span": SqueezeAndSpanConfig(
            width=8, squeeze_width=8, projector_layers=2, augment=UNMOVED
        )
    },
    "mix of others": {
        "mix": MixConfig(
            gram=GramPartConfig(weight=1.0),
            regression=RegressionPartConfig(weight=1.0),
            contrast=ContrastPartConfig(weight=1.0, width=8, negatives=20),
            squeeze=SqueezePartConfig(weight=1.0, width=8, squeeze_width=8, projector_layers=2),
            augment=UNMOVED,
        )
    },
    "mix": {
        "mix": MixConfig(
            feature=FeaturePartConfig(weight=1.0, width=8),
            similarity=SimilarityPartConfig(weight=1.0, variant="1q", queue=20),
            span=SpanPartConfig(weight=0.5, width=8, projector_layers=2),
            augment=UNMOVED,
        )
    },
}
"""Every method, without random views: two ranks draw other ones than one."""


def _one_pass(name: str, folder: Path, rows: slice, *, ranks: int) -> dict[str, torch.Tensor]:
    """Return the terms, gradients and anchors of some rows of a batch of eight, as one dict.

    Batch norm is in evaluation mode: CPUs cannot share its statistics.
    """
    url, joined = (str(folder / part / "boxes") for part in ("vectors", "others"))
    method_name = name.partition(" ")[0]
    config = TrainConfig(
        method=method_name,
        student=StudentConfig(**SMALL),
        data=DataConfig(dataset=url, join=[joined] if "two teachers" in name else []),
        **OBJECTIVES[name],
    )
    kind, settings = method_class(method_name), config.method_settings()
    needs = kind.needs(settings)
    config.data.real = url if needs.real else ""
    training_set = open_training_set(config.data, needs=needs)
    method = build_method(kind, settings, student=config.student, training_set=training_set, seed=0)
    method.eval()
    torch.manual_seed(5)
    size = training_set.image_size
    images, targets = torch.randn(8, 3, *size), _targets(training_set, 8)
    targets[REAL], targets[NUMBER] = torch.randn(8, 3, *size), torch.arange(8) * 7
    model = DistributedDataParallel(method) if ranks > 1 else method
    terms = model(images[rows], {key: value[rows] for key, value in targets.items()})
    terms["loss"].backward()
    method.after_step()
    found = {f"term {key}": value.detach().clone() for key, value in terms.items()}
    for value in found.values() if ranks > 1 else ():
        torch.distributed.all_reduce(value)
        value /= ranks
    grads = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    anchors = {n: b.clone() for n, b in method.named_buffers() if "_queue." in n or "_bank." in n}
    return found | grads | anchors


def _objectives_are_those_of_one_process(rank: int, folder: Path) -> None:
    for name in OBJECTIVES:
        found = _one_pass(name, folder, slice(rank * 4, rank * 4 + 4), ranks=2)
        expected = load_file(folder / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in found.items():
            difference = float((value - expected[key]).abs().max())
            scale = max(1e-2, float(expected[key].abs().max()))
            assert difference <= 1e-3 * scale, (name, key, difference, scale)


def _all(rank: int, folder: Path) -> None:
    _objectives_are_those_of_one_process(rank, folder)
    _vicreg_is_that_of_one_process(rank, folder)
    _weights_stay_the_same(rank, folder)


@pytest.mark.slow
def test_every_method_and_odd_students_train_on_two_processes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", labels=True)
    make_dataset(tmp_path / "vectors", labels=True, levels=(*LEVELS, VECTOR))
    make_dataset(tmp_path / "others", teacher="others")
    assert set(METHODS) <= set(OBJECTIVES)
    for name in OBJECTIVES:
        whole = _one_pass(name, tmp_path, slice(None), ranks=1)
        save_file({key: value.contiguous() for key, value in whole.items()},
                  tmp_path / f"{name}.safetensors")  # fmt: skip
    on_two_ranks(_all, tmp_path)
