from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dreamshard.console.cli import main
from dreamshard.errors import ConfigError
from pipeline.teachers.load import TEACHERS
from tests.unit.pipeline.teachers.timm.networks import save, save_student


def test_teachers_and_students_in_a_line_each(
    unet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unet_folder, tmp_path / "ddpm")
    (tmp_path / "ddpm" / "teacher_card.json").write_text('{"licence": "mine"}')
    save(tmp_path / "resnet", "test_resnet")
    settings = {"depths": [1, 1], "widths": [4, 6]}
    save_student(tmp_path / "run" / "student", "cifar_resnet", settings, strides=(1, 2), size=16)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert main(["list", "teachers", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    kinds = [line.split()[0] for line in lines[1 : lines.index("")]]
    assert list(dict.fromkeys(kinds)) == list(TEACHERS)
    shown = {line.split()[0]: line for line in lines[lines.index("") :] if line}
    assert shown[str(tmp_path / "ddpm")].split()[1:] == ["diffusers", "licence", "mine"]
    assert shown[str(tmp_path / "resnet")].split()[1] == "timm"
    student = shown[str(tmp_path / "run" / "student")]
    assert student.split()[1] == "student" and student.endswith("of the first teacher")
    assert shown["1"] == f"1 files that are no teacher, such as {tmp_path / 'other.pt'}"

    assert main(["list", "students", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith(str(tmp_path))]
    assert "cifar_resnet  s1, s2  16x16 pixels" in line and "cifar_resnet18" in text
    assert main(["list", "students", str(tmp_path / "resnet"), "--timm", "test_res*"]) == 0
    text = capsys.readouterr().out
    assert "no trained student found" in text and "\ntest_resnet" in text
    with pytest.raises(ConfigError, match="Did you mean `dreamshard list teachers`"):
        main(["list"])
