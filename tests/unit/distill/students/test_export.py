"""A student kept on disk comes back as the same function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from distill.configs.train import StudentConfig
from distill.students.card import read_card
from distill.students.export import export_student, load_student, untrained_student
from distill.students.onnx import export_onnx
from distill.students.student import Student, build_student
from dreamshard.errors import DataError

CONFIG = StudentConfig(
    name="cifar_resnet", settings={"depths": [1, 1], "widths": [4, 6]}, mean=[0.1, 0.2, 0.3]
)


def export(student: Student, folder: Path, *, config: StudentConfig, size: tuple[int, int]) -> Path:
    return export_student(
        student, folder, config=config, levels=["a"], image_size=size, seed=0, provenance={}
    )


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Student, Path]:
    student = build_student(CONFIG, strides=(1, 2), seed=3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    folder = export_student(
        student,
        tmp_path / "student",
        config=CONFIG,
        levels=["a", "b"],
        image_size=(8, 8),
        seed=3,
        provenance={"steps": 10},
    )
    return student.eval(), folder


def test_it_comes_back_as_the_same_function(exported: tuple[Student, Path]) -> None:
    student, folder = exported
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for path in (folder, folder.parent):  # by its own folder, or by the run's
        loaded, card = load_student(path)
        with torch.inference_mode():
            pairs = list(zip(loaded(images), student(images), strict=True))
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
        assert card.levels == ["a", "b"] and card.provenance == {"steps": 10}
        assert loaded.mean == (0.1, 0.2, 0.3) and loaded.std == (0.5, 0.5, 0.5)


def test_the_untrained_student_is_where_training_began(exported: tuple[Student, Path]) -> None:
    _, folder = exported
    began = build_student(CONFIG, strides=(1, 2), seed=3).state_dict()
    untrained = untrained_student(read_card(folder)[0])
    assert not untrained.training
    assert all(torch.equal(value, began[name]) for name, value in untrained.state_dict().items())


def test_exporting_again_replaces_it(exported: tuple[Student, Path]) -> None:
    student, folder = exported
    export_student(
        student, folder, config=CONFIG, levels=["c"], image_size=(8, 8), seed=3, provenance={}
    )
    assert read_card(folder)[0].levels == ["c"]
    assert [path.name for path in folder.parent.iterdir()] == ["student"]


def test_no_student_asks_whether_training_is_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is the training finished"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "card", ["{", "[]", '{"format_version": 9}', '{"format_version": 2, "other": 2}']
)
def test_a_strange_card_is_refused(exported: tuple[Student, Path], card: str) -> None:
    _, folder = exported
    (folder / "student.json").write_text(card, encoding="utf-8")
    with pytest.raises(DataError, match=r"student\.json"):
        read_card(folder)


def test_weights_of_another_network_are_refused(exported: tuple[Student, Path]) -> None:
    _, folder = exported
    path = folder / "student.json"
    card = json.loads(path.read_text(encoding="utf-8"))
    card["student"]["settings"]["widths"] = [4, 8]
    path.write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(DataError, match="do not fit"):
        load_student(folder)


@pytest.mark.parametrize("name", ["resnet18", "test_convnext", "test_vit"])
def test_timm_loads_it_by_name_and_as_a_folder(name: str, tmp_path: Path) -> None:
    import timm

    config = StudentConfig(name=name)
    student = build_student(config, strides=(8, 16), seed=0, image_size=(32, 32)).eval()
    with torch.no_grad():
        for parameter in student.backbone.parameters():
            parameter.add_(0.01)
    folder = export(student, tmp_path / "student", config=config, size=(32, 32))
    sized = {"img_size": (32, 32)} if name == "test_vit" else {}
    path = str(folder / "model.safetensors")
    by_name = timm.create_model(name, checkpoint_path=path, num_classes=0, **sized).eval()
    as_folder = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded, _ = load_student(folder)
    with torch.inference_mode():
        assert torch.equal(by_name(images), as_folder(images))
        pairs = list(zip(loaded(images), student(images), strict=True))
        maps = by_name.forward_intermediates(
            images, norm=student.neck is not None, intermediates_only=True
        )
        recorded = student.backbone(images)
    for ours in recorded:
        assert any(torch.equal(ours, theirs) for theirs in maps if theirs.shape == ours.shape)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert as_folder.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    assert "license" not in as_folder.pretrained_cfg, "not that of timm's own weights"


def test_torchvision_loads_a_resnets_weights(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    config = StudentConfig(name="torchvision/resnet18")
    student = build_student(config, strides=(4, 8, 16, 32), seed=0).eval()
    folder = export(student, tmp_path / "student", config=config, size=(64, 64))
    network = resnet18(weights=None)
    missing = network.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys


def test_the_model_card_tells_teacher_licence_data_recipe_and_figures(tmp_path: Path) -> None:
    config = StudentConfig(name="test_convnext")
    student = build_student(config, strides=(4, 8), seed=0)
    provenance = {
        "method": "dreamteacher",
        "steps": 10,
        "batch_size": 8,
        "teacher": {"kind": "unet", "weights": "abc"},
        "licence": "Apache-2.0",
        "source": {"kind": "parquet", "count": 50, "digest": "d1"},
        "samples": 50,
    }
    folder = export_student(
        student,
        tmp_path / "student",
        config=config,
        levels=["up.1.t100"],
        image_size=(32, 32),
        seed=0,
        provenance=provenance,
        metrics={"loss": 0.123456},
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    header = text.split("---")[1]
    assert yaml.safe_load(header)["library_name"] == "timm"
    for part in ("kind unet, weights abc", "Apache-2.0", "50 images of a parquet source", "0.1235"):
        assert part in text
    assert "dreamteacher, 10 steps of 8 images at 32x32" in text and "up.1.t100" in text
    assert "`head.norm`, `stages.2`, `stages.3`." in text, "what was not trained is listed"


def test_onnx_gives_the_same_maps_for_any_batch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1], "widths": [4, 6]})
    student = build_student(config, strides=(1, 2), seed=0)
    path = export_onnx(student, tmp_path / "model.onnx", image_size=(8, 8))
    session = runtime.InferenceSession(str(path))
    assert [output.name for output in session.get_outputs()] == ["stride_1", "stride_2"]
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = session.run(None, {"images": images.numpy()})
    with torch.inference_mode():
        expected = student((images - 0.5) / 0.5)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=1e-5)
