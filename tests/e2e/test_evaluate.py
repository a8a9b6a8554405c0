"""From recorded digits to the probe table, with the teacher that has no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.configs.embeddings import (
    MmdConfig,
    PicturesConfig,
    TransferConfig,
    TransferSetConfig,
)
from distill.configs.evaluate import EvaluateConfig
from distill.configs.tasks import (
    DetectionConfig,
    FewLabelConfig,
    FinetuneConfig,
    KnnConfig,
    LinearProbeConfig,
    SegmentationConfig,
)
from distill.configs.train import (
    DataConfig,
    DreamTeacherConfig,
    StudentConfig,
    TrainConfig,
)
from distill.evaluate import evaluate
from distill.train import train
from dreamshard.errors import ConfigError, DataError
from pipeline.images.inputs import ImageInput
from pipeline.images.source import ImageConfig, SourceConfig, open_source
from pipeline.teachers.base import TeacherConfig
from pipeline.teachers.load import load_teacher
from storage.dataset import Dataset
from storage.schema import Pins, Recipe

TEACHER = TeacherConfig(kind="noise", levels=["s4", "s2"], settings={"channels": 4})
PINS = Pins(micro_batch=32, compute_dtype="float32", device="cpu", threads=1)
SIZE = (16, 16)


def record_digits(root: Path, *, count: int = 64) -> Dataset:
    """Record digits with the noise teacher, without Ray."""
    teacher = load_teacher(TEACHER, mode="encode", seed=0, pins=PINS, image_size=SIZE)
    source = ImageInput(
        open_source(SourceConfig(kind="digits")),
        config=ImageConfig(size=16),
        image_size=SIZE,
        seed=0,
    )
    recipe = Recipe(
        name="digits",
        content={"teacher": teacher.fingerprint, "image": source.image_rule()},
        layout={"format": "zarr", "samples_per_unit": count, "codecs": {}},
    )
    dataset = Dataset.create(
        str(root), recipe, levels=teacher.levels, image_size=SIZE, pins=PINS, fsync=False
    )
    dataset.grow(count)
    with dataset.unit_writer(0, count=count, run_id="test") as writer:
        for work in source.works(0, count, micro_batch=PINS.micro_batch):
            writer.write(work.offset, source.forward(teacher, work))
        writer.commit()
    return dataset


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training run on a few recorded digits."""
    root = tmp_path_factory.mktemp("digits")
    config = TrainConfig(
        run_dir=str(root / "train"),
        steps=4,
        batch_size=16,
        log_every=2,
        save_every=4,
        device="cpu",
        data=DataConfig(dataset=record_digits(root / "data").url),
        student=StudentConfig(
            name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 8, 8]}
        ),
        dreamteacher=DreamTeacherConfig(width=8),
    )
    train(config)
    return root / "train"


def settings(trained: Path, **changes: Any) -> EvaluateConfig:
    chosen: dict[str, Any] = {
        "run_dir": str(trained.parent / "evaluate"),
        "student": str(trained),
        "teacher": TEACHER,
        "train_images": SourceConfig(kind="digits"),
        "heldout_images": SourceConfig(kind="digits"),
        "image": ImageConfig(size=16),
        "micro_batch": 128,
        "few_label": FewLabelConfig(shots=[1, 5], draws=3, selection_draws=1, strengths=[10.0]),
    }
    return EvaluateConfig(**(chosen | changes))


