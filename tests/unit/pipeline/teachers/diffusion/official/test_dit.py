"""Official DiT and SiT files: every block equals an independent forward pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamshard.errors import ConfigError, TeacherError
from tests.unit.pipeline.teachers.conftest import make_images, open_teacher
from tests.unit.pipeline.teachers.diffusion.networks.test_latent_families import save_vae
from tests.unit.pipeline.teachers.diffusion.official import dit_reference as reference

SIDE, STRIDE = 8, 4
EXACT = 5e-5
NULL = torch.full((2,), reference.CLASSES)
BLOCKS = [f"block.{k}" for k in range(reference.DEPTH)]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    save_vae(tmp_path, 4)
    return {"vae": str(tmp_path / "vae"), "num_heads": reference.HEADS}


def save(folder: Path, state: dict[str, Any]) -> Path:
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


def as_map(tokens: torch.Tensor) -> torch.Tensor:
    side = SIDE // reference.PATCH
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


@pytest.mark.parametrize("timestep", [0, 37, 999])
def test_dit(tmp_path: Path, settings: dict[str, Any], timestep: int) -> None:
    state = reference.random_state(SIDE)
    # A training file: the averaged weights are the ones that count.
    whole = {"model": {}, "ema": state, "opt": {}, "args": argparse.Namespace(model="DiT-S/2")}
    teacher = open_teacher(
        save(tmp_path, whole), levels=BLOCKS, timesteps=[timestep], network="dit", **settings
    )
    x = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, reference.CLASSES])
    expected, blocks = reference.forward(state, x, torch.full((2,), timestep), labels)
    with torch.inference_mode():
        found = teacher.activations(x, timestep, labels)
        output = teacher.denoise(x, timestep, labels)
    for name, tokens in blocks.items():
        torch.testing.assert_close(found[name], as_map(tokens), atol=EXACT, rtol=0)
    torch.testing.assert_close(output, expected, atol=EXACT, rtol=0)
    assert teacher.image_size == (SIDE * STRIDE,) * 2 and teacher.levels[0].stride == 8


def test_sit_counts_its_time_the_other_way(tmp_path: Path, settings: dict[str, Any]) -> None:
    state = reference.random_state(SIDE)
    teacher = open_teacher(
        save(tmp_path, state), levels=BLOCKS, timesteps=[250], network="sit", **settings
    )
    x0 = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    eps = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    x_t = teacher.schedule.add_noise(x0, eps, 250)
    torch.testing.assert_close(x_t, 0.75 * x0 + 0.25 * eps)
    output, blocks = reference.forward(state, x_t, torch.full((2,), 0.75), NULL)
    velocity = output[:, :4]  # data - noise
    with torch.inference_mode():
        found = teacher.activations(x_t, 250, NULL)
        mine = teacher.denoise(x_t, 250, NULL)
    for name, tokens in blocks.items():
        torch.testing.assert_close(found[name], as_map(tokens), atol=EXACT, rtol=0)
    clean, noise = teacher.schedule.predict(x_t, mine, teacher.schedule.level(250))
    # x_s = s data + (1 - s) noise: data = x_s + (1 - s) velocity, noise = x_s - s velocity.
    torch.testing.assert_close(clean, x_t + 0.25 * velocity, atol=EXACT, rtol=0)
    torch.testing.assert_close(noise, x_t - 0.75 * velocity, atol=EXACT, rtol=0)


@pytest.mark.parametrize("network", ["dit", "sit"])
def test_they_encode_and_synthesize(tmp_path: Path, settings: dict[str, Any], network: str) -> None:
    path = save(tmp_path, reference.random_state(SIDE))
    teacher = open_teacher(path, network=network, timesteps=[100], **settings)
    images = make_images(2, SIDE * STRIDE)
    found = teacher.encode(images, np.arange(2)).levels
    assert {name: value.shape for name, value in found.items()} == {
        "block.1.norm.t100": (2, reference.WIDTH, 4, 4)
    }
    drawn = open_teacher(
        path, network=network, timesteps=[100], mode="synthesize", steps=2, **settings
    )
    batch = drawn.synthesize(np.arange(2))
    assert batch.image is not None and batch.image.shape == (2, 32, 32, 3)
    assert batch.label is not None and batch.label.max() < reference.CLASSES


def test_what_the_file_does_not_tell_is_asked_for(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = save(tmp_path, reference.random_state(SIDE))
    with pytest.raises(ConfigError, match=r"settings\.network: got None, allowed dit \| sit"):
        open_teacher(path, timesteps=[1], **settings)
    with pytest.raises(ConfigError, match=r"settings\.vae: got nothing"):
        open_teacher(path, timesteps=[1], network="dit", num_heads=4)
    with pytest.raises(ConfigError, match=r"settings\.num_heads: got None, allowed a divisor"):
        open_teacher(path, timesteps=[1], network="dit", vae=settings["vae"])
    with pytest.raises(ConfigError, match="made for one size"):
        open_teacher(path, timesteps=[1], network="dit", image_size=64, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alien.weight": torch.zeros(1)}, "1 keys surplus: alien.weight"),
        ({"blocks.1.attn.proj.bias": None}, "1 keys missing: transformer_blocks.1.attn1.to_out"),
        ({"final_layer.linear.weight": None}, "not a DiT or SiT network"),
        ({"pos_embed": torch.full((1, 16, 32), float("nan"))}, "pos_embed has values"),
    ],
)
def test_bad_files_are_one_line(
    tmp_path: Path, settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    state = {**reference.random_state(SIDE), **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(TeacherError, match=message) as caught:
        open_teacher(save(tmp_path, state), timesteps=[1], network="dit", **settings)
    assert "\n" not in str(caught.value)
