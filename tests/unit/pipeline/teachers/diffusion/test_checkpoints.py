"""Which family a path is of, told from names alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.teachers.diffusion.checkpoints import kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("G_ema.pth", "biggan"),
        ("pytorch_model.bin", "biggan"),
        ("biggan-deep-128-pytorch_model.bin", "biggan"),
        ("diffusion_pytorch_model.bin", "diffusers"),
        ("netG_100_steps.pth", "ssgan"),
        ("BigBiGAN_x1.pth", "bigbigan"),
        ("encoder.safetensors", "bigbigan"),
        ("model_index.json", "diffusers"),
    ],
)
def test_a_folder_is_told_by_its_files(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("output_layer.2.weight", "biggan"),
        ("generator.gen_z.weight_orig", "biggan"),
        ("block2.c1.weight_orig", "ssgan"),
        ("conv_in.weight", "diffusers"),
    ],
)
def test_a_file_is_told_by_its_tensors(tmp_path: Path, tensor: str, kind: str) -> None:
    torch.save({tensor: torch.ones(1)}, tmp_path / "x.pth")
    assert kind_of(tmp_path / "x.pth") == kind
