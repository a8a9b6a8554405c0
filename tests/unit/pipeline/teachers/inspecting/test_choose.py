"""Where and when to read a diffusion teacher: criteria that know the answer of made-up features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dreamshard.config.yaml12 import parse_yaml
from dreamshard.console.cli import main
from dreamshard.errors import ConfigError
from pipeline.teachers.inspecting.choose import (
    Curves,
    candidate_timesteps,
    format_curves,
    high_share,
    number_of_turns,
    probe_together,
    turn_likelihood,
)
from tests.unit.pipeline.teachers.diffusion.official.adm_reference import Reference, Structure


def test_the_share_of_high_frequencies_is_that_of_waves() -> None:
    place = torch.arange(8.0)
    slow, fast = (torch.cos(2 * torch.pi * f * place / 8).expand(1, 1, 8, 8) for f in (1, 3))
    assert high_share(slow + 5) == pytest.approx(0, abs=1e-6)
    assert high_share(fast) == pytest.approx(1, abs=1e-6)
    assert high_share(slow + fast) == pytest.approx(0.5, abs=1e-6)
    checks = (-1.0) ** (place[:, None] + place)
    assert high_share(checks.expand(2, 3, 8, 8)) == pytest.approx(1)
    assert high_share(torch.ones(1, 1, 4, 4)) == 0, "a constant map has no power"


def test_turns_are_told_where_they_can_be_and_by_nobody_in_noise() -> None:
    torch.manual_seed(0)
    noise = torch.randn(4, 60, 5)
    told = noise + 4 * torch.eye(5)[:4, None]
    chance = -float(np.log(4))
    assert turn_likelihood(noise) == pytest.approx(chance, abs=0.2)
    assert chance + 0.5 < turn_likelihood(told) < 0
    by_image = torch.randn(1, 60, 5).expand(4, 60, 5)
    assert turn_likelihood(by_image) == pytest.approx(chance, abs=1e-3), "folds are by image"


def test_a_rectangle_is_turned_by_half() -> None:
    square, wide = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 16, 3), np.uint8)
    assert (number_of_turns(square, None), number_of_turns(wide, None)) == (4, 2)
    assert number_of_turns(square, np.zeros(2, np.int64)) == 1


def test_probes_of_all_timesteps_find_what_is_there_and_nothing_in_noise() -> None:
    torch.manual_seed(0)
    labels = torch.arange(150) % 3
    told = torch.nn.functional.one_hot(labels, 3).float() + 0.1 * torch.randn(150, 3)
    noise = torch.randn(150, 3)
    clear, none = probe_together(torch.stack([told, noise]), labels, classes=3)
    assert clear > 99 and none < 50


def test_the_best_place_and_a_memorised_curve() -> None:
    turns = {"mid": [-1.2, -1.1, -1.3], "up": [-0.9, -0.9, -1.0]}
    found = Curves([0, 10, 50], turns=turns, high={"mid": [0, 0, 0]})
    assert found.best() == ("up", 10), "of equal ones the most noise"
    assert not found.memorised(), "labels are needed to tell"
    assert "log-likelihood of an image's turn" in format_curves(found)
    found.accuracy = {"mid": [30, 50, 40], "up": [60, 55, 45]}
    assert found.best() == ("up", 0) and found.memorised()
    found.accuracy = {"mid": [30, 50, 40], "up": [20, 30, 45]}
    assert found.best() == ("mid", 10) and not found.memorised()
    assert "▁" in format_curves(found) and "█" in format_curves(found)


def test_candidates_follow_the_schedule() -> None:
    assert candidate_timesteps(1000) == [0, 10, 25, 50, 100, 150, 250, 400]
    assert candidate_timesteps(10) == [0, 1, 2, 4]


def test_choose_prints_the_section_to_paste(
    unet_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["inspect", "teacher", str(unet_folder), "--no_costs", "--choose"]
    assert main([*words, "--images", "digits", "--samples", "40", "--timesteps", "5", "60"]) == 0
    text = capsys.readouterr().out
    assert "best by the linear probe on 40 images" in text and "log-likelihood" not in text
    section = parse_yaml(text[text.index("teacher:\n") :])["teacher"]
    assert section["path"] == str(unet_folder) and section["timesteps"][0] in (5, 60)
    assert section["levels"][0] in text.split()


def test_what_cannot_be_chosen_says_why(unet_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "network-snapshot.pkl").write_bytes(b"")
    gan = ["inspect", "teacher", str(tmp_path), "--choose", "--images", "digits"]
    with pytest.raises(
        ConfigError, match="choose: got a teacher of kind stylegan2, allowed a diff"
    ):
        main(gan)
    words = ["inspect", "teacher", str(unet_folder), "--no_costs", "--choose"]
    with pytest.raises(ConfigError, match="images: got nothing"):
        main(words)
    with pytest.raises(ConfigError, match="samples: got 8, allowed 32"):
        main([*words, "--images", "digits", "--samples", "8"])


def test_settings_may_have_the_names_of_what_a_teacher_is_opened_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = Reference(Structure(head_channels=16))
    reference(torch.zeros(1, 3, 32, 32), torch.zeros(1), None)  # makes the weights it meets
    torch.save(reference.state, tmp_path / "model.pt")
    words = ["inspect", "teacher", str(tmp_path / "model.pt"), "--no_costs", "--timesteps", "5"]
    words += ["--settings.image_size", "32", "--num_head_channels", "16", "--images", "digits"]
    words += ["--use_new_attention_order", "false", "--noise_schedule", "linear"]
    words += ["--levels", "output_blocks.3"]
    assert main([*words, "--choose", "--samples", "32"]) == 0
    sheet = tmp_path / "sheet.png"
    assert main([*words, "--samples", "1", "--sheet", str(sheet)]) == 0 and sheet.exists()
    assert "output_blocks.3 at t = 5" in capsys.readouterr().out
    for name in ("device", "levels", "path", "threads"):
        with pytest.raises(ConfigError, match=rf"settings\.{name}"):
            main([*words, f"--settings.{name}", "cpu", "--choose", "--samples", "32"])


def test_images_without_labels_are_enough(
    unet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for number in range(33):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    words = ["inspect", "teacher", str(unet_folder), "--no_costs", "--choose", "--timesteps", "9"]
    assert main([*words, "--images", str(tmp_path), "--levels", "mid"]) == 0
    text = capsys.readouterr().out
    assert "best by how well turned images are told apart on 33 images: mid at t = 9" in text
