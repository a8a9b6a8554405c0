"""Mask R-CNN on a student, trained and judged on a synthetic COCO of a few squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.bench.bench import SUBJECT
from distill.configs.tasks import DetectionConfig
from distill.configs.train import OptimizerConfig
from distill.tasks.detection import (
    CocoImages,
    Detection,
    _mirrored,
    build_detector,
    require_any_size,
)
from dreamshard.errors import ConfigError, DataError
from tests.unit.distill.tasks.shape_bench import ShapeBench

pytest.importorskip("torchmetrics")
pytest.importorskip("pycocotools")
SIDE = 48


def write_coco(folder: Path, *, count: int = 4, names: tuple[str, ...] = ("bright", "dark")) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
        kind = number % len(names)
        left, top = (int(value) for value in rng.integers(2, 20, 2))
        pixels[top : top + 20, left : left + 24] = (250, 5)[kind % 2]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(
            {"id": 10 + number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
        )
        right, bottom = left + 24, top + 20
        annotations.append(
            {
                "id": number + 1,
                "image_id": 10 + number,
                "category_id": 7 * (kind + 1),
                "bbox": [left, top, 24, 20],
                "area": 480,
                "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            }
        )
    annotations.append({**annotations[0], "id": 999, "iscrowd": 1})
    annotations.append({**annotations[0], "id": 1000, "bbox": [3, 3, 0, 5]})
    categories = [{"id": 7 * (place + 1), "name": name} for place, name in enumerate(names)]
    path = folder / "instances.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return str(path)


def settings(folder: Path, **changes: Any) -> DetectionConfig:
    annotations = write_coco(folder)
    chosen: dict[str, Any] = {
        "train_annotations": annotations,
        "train_folder": str(folder),
        "heldout_annotations": annotations,
        "heldout_folder": str(folder),
        "steps": 2,
        "batch_size": 2,
        "size": SIDE,
        "longest": SIDE,
        "width": 8,
        "threads": 1,
        "optimizer": OptimizerConfig(lr=1e-3),
    }
    return DetectionConfig(**(chosen | changes))


def test_coco_is_read_as_boxes_labels_and_masks(tmp_path: Path) -> None:
    data = CocoImages("train", write_coco(tmp_path), str(tmp_path))
    assert len(data) == 4 and data.categories == {7: "bright", 14: "dark"}
    image, target = data.read(1)
    assert image.shape == (3, SIDE, SIDE) and float(image.max()) <= 1
    left, top, right, bottom = target["boxes"][0].int().tolist()
    assert (right - left, bottom - top) == (24, 20) and target["labels"].tolist() == [2]
    inside = image[0, top:bottom, left:right]
    assert bool((inside < 0.1).all()), "the box is around the square"
    assert int(target["masks"].sum()) == pytest.approx(480, abs=50)


def test_boxes_and_masks_are_mirrored_with_their_image(tmp_path: Path) -> None:
    data = CocoImages("train", write_coco(tmp_path), str(tmp_path))
    image, target = data.read(0)
    for seed in range(4):
        torch.manual_seed(seed)
        (moved,), (found,) = _mirrored([image], [target], device=torch.device("cpu"))
        left, top, right, bottom = found["boxes"][0].int().tolist()
        assert bool((moved[0, top:bottom, left:right] > 0.9).all())
        assert bool((moved[0][found["masks"][0] > 0] > 0.9).float().mean() > 0.8)


def test_training_lowers_the_loss_and_judging_gives_precisions(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    task = Detection(settings(tmp_path / "coco"), seed=0)
    bench.networks = {SUBJECT: bench.networks[SUBJECT]}  # one is enough here
    result = task.run(bench)
    assert set(result["rows"][SUBJECT]) == {"bbox", "segm"}
    assert 0 <= result["rows"][SUBJECT]["bbox"]["map"] <= 100
    boxes, masks = task.tables(result)
    assert "boxes" in boxes.title and "masks" in masks.title and len(boxes.lines) == 1


def test_a_box_that_is_right_counts(tmp_path: Path) -> None:
    config = settings(tmp_path, masks=True)
    data = CocoImages("heldout", config.heldout_annotations, config.heldout_folder)

    class Oracle(torch.nn.Module):
        row = 0

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            found = []
            for _ in images:
                _, target = data.read(self.row)
                self.row += 1
                masks = target["masks"][:, None].float()
                found.append({**target, "scores": torch.ones(1), "masks": masks})
            return found

    scores = Detection(config, seed=0)._judge(Oracle(), data, device=torch.device("cpu"))
    assert scores["bbox"]["map"] == pytest.approx(100) == pytest.approx(scores["segm"]["map_50"])
    assert scores["bbox"]["map_small"] == pytest.approx(100)
    assert scores["bbox"]["map_large"] is None, "no object is large"
    (boxes, _) = Detection(config, seed=0).tables({"rows": {"a": scores}})
    assert boxes.lines[0][-1] == "none there" and boxes.lines[0][1] == "100.0"


def test_faster_r_cnn_without_masks(tmp_path: Path) -> None:
    student = ShapeBench(tmp_path).student
    network = build_detector(student, settings(tmp_path, masks=False), num_classes=2)
    assert not hasattr(network.roi_heads, "mask_head") or network.roi_heads.mask_head is None
    with torch.inference_mode():
        (found,) = network.eval()([torch.rand(3, SIDE, SIDE)])
    assert set(found) == {"boxes", "labels", "scores"}


def test_missing_and_foreign_annotations_are_refused(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    missing = settings(tmp_path, train_annotations=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"detection\.train_annotations: got .*none\.json"):
        Detection(missing, seed=0).run(bench)
    other = write_coco(tmp_path / "other", names=("bright", "round"))
    foreign = settings(tmp_path, heldout_annotations=other)
    with pytest.raises(DataError, match=r"got categories \['round'\]"):
        Detection(foreign, seed=0).run(bench)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(DataError, match=r"bad\.json: not readable as COCO"):
        CocoImages("train", str(tmp_path / "bad.json"), "")


def test_categories_have_one_number_by_name(tmp_path: Path) -> None:
    train = CocoImages("train", write_coco(tmp_path / "a", names=("bright", "dark")), "")
    path = Path(write_coco(tmp_path / "b", names=("bright", "dark")))
    content = json.loads(path.read_text())
    content["categories"] = content["categories"][1:]  # dark alone: its first category
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 14]
    path.write_text(json.dumps(content))
    heldout = CocoImages("heldout", str(path), str(path.parent))
    assert heldout.read(1)[1]["labels"].tolist() == [1]
    heldout.number_as(train)
    assert heldout.read(1)[1]["labels"].tolist() == [2], "as in training"


def test_crowds_are_judged_as_crowds(tmp_path: Path) -> None:
    data = CocoImages("heldout", write_coco(tmp_path), str(tmp_path))
    _, learnt = data.read(0)
    _, judged = data.read_judged(0)
    assert len(learnt["boxes"]) == 1 and "iscrowd" not in learnt
    assert judged["iscrowd"].tolist() == [0, 1] and judged["area"].tolist() == [480.0, 480.0]
    assert len(judged["masks"]) == len(judged["labels"]) == 2


def test_objects_without_masks_and_students_of_one_size_are_refused(tmp_path: Path) -> None:
    bench = ShapeBench(tmp_path)
    config = settings(tmp_path / "coco")
    path = Path(config.heldout_annotations)
    content = json.loads(path.read_text())
    del content["annotations"][1]["segmentation"]
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"bare\.json: got objects without a segmentation in 1\.png"
    ):
        Detection(settings(tmp_path / "coco", heldout_annotations=str(bare)), seed=0).run(bench)
    Detection(
        settings(tmp_path / "coco", heldout_annotations=str(bare), masks=False, steps=1), seed=0
    ).run(bench)

    class OneSize(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            assert images.shape[-1] == 16, "one size"
            return [images]

    student = bench.student
    student.backbone = OneSize()  # type: ignore[assignment]
    student.register_parameter("any", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match="a student that takes 16x16 pixels alone"):
        require_any_size(student, image_size=(16, 16))
