from __future__ import annotations

from pathlib import Path

import pytest

from dreamshard.console.cli import main
from dreamshard.errors import ConfigError
from tests.unit.pipeline.teachers.diffusion.networks.test_latent_families import save_prompt, sd


def test_the_table_of_a_unet(unet_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "teacher", str(unet_folder)]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "16x16 pixels, epsilon, timesteps 0..999" in text and "GFLOP per image" in text
    assert lines["up.1"].split()[1:5] == ["s2", "16", "8x8", "2"]
    assert lines["up.1"].endswith("%") and not lines["cost:"].endswith("%")


def test_chosen_levels_of_a_latent_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sd(tmp_path)
    save_prompt(tmp_path, 12)
    assert main(["inspect", "teacher", str(tmp_path), "--levels", "s4", "mid"]) == 0
    text = capsys.readouterr().out
    assert "works on latents of 4x8x8" in text
    assert [line.split()[0] for line in text.splitlines() if "%" in line] == ["up.1", "mid"]
    with pytest.raises(ConfigError, match=r"levels: got s2, allowed in, down\.0"):
        main(["inspect", "teacher", str(tmp_path), "--levels", "s2", "--no_costs"])


def test_settings_are_pairs(unet_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "teacher", str(unet_folder), "--no_costs"]
    assert main([*words, "--inversion_steps", "10", "--image_size", "8x24"]) == 0
    assert "8x24 pixels" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="pairs"):
        main([*words, "--inversion_steps"])
    with pytest.raises(ConfigError, match="Did you mean inversion_steps"):
        main([*words, "--inversion_step", "10"])
    with pytest.raises(ConfigError, match="such as 256 or 128x256"):
        main([*words, "--image_size", "big"])
