"""DreamTeacher's wiring: heads per feature map, the loss's switches, resolutions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distill.configs.train import DataConfig, DreamTeacherConfig, StudentConfig
from distill.data.open import open_training_set
from distill.data.sets import NUMBER, TrainingSet
from distill.losses.feature import attention_transfer, feature_loss, whiten
from distill.methods.build import build_method
from distill.methods.dreamteacher import DreamTeacher, resize
from distill.students.student import build_student
from dreamshard.errors import ConfigError
from storage.dataset import Dataset
from storage.rows.pick import read_rows
from storage.schema import Level
from tests.unit.distill.small_data import IMAGE_SIZE, LEVELS, make_batch, make_dataset

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


def test_one_head_serves_all_timesteps_of_a_map() -> None:
    both = (*FINEST_FIRST, *(replace(lv, name=f"{lv.tap}.t50", timestep=50) for lv in LEVELS))
    method = build(both, timestep_heads="shared")
    assert len(method.regressor.heads) == 2
    images, targets = tensors()
    targets |= {f"{lv.tap}.t50": 2 * targets[lv.name] for lv in LEVELS}
    method(images, targets)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters())
    told = {level.name: method.regressor.timesteps[level.name] for level in both}
    assert told["up.0.t50"][0] == told["up.0.t100"][0] and told["up.0.t50"][1] == 50


def test_a_shifted_student_is_compared_where_both_saw_the_image() -> None:
    method = build(shift_cells=1).eval()
    images, targets = tensors()
    targets[NUMBER] = torch.arange(4)
    terms = method(images, targets)
    shift = method.objectives["feature"].shift  # type: ignore[union-attr]
    rows, columns = shift.moved.T.tolist()  # type: ignore[union-attr]
    expected = []
    for row in range(4):
        moved = torch.roll(images[row], (-4 * rows[row], -4 * columns[row]), (1, 2))
        for axis, step in ((1, 4 * rows[row]), (2, 4 * columns[row])):
            if step:  # what was rolled in is the border, repeated
                edge = moved.narrow(axis, 15 - step if step > 0 else -step, 1)
                start, count = (16 - step, step) if step > 0 else (0, -step)
                moved.narrow(axis, start, count).copy_(edge)
        found = method.regressor(method.student(moved[None]))
        for level in LEVELS:
            n, ratio = 4 // level.stride, 4 // level.stride
            top, left = n + rows[row] * ratio, n + columns[row] * ratio
            side = level.shape[1] - 2 * n
            target = whiten(targets[level.name][row : row + 1])
            target = target[..., top : top + side, left : left + side]
            mine = found[level.name][..., n : n + side, n : n + side]
            expected.append((mine - target).square().mean())
    torch.testing.assert_close(terms["mse"], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def two_teachers(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """Return the method and the training set of two joined teachers' maps."""
    urls = [make_dataset(folder / kind, teacher=kind).url for kind in ("one", "two")]
    data = DataConfig(dataset=urls[0], join=urls[1:])
    settings = DreamTeacherConfig(width=8, **changes)
    training_set = open_training_set(data, needs=DreamTeacher.needs(settings))
    student = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
    )
    return build_method(
        DreamTeacher, settings, student=student, training_set=training_set, seed=0
    ), training_set


def test_joined_teachers_are_weighed_and_left_out(tmp_path: Path) -> None:
    """The terms are those of each teacher, by what it counts for each image."""
    changes: dict[str, Any] = {"balance": "teachers", "teacher_dropping": 0.5}
    method, training_set = two_teachers(tmp_path, **changes)
    method.eval()
    assert sorted(set(training_set.source.teachers.values())) == [0, 1]
    images, targets = tensors()
    names = list(training_set.recorded)
    targets = {name: targets[name.removeprefix("boxes.")] for name in names}
    for name in names:
        if name.startswith("boxes."):
            targets[name] = targets[name].flip(0)
    targets[NUMBER] = torch.arange(4) * 5
    terms = method(images, targets)
    feature = method.objectives["feature"]
    feature.teachers.draws.count.zero_()
    predicted = method.regressor(method.student(images))
    each = []
    for teacher in (0, 1):
        of = [n for n in names if training_set.source.teachers[n] == teacher]
        mse = [(predicted[n] - whiten(targets[n])).square().flatten(1).mean(1) for n in of]
        at = [attention_transfer(predicted[n], targets[n], each=True) for n in of]
        each.append((sum(mse) / len(mse), sum(at) / len(at)))
    mse, at = (torch.stack(pair, dim=1) for pair in zip(*each, strict=True))
    weights = feature.teachers.weigh((mse + 10 * at).detach(), targets[NUMBER])
    assert {len(set(row)) for row in weights.tolist()} <= {1, 2}
    torch.testing.assert_close(terms["mse"], (weights * mse).sum(1).mean())
    torch.testing.assert_close(terms["loss"], (weights * (mse + 10 * at)).sum(1).mean())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balance": "losses"}, r"dreamteacher\.balance: got losses with one teacher's maps"),
        ({"teacher_dropping": 0.5}, r"teacher_dropping: got 0\.5 with one.*data\.join"),
        ({"timestep_heads": "shared"}, r"timestep_heads: got shared .*timesteps"),
        ({"shift_cells": 2}, r"shift_cells: got 2, allowed at most 1, .*stride 4. has 4 cells"),
    ],
)
def test_settings_that_the_levels_do_not_allow_are_refused(
    dataset: Dataset, changes: dict[str, Any], message: str
) -> None:
    settings = DreamTeacherConfig(**changes)
    data = DataConfig(dataset=dataset.url)
    training_set = open_training_set(data, needs=DreamTeacher.needs(settings))
    with pytest.raises(ConfigError, match=message):
        DreamTeacher.settled(settings, training_set)
