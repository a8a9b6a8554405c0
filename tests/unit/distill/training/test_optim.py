"""Learning rate per step, and which parameters decay."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from distill.configs.train import OptimizerConfig, StudentConfig
from distill.data.open import open_training_set
from distill.methods.build import build_method, method_class
from distill.students.student import build_student
from distill.training.optim import (
    build_optimizer,
    layer_depths,
    parameter_groups,
    schedule_of,
)


def test_only_kernels_and_matrices_decay() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(module, OptimizerConfig(weight_decay=0.05))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    expected = {name: 0.05 if p.ndim > 1 else 0.0 for name, p in module.named_parameters()}
    assert {name: decay[id(p)] for name, p in module.named_parameters()} == expected


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("lamb", "Lamb"), ("lars", "Lars")]
)
def test_optimisers_by_name_with_their_settings(name: str, kind: str) -> None:
    config = OptimizerConfig(betas=[0.8, 0.9], name=name)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    group = optimizer.param_groups[0]
    assert type(optimizer).__name__ == kind
    if name in ("sgd", "lars"):
        assert group["momentum"] == 0.8 and not group["nesterov"]
    else:
        assert tuple(group["betas"]) == (0.8, 0.9)


def test_the_schedule_is_that_of_the_settings() -> None:
    config = OptimizerConfig(lr=2.0, warmup=0.1, floor=0.01)
    schedule = schedule_of(config, steps=100, batch_size=8)
    assert (schedule.steps, schedule.warmup, schedule.floor) == (100, 10, 0.01)
    assert schedule(10) == 2.0 and schedule(100) == pytest.approx(0.02)


def test_without_warm_up_the_first_step_is_near_the_peak() -> None:
    config = OptimizerConfig(lr=2.0, warmup=0.0)
    assert 1.99 < schedule_of(config, steps=1000, batch_size=8)(1) < 2.0
    assert schedule_of(config, steps=1, batch_size=8)(1) == pytest.approx(0.02)


def test_the_rate_scales_with_the_batch_where_asked() -> None:
    config = OptimizerConfig(lr=2e-4, lr_batch=256, warmup=0.5)
    assert schedule_of(config, steps=100, batch_size=2048)(50) == pytest.approx(1.6e-3)
    plain = OptimizerConfig(lr=2e-4, warmup=0.5)
    assert schedule_of(plain, steps=100, batch_size=2048)(50) == pytest.approx(2e-4)


def test_layer_decay_slows_the_stem_most_and_spares_the_regressor(configure, dataset) -> None:
    config = configure(
        student=StudentConfig(name="cifar_resnet18", settings={"width": 4}),
        optimizer=OptimizerConfig(layer_decay=0.5, weight_decay=0.1),
    )
    method = build_method(
        method_class(config.method),
        config.dreamteacher,
        student=config.student,
        training_set=open_training_set(config.data),
        seed=config.seed,
    )
    layers = layer_depths(
        method, method.student, layer_decay=0.5, config=config.student, image_size=(16, 16)
    )
    groups = parameter_groups(method, config.optimizer, layers=layers)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in method.named_parameters()}
    # Stem, then two blocks in each of the three stages that strides 2 and 4 need: seven layers.
    # As published (BEiT, MAE, SparK), the backbone's last layer has one factor, what follows none.
    assert scales["student.backbone.layer3.1.conv1.weight"] == 0.5
    assert scales["student.backbone.layer3.0.conv1.weight"] == 0.5**2
    assert scales["student.backbone.conv1.weight"] == 0.5**7
    assert scales["objectives.feature.regressor.heads.0.weight"] == 1.0


def test_a_transformers_rates_are_those_of_mae() -> None:
    """MAE and BEiT: patches and positions 0, block i is i + 1, final norm and head are the top."""
    config = StudentConfig(name="test_vit")
    student = build_student(config, strides=(16,), seed=0, image_size=(32, 32))
    layers = layer_depths(student, student, layer_decay=0.5, config=config, image_size=(32, 32))
    groups = parameter_groups(student, OptimizerConfig(layer_decay=0.5), layers=layers)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name.split("model.")[-1]: scale[id(p)] for name, p in student.named_parameters()}
    blocks = len({name.split(".")[1] for name in scales if name.startswith("blocks.")})
    assert scales["norm.weight"] == 1.0
    assert scales[f"blocks.{blocks - 1}.mlp.fc1.weight"] == 0.5
    assert scales["blocks.0.mlp.fc1.weight"] == 0.5**blocks
    assert scales["pos_embed"] == scales["patch_embed.proj.weight"] == 0.5 ** (blocks + 1)


@pytest.mark.parametrize(
    ("name", "stride", "size", "word"),
    [
        ("swin_tiny_patch4_window7_224", 4, 56, "relative_position_bias_table"),
        ("maxvit_rmlp_pico_rw_256", 4, 64, "rel_pos"),
        ("coatnet_nano_rw_224", 16, 224, "rel_pos"),
        ("tiny_vit_5m_224", 8, 64, "attention_biases"),
    ],
)
def test_what_a_network_taken_apart_exempts_does_not_decay(
    name: str, stride: int, size: int, word: str
) -> None:
    """FeatureListNet of timm has no `no_weight_decay` to ask."""
    whole = timm.create_model(name)
    theirs = [n for n in whole.no_weight_decay() if word in n]
    student = build_student(
        StudentConfig(name=name), strides=(stride,), seed=0, image_size=(size, size)
    )
    groups = parameter_groups(student, OptimizerConfig(weight_decay=0.1))
    decays = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    mine = {n: id(p) in decays for n, p in student.named_parameters() if word in n and p.ndim > 1}
    assert theirs and mine and not any(mine.values())
    assert decays, "kernels and matrices do"


def test_position_embeddings_do_not_decay() -> None:
    student = build_student(
        StudentConfig(name="test_vit"), strides=(16,), seed=0, image_size=(32, 32)
    )
    groups = parameter_groups(student, OptimizerConfig(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(student.named_parameters())
    assert decay[id(parameters["backbone.model.pos_embed"])] == 0.0
    assert decay[id(parameters["backbone.model.blocks.0.mlp.fc1.weight"])] == 0.1
