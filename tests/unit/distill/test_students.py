"""Choosing and building students: errors that list both sides, our own small network."""

from __future__ import annotations

import pytest
import torch

from distill.config import StudentConfig
from distill.small_resnet import CifarResNet
from distill.students import MapInfo, available_maps, build_student, output_shapes, pick_maps
from dreamshard.errors import ConfigError


def test_cifar_resnet_keeps_the_images_resolution_first() -> None:
    config = StudentConfig(
        name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 12, 16]}
    )
    assert available_maps(config) == [MapInfo(0, 1, 8), MapInfo(1, 2, 12), MapInfo(2, 4, 16)]


def test_cifar_resnet18_has_the_published_parameter_count() -> None:
    # ResNet-18 of 11,689,512 parameters, its 7x7 stem (9,408) against 3x3 (1,728), no classifier.
    network = CifarResNet()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 11_689_512 - 9_408 + 1_728 - (512 + 1) * 1000


def test_stages_past_the_last_map_are_not_built() -> None:
    network = CifarResNet(depths=(1, 1, 1), widths=(8, 16, 32), out_indices=(0, 1))
    assert not any(name.startswith("layer3") for name in network.state_dict())


def test_zero_init_makes_every_block_its_shortcut() -> None:
    network = CifarResNet(depths=(1, 1), widths=(8, 8), zero_init_last=True)
    scales = [value for name, value in network.named_parameters() if name.endswith("bn2.weight")]
    assert len(scales) == 2 and all((scale == 0).all() for scale in scales)


def test_the_deepest_map_of_a_stride_is_taken() -> None:
    maps = [MapInfo(0, 16, 8), MapInfo(1, 16, 9), MapInfo(2, 32, 10)]
    assert pick_maps(maps, strides=[16, 32], name="vit")[0].index == 1


def test_a_missing_stride_lists_both_sides() -> None:
    with pytest.raises(ConfigError) as caught:
        build_student(StudentConfig(name="resnet18"), strides=(1, 8), seed=0)
    text = str(caught.value)
    assert "stride 1, 8" in text and "'resnet18'" in text
    assert "4 (64 channels), 8 (128 channels)" in text


def test_an_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"student\.name: got 'resnet5o'.*resnet50"):
        available_maps(StudentConfig(name="resnet5o"))


def test_settings_the_network_does_not_take_are_named() -> None:
    with pytest.raises(ConfigError, match=r"student\.settings.*depht.*cifar_resnet"):
        available_maps(StudentConfig(name="cifar_resnet", settings={"depht": 3}))
    with pytest.raises(ConfigError, match=r"student\.settings.*2 depths but 1 widths"):
        settings = {"depths": [1, 1], "widths": [8]}
        available_maps(StudentConfig(name="cifar_resnet", settings=settings))


def test_a_weight_tag_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"student\.name: got 'resnet18\.nope' \(Invalid"):
        available_maps(StudentConfig(name="resnet18.nope"))


@pytest.mark.parametrize("key", ["features_only", "out_indices", "pretrained"])
def test_settings_that_we_decide_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"student\.settings\.{key}"):
        available_maps(StudentConfig(name="resnet18", settings={key: 1}))


def test_weights_that_cannot_be_had_are_an_error_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import timm

    create = timm.create_model

    def offline(name: str, *, pretrained: bool, **settings: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no connection")
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match=r"student\.pretrained: .*no connection"):
        build_student(StudentConfig(name="resnet18", pretrained=True), strides=(4,), seed=0)


def test_a_users_own_class_by_import_path() -> None:
    config = StudentConfig(
        name="distill.small_resnet:CifarResNet", settings={"depths": [1], "widths": [4]}
    )
    student = build_student(config, strides=(1,), seed=0)
    assert output_shapes(student, image_size=(8, 8)) == [(4, 8, 8)]
    with pytest.raises(ConfigError, match="no_such_module"):
        available_maps(StudentConfig(name="no_such_module:Thing"))


def test_normalisation_is_the_configs_or_a_half() -> None:
    settings = {"depths": [1], "widths": [4]}
    plain = build_student(
        StudentConfig(name="cifar_resnet", settings=settings), strides=(1,), seed=0
    )
    assert plain.mean == plain.std == (0.5, 0.5, 0.5)
    own = StudentConfig(name="cifar_resnet", settings=settings, mean=[0.1, 0.2, 0.3])
    assert build_student(own, strides=(1,), seed=0).mean == (0.1, 0.2, 0.3)


def test_shapes_are_measured_without_touching_the_student() -> None:
    settings = {"depths": [1], "widths": [4]}
    config = StudentConfig(name="cifar_resnet", settings=settings)
    student = build_student(config, strides=(1,), seed=0)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    output_shapes(student, image_size=(8, 8))
    assert student.training
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
