"""SS-GAN and BigBiGAN through the command: stopped, gone on with, and read as teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreamshard.console.cli import main
from pipeline import pretrain
from pipeline.teachers.gan.bigbigan import encoder
from pipeline.teachers.gan.ssgan import family
from pipeline.teachers.weights import read

SMALL = {
    "ssgan": ["--ssgan.channels", "2", "--ssgan.discriminator_channels", "2"],
    "bigbigan": [
        "--bigbigan.channels", "2", "--bigbigan.discriminator_channels", "2",
        "--bigbigan.latent", "8", "--bigbigan.shared", "4", "--bigbigan.width", "8",
        "--bigbigan.encoder.filters", "4", "--bigbigan.encoder.units", "[1,1]",
        "--bigbigan.encoder.stem", "3", "--bigbigan.encoder.perceptron", "[8]",
    ],
}  # fmt: skip
GENERATOR = {"ssgan": "netG.pth", "bigbigan": "BigBiGAN.pth"}


def train(kind: str, folder: Path, steps: int) -> None:
    told = [
        "--kind", kind, "--out", str(folder), "--source.kind", "digits", "--image.size", "32",
        "--batch_size", "8", "--steps", str(steps), "--checkpoint_every", "1",
        "--num_samples", "2", "--device", "cpu", "--precision", "float32", *SMALL[kind],
    ]  # fmt: skip
    assert pretrain.main(told) is None


def measured(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    told = ["inspect", "teacher", *words, "--measure", "--images", "digits", "--samples", "40"]
    assert main(told) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", SMALL)
def test_a_run_that_goes_on_is_the_undisturbed_one(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    train(kind, whole, 3)
    train(kind, parted, 2)
    train(kind, parted, 3)
    first, second = (read((folder / GENERATOR[kind],)) for folder in (whole, parted))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, msg=name)
    if kind == "ssgan":
        assert family.describe(parted, family.SETTINGS).image_size == (32, 32)
        words = [str(parted), "--kind", kind]
        assert "Fréchet distance of as many samples (pixels)" in measured(words, capsys)
        text = measured([*words, "--part", "discriminator"], capsys)
        assert "means of 4x4 cells" in text and "relative L1" not in text
    else:
        known = encoder.describe(parted, {"generator": "", "z": "mean"})
        assert known.load(torch.float32).module(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
        sheet = tmp_path / "sheet.png"
        words = [str(parted), "--kind", kind, "--part", "encoder", "--sheet", str(sheet)]
        text = measured(words, capsys)
        assert "relative L1 error of reconstructions: 0.9" in text or ": 1." in text
        assert sheet.read_bytes().startswith(b"\x89PNG")
