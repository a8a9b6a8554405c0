from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamshard.console.cli import main
from dreamshard.errors import ConfigError, TeacherError
from pipeline.teachers.inspecting.look import (
    CELL,
    GAP,
    MARGIN,
    Seen,
    contact_sheet,
    energies,
    format_energies,
)
from storage.schema import Level


def level(name: str, shape: tuple[int, ...]) -> Level:
    kind = "feature" if len(shape) == 3 else "embedding"
    return Level(name, kind, name, -1, 0, "none", 4 if len(shape) == 3 else 0, shape, "float16")


def seen(**values: np.ndarray) -> Seen:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    levels = tuple(level(name, value.shape[1:]) for name, value in values.items())
    return Seen(images, levels, dict(values), drawn=False)


def test_the_ten_strongest_channels_and_a_warning_where_few_hold_most() -> None:
    rng = np.random.default_rng(0)
    even = rng.standard_normal((3, 32, 4, 4)).astype(np.float16)
    massive = even.copy()
    massive[:, 7] *= 60
    massive[:, 3] *= 20
    pooled = rng.standard_normal((3, 32)).astype(np.float16)
    found = energies(seen(even=even, massive=massive, pooled=pooled))
    assert [each.level for each in found] == ["even", "massive", "pooled"]
    assert all(len(each.strongest) == 10 for each in found)
    assert [channel for channel, _ in found[1].strongest[:2]] == [7, 3]
    power = (massive.astype(np.float64) ** 2).mean(axis=(0, 2, 3))
    assert found[1].strongest[0][1] == pytest.approx(power[7] / power.sum())
    assert [each.lopsided for each in found] == [False, True, False]
    text = format_energies(found)
    assert "7:8" in text and "warning: massive: 1 channel holds over half" in text
    assert text.count("warning") == 1
    with pytest.raises(TeacherError, match="level empty: every value is 0"):
        energies(seen(empty=np.zeros((3, 4, 2, 2), np.float16)))


def test_a_sheet_has_a_row_of_pictures_per_map() -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((3, 8, 4, 4)).astype(np.float16)
    sheet = Image.open(io.BytesIO(contact_sheet(seen(a=maps, w=maps[:, :, 0, 0], b=maps))))
    assert sheet.size == (MARGIN + 3 * (CELL + GAP), 3 * (CELL + GAP))
    pixels = np.asarray(sheet)
    second = pixels[CELL + GAP : 2 * CELL + GAP, MARGIN : MARGIN + CELL]
    assert len(np.unique(second.reshape(-1, 3), axis=0)) >= 8, "a map, enlarged without blurring"


def test_inspecting_with_samples(
    unet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "deep" / "sheet.png"
    words = ["inspect", "teacher", str(unet_folder), "--no_costs", "--sheet", str(sheet)]
    drawn = [*words, "--samples", "3", "--steps", "2", "--timesteps", "40"]
    assert main([*drawn, "--levels", "s2", "mid"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if line.startswith(("up.1.t40", "mid.t40"))]
    assert [len(line) for line in lines] == [11, 11] and f"contact sheet: {sheet}" in text
    assert Image.open(sheet).size == (MARGIN + 3 * (CELL + GAP), 3 * (CELL + GAP))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 20), "red").save(pictures / "a.png")
    assert main([*words, "--samples", "2", "--images", str(pictures)]) == 0
    assert Image.open(sheet).size[0] == MARGIN + CELL + GAP, "one image, one column"
    with pytest.raises(ConfigError, match="samples: got 0, allowed a count, with --sheet"):
        main(words)
    with pytest.raises(ConfigError, match="samples: got 0, allowed a count, with --sheet"):
        main([*words[:-1], "teacher-sheet.png"])  # its usual name, but asked for
    with pytest.raises(SystemExit):
        main([*words, "--samples", "many"])


def test_a_networks_usual_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["inspect", "teacher", "", "--kind", "timm", "--name", "test_vit", "--no_costs"]
    words += ["--random_weights", "true", "--seed", "3", "--samples", "2", "--sheet", str(sheet)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "random, seed" not in text and sheet.exists()
    assert any(line.startswith("final ") for line in text.splitlines())
