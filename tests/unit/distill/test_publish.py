"""Publishing copies a student whole, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.configs.train import StudentConfig
from distill.publish import PublishConfig, main, publish
from distill.students.export import export_student
from distill.students.student import build_student
from dreamshard.errors import ConfigError, DataError


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    config = StudentConfig(name="cifar_resnet", settings={"depths": [1], "widths": [4]})
    export_student(
        build_student(config, strides=(1,), seed=0),
        tmp_path / "run" / "student",
        config=config,
        levels=["a"],
        image_size=(8, 8),
        seed=0,
        provenance={},
    )
    return tmp_path / "run"


def test_a_run_becomes_a_folder_to_upload(run_dir: Path, tmp_path: Path) -> None:
    main(["--student", str(run_dir), "--out", str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "student.json", "README.md"}


def test_an_existing_folder_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"out: got .*a folder that does not exist yet"):
        main(["--student", str(run_dir), "--out", str(tmp_path / "out")])


def test_nothing_is_left_of_a_failure(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    config = PublishConfig(
        student=str(run_dir), out=str(tmp_path / "out"), formats=["timm", "onnx"]
    )
    with pytest.raises(ConfigError, match=r"onnx.*pip install 'dreamshard\[onnx\]'"):
        publish(config)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_run_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained student"):
        publish(PublishConfig(student=str(tmp_path), out=str(tmp_path / "out")))
