"""A student's folder is data: nothing that it names is imported or called."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from distill.configs.student import OwnClassConfig, StudentConfig
from distill.publish import PublishConfig, publish
from distill.students.card import StudentCard, read_card
from distill.students.export import load_student
from dreamshard.errors import DataError, DreamshardError


def write_card(folder: Path, name: str = "resnet10t", settings: Any = None, **changes: Any) -> Path:
    card = StudentCard(
        student=asdict(StudentConfig(name=name, settings=settings or {})),
        strides=[4],
        channels=[8],
        levels=["s4"],
        image_size=[32, 32],
        seed=0,
    )
    folder.mkdir(exist_ok=True)
    (folder / "student.json").write_text(json.dumps({**asdict(card), **changes}))
    return folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose card would have torch.hub run a file beside it."""
    mark = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (tmp_path / "hubconf.py").write_text(f"{code}def evil(**_):\n    raise ValueError\n")
    settings = {"repo_or_dir": str(tmp_path), "model": "evil", "source": "local"}
    return write_card(tmp_path, "torch.hub:load", settings)


def test_a_card_that_names_code_is_refused_and_says_the_flag(hostile: Path) -> None:
    with pytest.raises(DataError, match=r"allowed a name of our own .*own_class\.name torch\.hub"):
        load_student(hostile)
    for formats in (["timm"], ["onnx"]):
        config = PublishConfig(student=str(hostile), out=str(hostile / "out"), formats=formats)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="allowed a name of our own tables"):
            publish(config)
    own = OwnClassConfig(name="torch.hub:load")
    config = PublishConfig(student=str(hostile), out=str(hostile / "out"), own_class=own)
    with pytest.raises(DataError, match=r"--own_class\.settings '\{\"repo_or_dir\""):
        publish(config)
    assert not (hostile / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["os:system", "builtins:exec", "subprocess:Popen", "distill.evaluate:main", "local-dir:x"],
)
def test_no_import_path_of_a_card_is_followed(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="allowed a name of our own tables"):
        load_student(write_card(tmp_path, name))


@pytest.mark.parametrize("name", ["", "../../x", "a b", "hub/\x1b[2J"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"student\.json: student\.name: got"):
        read_card(write_card(tmp_path, name))


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "cache_dir", "pretrained"])
def test_settings_by_which_timm_would_read_files_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DreamshardError, match=rf"student\.settings\.{key}"):
        load_student(write_card(tmp_path, settings={key: str(tmp_path / "x")}))


@pytest.mark.parametrize(
    "settings",
    [
        {"act_layer": "os.system"}, {"norm_layer": "builtins:exec"}, {"aa_layer": "torch.hub.load"},
        {"block": "os:system"}, {"layers": ["x"]}, {"repo_or_dir": "."},
    ],
)  # fmt: skip
def test_whatever_a_constructor_makes_of_settings_is_one_sentence(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = write_card(tmp_path / "student", settings=settings)
    with pytest.raises(DataError, match=r"student\.json: student\.settings: got .* takes"):
        load_student(folder)
    for formats in (["timm"], ["onnx"]):
        config = PublishConfig(student=str(folder), out=str(tmp_path / "out"), formats=formats)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"student\.settings"):
            publish(config)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_users_own_class_is_loaded_where_the_user_names_it(tmp_path: Path) -> None:
    name = "pipeline.teachers.timm.small_resnet:CifarResNet"
    folder = write_card(tmp_path, name, {"width": 4})
    card, _ = read_card(folder, own=OwnClassConfig(name=name, settings={"width": 4}))
    assert card.config.name == name and card.config.settings == {"width": 4}
    others = [
        OwnClassConfig(),
        OwnClassConfig(name=name),
        OwnClassConfig(name=name, settings={"width": 5}),
        OwnClassConfig(name="os:system"),
    ]
    for own in others:
        with pytest.raises(DataError):
            read_card(folder, own=own)


@pytest.mark.parametrize(
    "change",
    [
        {"strides": "x"}, {"strides": []}, {"strides": [0]}, {"channels": [1, 2]}, {"seed": "x"},
        {"image_size": [32]}, {"image_size": [2**40, 32]}, {"levels": 5}, {"extra": 1},
        {"student": []}, {"student": {"name": 3}}, {"student": {"strides": ["x"]}},
    ],
)  # fmt: skip
def test_cards_of_other_types_are_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="allowed a student's card"):
        read_card(write_card(tmp_path, **change))