def test_the_table_compares_four_representations(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(settings(run_dir))
    written = json.loads((run_dir.parent / "evaluate" / "results.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(results))
    names = ["pixels", "teacher", "random student", "distilled student"]
    assert list(results["few_label"]["rows"]) == names
    assert list(results["few_label"]["paired"]) == names[:3]
    assert results["images"] == {"train": 1297, "heldout": 500}
    # Levels of stride 2 and 4: the student's 8 + 8 channels, the teacher's 4 + 4.
    assert results["dimensions"] == dict(zip(names, (768, 8, 16, 16), strict=True))
    assert results["random_statistics"] in ("initial", "measured")
    rows = results["few_label"]["rows"]
    assert rows["pixels"]["5"]["mean"] > 70, "pixels of digits are worth a lot"
    assert rows["teacher"]["5"]["mean"] < 25, "noise is worth nothing"
    assert rows["random student"] != rows["distilled student"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in names) and "±" in shown


def test_another_teacher_is_refused(run_dir: Path) -> None:
    other = TeacherConfig(kind="noise", levels=["s4", "s2"], settings={"channels": 8})
    with pytest.raises(ConfigError, match=r"teacher\.path"):
        evaluate(settings(run_dir, teacher=other))
    fewer = TeacherConfig(kind="noise", levels=["s4"], settings={"channels": 4})
    with pytest.raises(ConfigError, match=r"teacher\.levels: got a teacher that records b4"):
        evaluate(settings(run_dir, teacher=fewer))


def test_results_are_not_replaced_by_another_evaluation(run_dir: Path, tmp_path: Path) -> None:
    own = {"baselines": [], "run_dir": str(tmp_path / "evaluate"), "tasks": ["knn"]}
    evaluate(settings(run_dir, knn=KnnConfig(k=[1]), **own))
    before = (tmp_path / "evaluate" / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"run_dir: got .*tasks \[\"knn\"\] there"):
        evaluate(settings(run_dir, **(own | {"tasks": ["few_label"]})))
    assert (tmp_path / "evaluate" / "results.json").read_bytes() == before
    evaluate(settings(run_dir, knn=KnnConfig(k=[1]), **own))


def test_no_student_is_refused_before_anything_is_made(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained student"):
        evaluate(settings(run_dir, student=str(tmp_path), run_dir=str(tmp_path / "evaluate")))
    assert not (tmp_path / "evaluate").exists()


def test_images_without_labels_are_refused(run_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    unlabelled = SourceConfig(kind="folder", path=str(tmp_path))
    with pytest.raises(DataError, match="without labels"):
        own = str(tmp_path / "evaluate")
        evaluate(settings(run_dir, heldout_images=unlabelled, baselines=[], run_dir=own))


def test_images_of_another_size_are_judged_where_the_student_takes_them(
    run_dir: Path, tmp_path: Path
) -> None:
    larger = ImageConfig(size=24)
    changes = {"image": larger, "baselines": [], "run_dir": str(tmp_path / "evaluate")}
    whole = evaluate(settings(run_dir, baselines=[], run_dir=str(tmp_path / "whole")))
    results = evaluate(settings(run_dir, **changes))
    assert results["few_label"]["rows"] != whole["few_label"]["rows"]


def test_class_folders_are_matched_by_name(run_dir: Path, tmp_path: Path) -> None:
    """Held-out folders without the first class: every number of theirs is one less."""
    from PIL import Image

    digits = open_source(SourceConfig(kind="digits"))
    for row, record in enumerate(digits.read(range(300))):
        for split, wanted in (("train", row < 200), ("held", row >= 200 and record.label != 0)):
            if wanted:
                folder = tmp_path / split / "abcdefghij"[record.label]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(record.data)).save(folder / f"{row:04d}.png")
    sources = [
        SourceConfig(kind="folder", path=str(tmp_path / split), class_folders=True)
        for split in ("train", "held")
    ]
    changes = {
        "run_dir": str(tmp_path / "evaluate"),
        "train_images": sources[0],
        "tasks": ["knn", "linear_probe"],
        "knn": KnnConfig(k=[1]),
        "linear_probe": LinearProbeConfig(),
        "baselines": ["pixels"],
    }
    results = evaluate(settings(run_dir, heldout_images=sources[1], **changes))
    assert results["knn"]["rows"]["pixels"]["1"]["mean"] > 80
    assert results["linear_probe"]["rows"]["pixels"]["lbfgs"]["mean"] > 70
    swapped = {**changes, "train_images": sources[1], "run_dir": str(tmp_path / "swapped")}
    with pytest.raises(DataError, match="heldout_images: got classes a that no image of train"):
        evaluate(settings(run_dir, heldout_images=sources[0], **swapped))


NONE = SourceConfig(kind="folder")
UNFIT: dict[str, dict[str, Any]] = {
    "pictures, random student": {"tasks": ["pictures"], "train_images": NONE},
    "mmd of no images": {"tasks": ["mmd"], "mmd": MmdConfig(synthetic_images=NONE)},
    "mmd of no dataset": {"tasks": ["mmd"], "mmd": MmdConfig(dataset="nowhere")},
    "transfer": {
        "tasks": ["transfer"],
        "train_images": SourceConfig(),
        "heldout_images": SourceConfig(),
        "transfer": TransferConfig(
            datasets=[TransferSetConfig(name="a", train_images=NONE, heldout_images=NONE)]
        ),
    },
    "detection": {
        "tasks": ["few_label", "detection"],
        "detection": DetectionConfig(train_annotations="none", heldout_annotations="none"),
    },
    "a head that is not there": {
        "tasks": ["segmentation"],
        "segmentation": SegmentationConfig(classes=["a", "b"], head="distilled"),
    },
    "more shots than images": {
        "tasks": ["segmentation"],
        "segmentation": SegmentationConfig(classes=["a", "b"], shots=[10**6]),
    },
    "branches of fine-tuning": {"tasks": ["finetune"], "finetune": FinetuneConfig(drop_path=0.1)},
    "more neighbours than images": {"tasks": ["knn"], "knn": KnnConfig(k=[10**6])},
    "fewer pictures than points": {
        "tasks": ["pictures"], "pictures": PicturesConfig(images=20, perplexity=100.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_said_before_the_folder_is_claimed(run_dir: Path, name: str) -> None:
    folder = run_dir.parent / f"unfit {name}"
    config = settings(run_dir, run_dir=str(folder), baselines=["random"], **UNFIT[name])
    with pytest.raises((ConfigError, DataError)):
        evaluate(config)
    assert not folder.exists()
