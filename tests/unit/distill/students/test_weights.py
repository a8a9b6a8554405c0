"""Students that start from weights of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from distill.configs.train import StudentConfig
from distill.students.backbones import available_maps
from distill.students.export import export_student
from distill.students.student import Student, build_student
from dreamshard.errors import ConfigError

NAME = "mobilenetv3_small_050"
SIZE = (32, 32)


def student_of(name: str = NAME, seed: int = 0, **changes: object) -> Student:
    strides = (4, 8, 16) if name == "test_vit" else (2, 4)
    return build_student(
        StudentConfig(name=name, **changes),  # type: ignore[arg-type]
        strides=strides,
        seed=seed,
        image_size=SIZE,
    )


def exported(folder: Path, name: str = NAME) -> Path:
    config = StudentConfig(name=name, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    student = student_of(name, seed=7, mean=config.mean, std=config.std)
    return export_student(
        student, folder, config=config, levels=[], image_size=SIZE, seed=7, provenance={}
    )


def same(one: Student, other: Student) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", [NAME, "test_vit", "cifar_resnet18"])
def test_a_run_begins_where_another_ended(tmp_path: Path, name: str) -> None:
    exported(tmp_path / "run" / "student", name)
    first = student_of(name, seed=7)
    assert not same(first, student_of(name))
    for where in (tmp_path / "run", tmp_path / "run" / "student"):
        found = student_of(name, weights=str(where))
        assert same(first, found)
        assert found.mean == (0.1, 0.2, 0.3) and found.std == (0.4, 0.5, 0.6)
    asked = student_of(name, weights=str(tmp_path / "run"), mean=[0.5] * 3)
    assert asked.mean == (0.5, 0.5, 0.5) and asked.std == (0.4, 0.5, 0.6)


def test_timms_folder_and_a_bare_file_with_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model(NAME, num_classes=5)
    save_file(dict(whole.state_dict()), tmp_path / "model.safetensors")
    about = {"architecture": NAME, "pretrained_cfg": {"mean": [0.3] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    by_folder = student_of(weights=f"local-dir:{tmp_path}")
    by_file = student_of(weights=str(tmp_path / "model.safetensors"))
    stem = by_folder.backbone.get_parameter("conv_stem.weight")
    assert torch.equal(stem, whole.get_parameter("conv_stem.weight"))
    assert same(by_folder, by_file) and by_folder.mean == (0.3,) * 3 and by_file.mean == (0.5,) * 3


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    with pytest.raises(ConfigError, match=f"those of '{NAME}'.*--student.name {NAME}"):
        student_of("resnet10t", weights=str(folder))
    tensors = load_file(folder / "model.safetensors")
    wrong = tensors | {"conv_stem.weight": torch.zeros(1), "colour": torch.zeros(1)}
    del wrong["bn1.weight"]
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ConfigError) as caught:
        student_of(weights=str(tmp_path / "wrong.safetensors"))
    text = str(caught.value)
    assert "conv_stem.weight: [1] there" in text and "bn1.weight: missing" in text
    assert "colour: not in" in text
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "absent", tmp_path / "empty", tmp_path / "a.pth"):
        with pytest.raises(ConfigError, match=r"student\.weights: got .* allowed a run folder"):
            student_of(weights=str(nothing))


def test_addresses_are_no_names(tmp_path: Path) -> None:
    folder = exported(tmp_path / "student")
    for name, hint in (
        (f"local-dir:{folder}", f"--student.weights local-dir:{folder} and --student.name {NAME}"),
        (
            "hf-hub:timm/resnet18.a1_in1k",
            "--student.name resnet18.a1_in1k and --student.pretrained",
        ),
        ("timm/resnet18.a1_in1k", "--student.name resnet18.a1_in1k and --student.pretrained"),
        ("hf_hub:me/mine", "--student.weights FOLDER"),
    ):
        with pytest.raises(ConfigError) as caught:
            available_maps(StudentConfig(name=name))
        assert hint in str(caught.value)


def test_weights_and_pretrained_exclude_each_other() -> None:
    (problem,) = StudentConfig(weights="a", pretrained=True).problems()
    assert problem.key == "weights"
