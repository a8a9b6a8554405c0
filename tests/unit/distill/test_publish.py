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


def test_only_what_a_student_is_of_is_published(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "student" / "hubconf.py").write_text("import os")
    publish(PublishConfig(student=str(run_dir), out=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "hubconf.py").exists()
    assert "left out: hubconf.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_what_is_no_file_is_not_published(
    run_dir: Path, tmp_path: Path, name: str, kind: str
) -> None:
    import os

    path = run_dir / "student" / name
    path.unlink(missing_ok=True)
    (tmp_path / "secret").write_text("a user's")
    {
        "a link": lambda: path.symlink_to(tmp_path / "secret"),
        "a pipe": lambda: os.mkfifo(path),
        "a folder": lambda: path.mkdir(),
    }[kind]()
    with pytest.raises(DataError, match=f"{name}: got {kind}, allowed a file"):
        publish(PublishConfig(student=str(run_dir), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_mostly_a_hole_are_not_copied(run_dir: Path, tmp_path: Path) -> None:
    import os

    os.truncate(run_dir / "student" / "model.safetensors", 1 << 40)
    with pytest.raises(DataError, match="damaged or truncated"):
        publish(PublishConfig(student=str(run_dir), out=str(tmp_path / "out")))
