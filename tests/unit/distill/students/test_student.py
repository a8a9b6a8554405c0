"""Choosing and building students: errors that list both sides, our own small network."""

from __future__ import annotations

import pytest
import torch

from distill.configs.train import StudentConfig
from distill.students.backbones import MapInfo, available_maps
from distill.students.student import build_student, nearest_strides, output_shapes, pick_maps
from distill.training.batch_norm import share_batch_norm
from dreamshard.errors import ConfigError
from pipeline.teachers.timm.small_resnet import CifarResNet
from pipeline.teachers.timm.vit_pyramid import pyramid_strides


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


@pytest.mark.parametrize("name", ["cifar_resnet", f"{CifarResNet.__module__}:CifarResNet"])
def test_published_weights_of_a_network_that_has_none_are_refused(name: str) -> None:
    """They were left out without a word, and the warning of untrained layers with them."""
    with pytest.raises(ConfigError, match=r"student.pretrained: got true, allowed false with"):
        build_student(StudentConfig(name=name, pretrained=True), strides=[1], seed=0)


def test_a_users_own_class_by_import_path() -> None:
    config = StudentConfig(
        name="pipeline.teachers.timm.small_resnet:CifarResNet",
        settings={"depths": [1], "widths": [4]},
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


def test_cifar_resnet18_takes_its_width() -> None:
    config = StudentConfig(name="cifar_resnet18", settings={"width": 32})
    assert available_maps(config) == [MapInfo(i, 2**i, 32 * 2**i) for i in range(4)]
    blocks = build_student(config, strides=(1, 2, 4, 8), seed=0).backbone
    last = [value for name, value in blocks.named_parameters() if name.endswith("bn2.weight")]
    assert len(last) == 8 and all((scale == 0).all() for scale in last)


def test_a_plain_transformer_gets_a_pyramid_beside_it() -> None:
    config = StudentConfig(name="test_vit")  # patches of 16 pixels, 64 channels
    student = build_student(config, strides=(4, 8, 16, 32), seed=0, image_size=(32, 64))
    assert student.channels == (16, 32, 64, 64)
    shapes = output_shapes(student, image_size=(32, 64))
    assert shapes == [(16, 8, 16), (32, 4, 8), (64, 2, 4), (64, 1, 2)]
    assert not any("branches" in name for name in student.backbone.state_dict())
    assert student.neck is not None and "backbone" not in dict(student.neck.named_modules())


def test_a_pyramids_strides_follow_from_the_patch() -> None:
    assert pyramid_strides(16) == (4, 8, 16, 32)
    assert pyramid_strides(14) == (7, 14, 28), "3.5 pixels are no stride"
    with pytest.raises(ConfigError, match=r"the student's strides: 4 .*, 8 .*, 16 .*, 32 "):
        build_student(StudentConfig(name="test_vit"), strides=(2,), seed=0, image_size=(32, 32))


def test_a_transformer_is_built_for_the_images_to_come() -> None:
    student = build_student(
        StudentConfig(name="test_vit"), strides=(16,), seed=0, image_size=(48, 48)
    )
    assert student.backbone.state_dict()["model.pos_embed"].shape[1] == 9 + 1  # and a class token
    with pytest.raises(ConfigError, match=r"student\.settings.*img_size.*test_vit"):
        settings = {"img_size": 40, "strict_img_size": True, "patch_size": 0}
        available_maps(StudentConfig(name="test_vit", settings=settings))


def test_channels_last_networks_are_turned_around() -> None:
    config = StudentConfig(name="swin_tiny_patch4_window7_224", settings={"depths": [1, 1, 1, 1]})
    student = build_student(config, strides=(4, 32), seed=0, image_size=(64, 64))
    assert output_shapes(student, image_size=(64, 64)) == [(96, 16, 16), (768, 2, 2)]


def test_torchvisions_names_are_timms() -> None:
    from torchvision.models import resnet18

    student = build_student(StudentConfig(name="torchvision/resnet18"), strides=(4, 32), seed=0)
    published = resnet18(weights=None).state_dict()
    ours = student.backbone.state_dict()
    assert {name for name in published if not name.startswith("fc.")} == set(ours)
    assert all(ours[name].shape == published[name].shape for name in ours)


def test_frozen_stages_do_not_learn_and_keep_their_statistics() -> None:
    config = StudentConfig(name="cifar_resnet18", settings={"width": 4}, frozen_stages=2)
    student = build_student(config, strides=(1, 8), seed=0).train()
    frozen = {name for name, p in student.backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"conv1", "bn1", "layer1"}
    before = {k: v.clone() for k, v in student.backbone.state_dict().items()}
    sum(m.sum() for m in student(torch.randn(2, 3, 8, 8))).backward()
    after = student.backbone.state_dict()
    same = {k for k in after if torch.equal(before[k], after[k]) and "running_mean" in k}
    assert same == {
        k for k in after if "running_mean" in k and k.split(".")[0] in ("bn1", "layer1")
    }


def test_freezing_everything_is_refused_with_the_number_of_stages() -> None:
    config = StudentConfig(name="cifar_resnet18", settings={"width": 4}, frozen_stages=5)
    with pytest.raises(ConfigError, match=r"frozen_stages: got 5, allowed 0\.\.4.*has 5"):
        build_student(config, strides=(1, 8), seed=0)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_checkpointed_gradients_are_the_gradients(name: str) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointed in (False, True):
        config = StudentConfig(name=name, grad_checkpointing=checkpointed)
        student = build_student(config, strides=(16,), seed=0, image_size=(32, 32)).train()
        student(images)[0].square().mean().backward()
        gradients.append([p.grad for p in student.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-6)


def test_checkpointing_where_there_is_none_is_refused() -> None:
    config = StudentConfig(name="cifar_resnet18", settings={"width": 4}, grad_checkpointing=True)
    with pytest.raises(ConfigError, match=r"student\.grad_checkpointing: got true, allowed false"):
        build_student(config, strides=(1,), seed=0)


def test_drop_path_reaches_the_network_or_is_refused() -> None:
    config = StudentConfig(name="test_convnext", drop_path=0.3)
    student = build_student(config, strides=(4, 32), seed=0)
    rates = [m.drop_prob for m in student.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match=r"student\.settings.*drop_path_rate"):
        build_student(StudentConfig(name="cifar_resnet", drop_path=0.1), strides=(1,), seed=0)


def test_the_nearest_stride_is_by_ratio_and_of_equals_the_finer() -> None:
    assert nearest_strides((1, 3, 8, 64), offered=(2, 4, 8, 32)) == (2, 4, 8, 32)
    assert nearest_strides((4,), offered=(2, 8)) == (2,)


def test_frozen_parts_stay_frozen_when_their_batch_norm_is_synchronised() -> None:
    config = StudentConfig(name="cifar_resnet18", settings={"width": 4}, frozen_stages=2)
    student = build_student(config, strides=(1, 8), seed=0)
    share_batch_norm(student)  # as on several GPUs
    student.train()
    layers = {
        name: layer.training
        for name, layer in student.backbone.named_modules()
        if isinstance(layer, torch.nn.SyncBatchNorm)
    }
    assert {name.split(".")[0] for name, training in layers.items() if not training} == {
        "bn1",
        "layer1",
    }
    assert any(layers.values())
