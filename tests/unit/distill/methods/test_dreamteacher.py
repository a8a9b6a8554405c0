"""DreamTeacher's wiring: heads per feature map, the loss's switches, resolutions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig
from distill.data.open import open_training_set
from distill.data.sets import TrainingSet
from distill.losses.feature import feature_loss
from distill.methods.build import build_method
from distill.methods.dreamteacher import DreamTeacher, resize
from distill.students.student import build_student
from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.schema import Level
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS, make_batch

FINEST_FIRST = tuple(sorted(LEVELS, key=lambda level: level.stride))


def build(
    levels: tuple[Level, ...] = FINEST_FIRST, *, image_size: tuple[int, int] = IMAGE_SIZE, **changes
) -> DreamTeacher:
    student = build_student(
        StudentConfig(name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}),
        strides=tuple(sorted({level.stride for level in levels})),
        seed=0,
    )
    config = DreamTeacherConfig(width=8, **changes)
    return DreamTeacher(config, student=student, levels=levels, image_size=image_size, seed=1)


def tensors() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    batch = make_batch(np.arange(4))
    assert batch.image is not None
    images = torch.from_numpy(batch.image).permute(0, 3, 1, 2) / 127.5 - 1
    return images, {name: torch.from_numpy(v).float() for name, v in batch.levels.items()}


def test_the_loss_is_that_of_the_regressors_outputs() -> None:
    method = build(mse_weight=2.0, attention_weight=3.0, whiten_axes="chw").eval()
    images, targets = tensors()
    expected = feature_loss(
        method.regressor(method.student(images)),
        targets,
        mse_weight=2.0,
        attention_weight=3.0,
        whiten_axes="chw",
    )
    terms = method(images, targets)
    assert terms.keys() == expected.keys()
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name])


def test_noise_draws_of_one_map_share_a_head() -> None:
    draws = tuple(
        replace(level, name=f"{level.name}.d{draw}", draw=draw) if draw else level
        for level in FINEST_FIRST
        for draw in range(3)
    )
    method = build(draws)
    assert len(method.regressor.heads) == 2
    images, targets = tensors()
    repeated = {level.name: targets[f"{level.tap}.t100"] for level in draws}
    torch.testing.assert_close(method(images, repeated)["loss"], build()(images, targets)["loss"])


def test_timesteps_have_heads_of_their_own() -> None:
    both = (*FINEST_FIRST, *(replace(lv, name=f"{lv.tap}.t50", timestep=50) for lv in LEVELS))
    assert len(build(both).regressor.heads) == 4


def test_maps_of_another_resolution_are_refused_with_both_sides() -> None:
    with pytest.raises(ConfigError) as caught:
        build(image_size=(20, 16))
    text = str(caught.value)
    assert "data.levels: got maps up.1.t100 8x8, up.0.t100 4x4" in text
    assert "stride 2 10x8, stride 4 5x4" in text


def test_weights_follow_from_the_seeds() -> None:
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bridging_predicts_levels_of_other_strides_from_the_nearest() -> None:
    coarse = replace(LEVELS[0], name="deep", tap="deep", stride=8, shape=(10, 2, 2))
    levels = (*FINEST_FIRST, coarse)
    student = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1], "widths": [8, 8]})
    source: Any = SimpleNamespace(image_size=IMAGE_SIZE)
    training_set = TrainingSet(source, levels=levels)
    settings = DreamTeacherConfig(width=8, bridge="interpolate")
    method = build_method(
        DreamTeacher, settings, student=student, training_set=training_set, seed=0
    )
    assert method.student.strides == (2,), "the student has 1 and 2; 2 is nearest to all"
    images, targets = tensors()
    targets["deep"] = torch.randn(4, 10, 2, 2)
    method(images, targets)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    with pytest.raises(ConfigError, match=r"stride 2, 4, 8 for student 'cifar_resnet'.*bridge"):
        build_method(
            DreamTeacher,
            DreamTeacherConfig(),
            student=student,
            training_set=training_set,
            seed=0,
        )


def test_resizing_keeps_what_fits_and_averages_what_shrinks() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize(features, size=(4, 4)) is features
    assert resize(features, size=(1, 1)).item() == pytest.approx(7.5)
    assert resize(torch.ones(1, 2, 3, 3), size=(7, 5)).eq(1).all()


@pytest.mark.parametrize("whiten", ["channel", "phi_s"])
def test_statistics_of_the_dataset_standardise_the_teacher(whiten, dataset: Dataset) -> None:
    config = DreamTeacherConfig(width=8, whiten=whiten, regression="cos_smooth_l1")
    training_set = open_training_set(DataConfig(dataset=dataset.url))
    student = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
    )
    method = build_method(DreamTeacher, config, student=student, training_set=training_set, seed=0)
    feature = method.objectives["feature"]
    stored = dataset.snapshot()
    for name, standard in zip(feature.sizes, feature.standards, strict=True):
        values = torch.from_numpy(read_rows(stored, name, np.arange(64))).float()
        after = standard(values).transpose(0, 1).flatten(1)
        torch.testing.assert_close(after.mean(dim=1), torch.zeros(len(after)), atol=1e-3, rtol=0)
        spread = after.var(dim=1, correction=0)
        torch.testing.assert_close(spread, torch.ones(len(after)), atol=0.02, rtol=0)
    assert any(name.startswith("standards.0.") for name in method.state_dict())
    images, targets = tensors()
    method(images, targets)["loss"].backward()
