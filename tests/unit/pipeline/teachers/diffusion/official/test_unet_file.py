"""UNets in one file: without a config, with old names, in DDPM's original layout."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamshard.errors import ConfigError, TeacherError
from tests.unit.pipeline.teachers.conftest import (
    UNET,
    make_images,
    make_teacher,
    open_teacher,
    randomize,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
ROWS = np.arange(4)
TOLD: dict[str, Any] = {"image_size": 16, "head_dim": 8, "norm_num_groups": 4, "act_fn": "silu"}


def features(path: Path, **settings: Any) -> dict[str, np.ndarray]:
    teacher = open_teacher(path, levels=["up.2", "up.1", "mid"], timesteps=[30], **settings)
    return teacher.encode(make_images(), ROWS).levels


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def save_unet(folder: Path, **changes: Any) -> Path:
    from diffusers import DDPMScheduler, UNet2DModel

    module = UNet2DModel(**{**UNET, **changes})
    randomize(module)
    module.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def test_a_file_beside_its_config_is_its_folder(unet_folder: Path) -> None:
    assert same(features(unet_folder / WEIGHTS), features(unet_folder))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_class_embeds": 7, "layers_per_block": 2},
        {
            "downsample_type": "resnet", "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4, "out_channels": 6,
            "down_block_types": (
                "ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"
            ),
            "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        },
        {
            "down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3,
            "add_attention": False,
        },
    ],
    ids=["plain", "classes, two layers", "as ADM", "no attention"],
)  # fmt: skip
def test_the_architecture_is_read_from_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save_unet(tmp_path / "unet", **changes)
    shutil.copy(folder / WEIGHTS, tmp_path / "alone.safetensors")
    assert same(features(tmp_path / "alone.safetensors", **TOLD), features(folder))


def test_what_it_does_not_tell_is_asked_for(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet")
    path = shutil.copy(folder / WEIGHTS, tmp_path / "alone.safetensors")
    with pytest.raises(ConfigError, match="image_size: got nothing"):
        features(path, head_dim=8, norm_num_groups=4, act_fn="silu")
    with pytest.raises(ConfigError, match=r"settings\.head_dim: got nothing"):
        features(path, image_size=16, norm_num_groups=4, act_fn="silu")
    with pytest.raises(ConfigError, match=r"settings\.norm_num_groups: got 32"):
        features(path, image_size=16, head_dim=8, act_fn="silu")
    with pytest.raises(ConfigError, match=r"settings\.head_dim: got 7, allowed a divisor"):
        features(path, **{**TOLD, "head_dim": 7})
    with pytest.raises(ConfigError, match="prediction_type"):
        features(path, **TOLD, prediction_type="noise")


CIFAR10 = {
    "sample_size": 16, "block_out_channels": (8, 16, 16), "layers_per_block": 2,
    "norm_num_groups": 4, "norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False,
    "freq_shift": 1, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
"""The published ddpm-cifar10-32, narrowed."""
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_published_ddpm_folders_with_their_old_names(tmp_path: Path, suffix: str) -> None:
    folder = save_unet(tmp_path / "unet", **CIFAR10)
    expected = features(folder)
    state = load_file(folder / WEIGHTS)
    for new, old in OLD.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any(".query." in name for name in state) and not any(".to_q." in name for name in state)
    (folder / WEIGHTS).unlink()
    if suffix == ".bin":
        torch.save(state, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(state, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config["_diffusers_version"] = "0.0.4"
    (folder / "config.json").write_text(json.dumps(config))
    assert same(features(folder), expected)


def original_name(name: str) -> str:
    """Spell a UNet2DModel tensor as DDPM's original code does (three levels)."""
    for new, old in (
        ("time_embedding.linear_1", "temb.dense.0"), ("time_embedding.linear_2", "temb.dense.1"),
        ("conv_norm_out", "norm_out"), ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"), ("mid_block.attentions.0", "mid.attn_1"),
        ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"),
        ("time_emb_proj", "temb_proj"), ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"),
        ("to_v", "v"), ("resnets", "block"), ("attentions", "attn"), ("down_blocks", "down"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return re.sub(r"^up_blocks\.(\d)", lambda match: f"up.{2 - int(match[1])}", name)


def test_original_ddpm_checkpoints(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet", **CIFAR10)
    state = {original_name(name): value for name, value in load_file(folder / WEIGHTS).items()}
    assert "up.0.block.2.nin_shortcut.weight" in state and "down.1.attn.1.q.weight" in state
    for name, value in state.items():
        if re.search(r"attn.*\.(q|k|v|proj_out)\.weight", name):
            state[name] = value[:, :, None, None]  # 1x1 convolutions there
    torch.save(state, tmp_path / "model.ckpt")
    told = {"image_size": 16, "norm_num_groups": 4}
    assert same(features(tmp_path / "model.ckpt", **told), features(folder))
    teacher = open_teacher(tmp_path / "model.ckpt", timesteps=[1], **told)
    assert teacher.schedule.signal[-1] ** 2 == pytest.approx(4.04e-5, rel=1e-2)


def test_files_of_other_networks_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for name, what in (
        ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
        ("double_blocks.0.x", "a Flux transformer"),
        ("encoder.conv_in.weight", "an autoencoder"),
        ("layer1.0.weight", "holds no known network; its keys begin layer1.0.weight"),
    ):
        save_file({name: torch.zeros(1)}, path)
        with pytest.raises(TeacherError, match=what):
            open_teacher(path, timesteps=[1])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"a folder, or a file of \.safetensors"):
        make_teacher(tmp_path / "notes.txt", levels=["mid"], timesteps=[1])


def test_four_channels_are_refused(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet", in_channels=4)
    path = shutil.copy(folder / WEIGHTS, tmp_path / "alone.safetensors")
    with pytest.raises(TeacherError, match="4 input channels, not RGB"):
        features(path, **TOLD)
    with pytest.raises(TeacherError, match="in_channels: got 4, allowed 3"):
        features(folder)


def test_networks_that_resample_without_convolutions_are_read(tmp_path: Path) -> None:
    from diffusers import UNet2DModel
    from torch import nn
    from torch.nn import functional as F

    class Plain(nn.Module):
        def __init__(self, up: bool) -> None:
            super().__init__()
            self.up = up

        def forward(self, x: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return F.interpolate(x, scale_factor=2) if self.up else F.avg_pool2d(x, 2)

    folder = save_unet(tmp_path / "unet", **CIFAR10)
    state = {original_name(name): value for name, value in load_file(folder / WEIGHTS).items()}
    state = {name: value for name, value in state.items() if "sample.conv" not in name}
    for name, value in state.items():
        if re.search(r"attn.*\.(q|k|v|proj_out)\.weight", name):
            state[name] = value[:, :, None, None]
    # as DDIM's trainer writes: weights, optimizer, epoch, step, averages
    torch.save([{}, {"state": {}}, 1, 2, state], tmp_path / "ckpt.pth")
    module: Any = UNet2DModel.from_pretrained(folder, use_safetensors=True).eval()
    for level in range(2):
        module.down_blocks[level].downsamplers[0] = Plain(up=False)
        module.up_blocks[level].upsamplers[0] = Plain(up=True)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(x, 30).sample
        teacher = open_teacher(tmp_path / "ckpt.pth", image_size=16, norm_num_groups=4)
        torch.testing.assert_close(teacher.denoise(x, 30), expected, atol=2e-5, rtol=1e-4)
    state["down.0.downsample.conv.weight"] = torch.zeros(8, 8, 3, 3)
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(TeacherError, match="keys missing"):
        open_teacher(tmp_path / "damaged.pth", image_size=16, norm_num_groups=4)


def test_the_activation_of_a_lone_file_is_asked_for(tmp_path: Path) -> None:
    folder = save_unet(tmp_path / "unet", act_fn="gelu")
    path = shutil.copy(folder / WEIGHTS, tmp_path / "alone.safetensors")
    told = {name: value for name, value in TOLD.items() if name != "act_fn"}
    with pytest.raises(ConfigError, match=r"settings\.act_fn: got nothing, allowed silu \| swish"):
        features(path, **told)
    assert same(features(path, **told, act_fn="gelu"), features(folder))


def test_classifiers_and_upsamplers_say_what_they_are(tmp_path: Path) -> None:
    state = {
        "input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3),
        "time_embed.0.weight": torch.ones(1),
    }
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(TeacherError, match="a guided-diffusion classifier, which has no decoder"):
        open_teacher(tmp_path / "x.pt")
    state |= {"output_blocks.0.0.x": torch.ones(1)}
    state["input_blocks.0.0.weight"] = torch.zeros(8, 6, 3, 3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(TeacherError, match="an upsampler|a guided-diffusion upsampler"):
        open_teacher(tmp_path / "x.pt")
