"""Objectives on one student: names, gradients, weights, and how often it runs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.configs.methods import SimSiamConfig, VICRegConfig
from distill.configs.mix import FeaturePartConfig, GramPartConfig, MixConfig
from distill.configs.objectives import GramConfig
from distill.configs.train import StudentConfig, TrainConfig
from distill.methods.build import build_method, method_class
from distill.methods.gram import Gram
from distill.methods.objective import PLACE, Composite
from dreamshard.errors import ConfigError
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS

HEADS = {
    "dreamteacher": {"regressor"},
    "simsiam": {"projector", "predictor"},
    "vicreg": {"expander"},
    "supervised": {"classifier"},
}


def build(name: str, **sections: Any) -> Any:
    student = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
    )
    small = {
        "simsiam": SimSiamConfig(width=8, predictor_width=8),
        "vicreg": VICRegConfig(width=8, hidden=8),
    }
    config = TrainConfig(method=name, student=student, **(small | sections))
    kind, settings = method_class(name), config.method_settings()
    training_set: Any = SimpleNamespace(
        levels=tuple(sorted(LEVELS, key=lambda level: level.stride)),
        strides=(2, 4),
        num_classes=3,
        finest=0,
        offers=lambda _: True,
        image_size=IMAGE_SIZE,
        needs=kind.needs(settings),
    )
    built = build_method(kind, settings, student=student, training_set=training_set, seed=0)
    assert isinstance(built, Composite)
    return built


def tensors(count: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    targets = {level.name: torch.randn(count, *level.shape) for level in LEVELS}
    return torch.randn(count, 3, *IMAGE_SIZE), targets | {"label": torch.arange(count) % 3}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_presets_tensors_are_named_after_its_heads_alone(name: str) -> None:
    method = build(name)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    assert {key.partition(".")[0] for key in state} == {"student"} | HEADS[name]
    for value in method.parameters():
        value.data.add_(1)
    method.load_state_dict(state)
    again = method.state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_names_of_the_fixed_rate_are_those_of_parameters() -> None:
    method = build("simsiam")
    fixed = [n for n, _ in method.named_parameters() if n.startswith(method.fixed_rate)]
    assert len(fixed) == len(list(method.objectives["simsiam"].predictor.parameters()))  # type: ignore[union-attr]
    assert all(name.startswith(f"{PLACE}simsiam.predictor.") for name in fixed)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_student_runs_once_per_view(name: str) -> None:
    method, calls = build(name), []
    method.student.register_forward_hook(lambda *_: calls.append(1))
    method(*tensors())
    assert len(calls) == method.views == method_class(name).views


def test_measured_terms_tell_their_weight_and_the_gradient_at_the_deepest_map() -> None:
    method = build("dreamteacher")
    images, targets = tensors()
    method.measuring = True
    told = method(images, targets)
    assert float(told["weight.mse"]) == 1.0 and float(told["weight.at"]) == 10.0
    maps = method.student(images)
    deepest = maps[-1].detach().requires_grad_()
    predicted = method.regressor([*maps[:-1], deepest])
    from distill.losses.feature import feature_loss

    terms = feature_loss(predicted, targets)
    (expected,) = torch.autograd.grad(terms["at"], deepest)
    torch.testing.assert_close(told["gradient.at"], expected.norm(), rtol=1e-4, atol=1e-7)
    told["loss"].backward()  # the graph is still there
    method.measuring = False
    assert not [name for name in method(images, targets) if name.startswith("gradient.")]


def test_a_part_of_a_mix_that_would_train_nothing_is_refused() -> None:
    idle = FeaturePartConfig(weight=1.0, mse_weight=0, attention_weight=0, whiten="layer_norm")
    mix = MixConfig(feature=idle, gram=GramPartConfig(weight=1.0))
    with pytest.raises(ConfigError, match=r"mix\.feature: got weights .*mse, at.*weight 0"):
        build("mix", mix=mix)


def test_a_map_of_one_cell_has_no_likeness_to_compare() -> None:
    student: Any = SimpleNamespace(strides=(2, 4))
    levels = [LEVELS[1], replace(LEVELS[0], stride=16, shape=(12, 1, 1))]
    with pytest.raises(ConfigError, match=r"mix\.gram\.weight: got .*one cell \(up\.0\.t100\)"):
        Gram(GramConfig(), student=student, levels=levels, image_size=IMAGE_SIZE, seed=0)


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="vicreg: got weights that are all zero"):
        build("vicreg", vicreg=VICRegConfig(invariance=0, variance=0, covariance=0))
    build("vicreg", vicreg=VICRegConfig(width=8, hidden=8, invariance=0))
