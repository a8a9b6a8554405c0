"""`dreamshard init`: what it sees, what it writes, and that all of it fits together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.configs.evaluate import EvaluateConfig
from distill.configs.train import TrainConfig
from dreamshard.config import load_config
from dreamshard.config.yaml12 import parse_yaml
from dreamshard.console.own import begin, presets
from dreamshard.console.own.look import look
from dreamshard.console.own.writing import Line, render
from dreamshard.errors import ConfigError, DataError
from pipeline.request.config import EncodeConfig
from tests.unit.distill import small_data
from tests.unit.pipeline.teachers.gan.stylegan2.stylegan2_reference import Reference

needs_teacher = pytest.mark.skipif(not presets.SHIPPED.is_dir(), reason="no shipped teacher here")


def draw(root: Path, *, classes: tuple[str, ...] = (), count: int = 120, side: int = 40) -> Path:
    rng = np.random.default_rng(1)
    for number in range(count):
        folder = root / classes[number % len(classes)] if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (side, side + number % 3, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(cls: type, path: Path):
    return load_config(cls, ["--config", str(path)], prog="x", description="")


def test_class_folders_sizes_and_what_is_passed_over_are_seen(here: Path) -> None:
    root = draw(here / "my photos", classes=("cat", "dog"))
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / "broken.jpg").write_bytes(b"no image")
    seen = look("my photos")
    assert seen.classes == ("cat", "dog") and seen.source.class_folders and seen.parted
    assert seen.count + seen.heldout_count == 121 and seen.short_side == 40
    text = "\n".join(seen.lines())
    assert "40x40 to 40x42 pixels" in text and "2 classes: cat, dog" in text
    assert "passed over: 1 files that do not end in" in text and "notes.txt" in text


def test_parts_of_a_folder_and_flat_folders(here: Path) -> None:
    draw(here / "set" / "train", classes=("a", "b"), count=8)
    draw(here / "set" / "val", classes=("a", "b"), count=4)
    seen = look("set")
    assert (seen.source.path, seen.count, seen.heldout_count) == ("set/train", 8, 4)
    assert seen.heldout is not None and seen.heldout.class_folders
    flat = look(str(draw(here / "flat", count=5)))
    assert not flat.classes and flat.heldout is None and not flat.source.class_folders
    with pytest.raises(DataError, match="none of which can be read"):
        (here / "bad").mkdir()
        (here / "bad" / "a.jpg").write_bytes(b"no")
        look("bad")
    with pytest.raises(ConfigError, match=r"PHOTOS\.path: got nowhere.* Check the path\.$"):
        look("nowhere")


def test_images_beside_class_folders_are_named(here: Path) -> None:
    """One stray image must not take the labels of all others without a word."""
    root = draw(here / "set", classes=("a", "b"), count=8)
    draw(root, count=1)
    seen = look("set")
    assert not seen.classes
    assert "1 images lie outside the 2 folders, such as 000.png: move them" in seen.lines()[2]


@needs_teacher
def test_recipes_fit_each_other(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "my photos", classes=("cat", "dog"))
    assert begin.main(["my photos"]) == 0
    out = here / "runs" / "my-photos"
    encode = read(EncodeConfig, out / "encode.yaml")
    train, judge = (
        read(TrainConfig, out / "train.yaml"),
        read(EvaluateConfig, out / "evaluate.yaml"),
    )
    assert encode.teacher.levels == train.data.levels == ["s4", "s2"]
    assert train.data.dataset == f"{encode.root}/{encode.name}" and judge.student == train.run_dir
    assert {2, 4} < set(train.student.strides) and train.student.name == "resnet18"
    assert encode.source.split == judge.train_images.split == "train"
    assert judge.heldout_images.split == "heldout"
    assert "# strides that the teacher and the student share" in (out / "encode.yaml").read_text()
    said = capsys.readouterr()
    assert "dreamshard run runs/my-photos" in said.out and "init: looking at" in said.err
    assert "dreamshard init 'my photos' --force --teacher FOLDER" in said.out
    assert begin.main(["my photos"]) == 0  # the same again changes nothing
    with pytest.raises(ConfigError, match=r"out: got other recipes .*--force"):
        begin.main(["my photos", "--student", "resnet50"])
    assert begin.main(["my photos", "--student", "resnet50", "--force"]) == 0


def test_without_a_teacher_large_images_get_one_pretrained(here: Path, capsys) -> None:
    draw(here / "big", count=6, side=200)
    assert begin.main(["big", "--out", "o"]) == 0
    text = capsys.readouterr().out
    assert "train one on these images first" in text and "--teacher cifar10" in text
    assert "no evaluate.yaml: a probe needs labels" in text
    assert sorted(path.name for path in (here / "o").iterdir()) == [
        "encode.yaml", "pretrain.yaml", "train.yaml",
    ]  # fmt: skip
    encode = read(EncodeConfig, here / "o" / "encode.yaml")
    assert encode.teacher.path == "o/teacher" and encode.teacher.levels == ["s8", "s4", "s2"]


@needs_teacher
def test_students_whose_strides_fit(here: Path) -> None:
    choice = presets.choose(presets.SHIPPED, size=32, student="cifar_resnet18")
    assert choice.levels == ("s4", "s2", "s1") and choice.strides == (1, 2, 4, 8)
    with pytest.raises(ConfigError, match=r"student: got convnext_tiny.*stride 1, 2\."):
        presets.fit_student("convnext_tiny", strides={1, 2}, side=32)
    with pytest.raises(ConfigError, match=r"teacher\.path: got nowhere"):
        presets.choose(Path("nowhere"), size=0, student="")


def test_a_dataset_needs_no_encoding(here: Path, capsys) -> None:
    small_data.make_dataset(here / "data")
    assert begin.main(["data/boxes", "--student", "resnet18"]) == 0
    train = read(TrainConfig, here / "runs" / "boxes" / "train.yaml")
    assert train.data.levels == ["s4", "s2"] and train.data.dataset.startswith("data/boxes-")
    assert not (here / "runs" / "boxes" / "encode.yaml").exists()
    assert "give labelled images with --images" in capsys.readouterr().out


def test_the_tables_name_what_the_networks_have() -> None:
    from distill.configs.student import StudentConfig
    from distill.students.student import student_strides

    for name, strides in presets.STUDENTS.items():
        assert student_strides(StudentConfig(name=name), image_size=(64, 64)) == strides, name


def test_text_of_a_recipe() -> None:
    lines = [
        Line("a", 1, "why"),
        Line("b.c.d", [1, "x y"]),
        Line("b.c.e", "a: b"),
        Line("b.f", 1e-5),
    ]
    text = render(lines, head=["head"])
    assert text == ("# head\na: 1 # why\nb:\n  c:\n    d: [1, x y]\n    e: 'a: b'\n  f: 1.0e-05\n")


def test_line_ends_of_names_make_no_settings_of_what_is_commented() -> None:
    nasty = "photos\nteacher: {kind: evil:Class}\r\x85\u2028# \x1b[2J"
    text = render([Line("name", nasty, nasty), Line("a.b", 1)], head=[nasty])
    assert parse_yaml(text) == {"name": nasty, "a": {"b": 1}}
    assert "\x1b" not in text


def test_presets_of_timm_and_stylegan2_say_which_network_looks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timm = pytest.importorskip("timm")
    draw(here / "photos", count=6)
    network = timm.create_model("resnet10t", pretrained=False)
    timm.models.save_for_hf(network, here / "timm", safe_serialization=True)
    Reference(side=32).write(here / "network.pkl")
    for path, part, levels in (
        ("timm", "", ["s32", "s16", "s8", "s4"]),
        ("network.pkl", "discriminator", ["s8", "s4", "s2"]),
    ):
        assert begin.main(["photos", "--teacher", path, "--out", f"runs/{path}"]) == 0
        teacher = read(EncodeConfig, here / "runs" / path / "encode.yaml").teacher
        assert (teacher.part, teacher.levels, teacher.path) == (part, levels, path)
        assert presets.FAMILIES[presets.choose(Path(path), size=0, student="").family].note
        assert not teacher.timesteps
    said = capsys.readouterr().out
    assert "the discriminator looks at images" in said and "a network that looks" in said
