"""Object detection and instance segmentation: torchvision's Mask R-CNN on a student's maps.

Boxes are (left, top, right, bottom) in pixels; annotations are COCO's JSON.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.bench.batches import endless_rows, ordered_rows
from distill.bench.fitting import fit
from distill.bench.layout import TextTable
from dreamshard.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import DetectionConfig
    from distill.students.student import Student

log = logging.getLogger(__name__)
Target = dict[str, Tensor]
ANCHOR_CELLS = 8
"""Side of a level's anchors in cells of its map: 32 pixels at stride 4, as in the paper of FPN."""
MISSING = "none there"
"""What a table shows for a size of which there are no objects."""
SHOWN = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large")


class Detection:
    """Train Mask R-CNN on every network from the same seed, and judge it by COCO's mean precision.

    One process on one device. Images are mirrored half of the time; nothing else is augmented.

    Source: DreamTeacher, section 4 (COCO and BDD100K with Mask R-CNN and FPN).
    """

    def __init__(self, config: DetectionConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        what = "boxes and masks" if self.config.masks else "boxes"
        return f"Mask R-CNN, {what}, {self.config.steps:,} steps of {self.config.batch_size}"

    def count(self, bench: Bench) -> int:
        """Return how many steps `run` will report."""
        return len(bench.networks) * self.config.steps

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {"bbox" | "segm": {"map", ... in per cent, or None}}}}.

        Raises:
            ConfigError: annotations that are not there; a student of one image size.
            DataError: annotations without a box, or without masks where these are wanted; held-out
                categories that training has not.
            DreamshardError: training diverged.
        """
        config = self.config
        train = CocoImages("train", config.train_annotations, config.train_folder)
        heldout = CocoImages("heldout", config.heldout_annotations, config.heldout_folder)
        unknown = set(heldout.categories.values()) - set(train.categories.values())
        if unknown:
            raise DataError(
                f"detection.heldout_annotations: got categories {sorted(unknown)}, allowed those "
                "of the training images."
            )
        heldout.number_as(train)
        if unseen := sorted(heldout.boxed() - train.boxed()):
            log.warning("detection: no training box has category %s", ", ".join(unseen))
        if config.masks:
            train.require_masks()
            heldout.require_masks()
        rows: dict[str, Any] = {}
        for name, build in bench.networks.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                student = build()
                require_any_size(student, image_size=bench.image_size)
                network = build_detector(student, config, num_classes=len(train.categories))
                network.to(bench.device).train()
                self._train(network, train, student=student, bench=bench, report=report)
            rows[name] = self._judge(network, heldout, device=bench.device)
        return {"rows": rows}

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out, one table for boxes and one for masks."""
        tables = []
        for kind, title in (("bbox", "boxes"), ("segm", "masks")):
            rows = {name: row[kind] for name, row in result["rows"].items() if kind in row}
            lines = [
                [name, *(MISSING if row[key] is None else f"{row[key]:.1f}" for key in SHOWN)]
                for name, row in rows.items()
            ]
            if lines:
                header = ["network", "AP", "AP50", "AP75", "small", "medium", "large"]
                tables.append(TextTable(f"mean average precision of {title}, %", header, lines))
        return tables

    def _train(
        self,
        network: nn.Module,
        data: CocoImages,
        *,
        student: Student,
        bench: Bench,
        report: Callable[[], None],
    ) -> None:
        config, device = self.config, bench.device
        order = endless_rows(data.annotated, batch_size=config.batch_size, seed=self.seed)
        with ThreadPoolExecutor(config.threads, thread_name_prefix="decode") as pool:
            batches = _ahead(pool, data, order)

            def next_loss() -> Tensor:
                images, targets = _mirrored(*next(batches), device=device)
                if not config.masks:
                    targets = [{k: v for k, v in t.items() if k != "masks"} for t in targets]
                losses: dict[str, Tensor] = network(images, targets)
                return torch.stack(list(losses.values())).sum()

            fit(
                network,
                config=config.optimizer,
                steps=config.steps,
                batch_size=config.batch_size,
                next_loss=next_loss,
                student=student,
                bench=bench,
                report=report,
                skip=lambda: next(batches),
            )

    def _judge(
        self, network: nn.Module, data: CocoImages, *, device: torch.device
    ) -> dict[str, dict[str, float | None]]:
        from torchmetrics.detection import MeanAveragePrecision

        config = self.config
        kinds = ["bbox", "segm"] if config.masks else ["bbox"]
        metrics = {kind: MeanAveragePrecision(iou_type=kind) for kind in kinds}  # type: ignore[arg-type]
        with (
            ThreadPoolExecutor(config.threads, thread_name_prefix="decode") as pool,
            torch.inference_mode(),
        ):
            for rows in ordered_rows(len(data), batch_size=config.batch_size):
                pairs = pool.map(data.read_judged, rows.tolist())
                images, targets = zip(*pairs, strict=True)
                detections = network([image.to(device) for image in images])
                detections = [{k: v.cpu() for k, v in each.items()} for each in detections]
                for each in detections:
                    if "masks" in each:
                        each["masks"] = each["masks"][:, 0] > 0.5
                for metric in metrics.values():
                    metric.update(detections, list(targets))
        return {kind: precisions(metric.compute()) for kind, metric in metrics.items()}


def precisions(metrics: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return COCO's precisions in per cent; None (COCO: -1) where no such object is annotated."""
    values = {key: float(metrics[key]) for key in SHOWN}
    return {key: None if value < 0 else 100.0 * value for key, value in values.items()}


class PyramidBackbone(nn.Module):
    """A student with torchvision's FPN on its maps, as torchvision's detectors want a backbone.

    Args:
        student: gives maps, finest first.
        width: channels of every level.
    """

    def __init__(self, student: Student, *, width: int) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.student, self.out_channels = student, width
        self.names = [str(number) for number in range(len(student.channels))]
        self.fpn = FeaturePyramidNetwork(
            list(student.channels), width, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map (B, 3, H, W) to {"0": ..., "1": ..., "pool": ...}, each (B, width, h, w)."""
        return self.fpn(OrderedDict(zip(self.names, self.student(images), strict=True)))


def build_detector(student: Student, config: DetectionConfig, *, num_classes: int) -> nn.Module:
    """Build Mask R-CNN, or Faster R-CNN without masks, on a student.

    Args:
        student: the backbone; its normalisation is applied by the detector.
        config: sizes and width.
        num_classes: categories, the background not among them.
    """
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    backbone = PyramidBackbone(student, width=config.width)
    strides = [*student.strides, 2 * student.strides[-1]]
    anchors = AnchorGenerator(
        sizes=tuple((ANCHOR_CELLS * stride,) for stride in strides),
        aspect_ratios=((0.5, 1.0, 2.0),) * len(strides),
    )
    settings: dict[str, Any] = {
        "num_classes": num_classes + 1,
        "min_size": config.size,
        "max_size": config.longest,
        "image_mean": list(student.mean),
        "image_std": list(student.std),
        "rpn_anchor_generator": anchors,
        "box_roi_pool": MultiScaleRoIAlign(backbone.names, output_size=7, sampling_ratio=2),
    }
    if not config.masks:
        return FasterRCNN(backbone, **settings)
    settings["mask_roi_pool"] = MultiScaleRoIAlign(backbone.names, output_size=14, sampling_ratio=2)
    return MaskRCNN(backbone, **settings)


def require_any_size(student: Student, *, image_size: tuple[int, int]) -> None:
    """Refuse a student that takes images of one size only: detectors' images have many.

    Raises: ConfigError.
    """
    from distill.students.student import size_refusal

    error = size_refusal(student, image_size=(2 * image_size[0], 2 * image_size[1]))
    if error is not None:
        got = f"a student that takes {image_size[0]}x{image_size[1]} pixels alone ({error})"
        allowed = "one that takes images of any size, as convolutional ones do"
        raise ConfigError(Problem("tasks", f"detection for {got}", allowed)) from error


class CocoImages:
    """Images with boxes and masks, as COCO's JSON lists them.

    Args:
        split: train or heldout, for messages.
        annotations: the JSON file.
        folder: of the images.

    Attributes:
        categories: COCO's number of a category -> its name; the network's are 1.. in this order.
        annotated: int64 (M,), the rows that have a box.
    """

    def __init__(self, split: str, annotations: str, folder: str) -> None:
        import contextlib
        import io

        from pycocotools.coco import COCO

        key = f"detection.{split}_annotations"
        if not Path(annotations).is_file():
            raise ConfigError(Problem(key, annotations or "nothing", "a COCO JSON file"))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            try:
                self._coco: Any = COCO(annotations)
            except (ValueError, KeyError, AssertionError, TypeError) as error:
                raise DataError(f"{annotations}: got {error}, allowed COCO's JSON.") from error
        self._folder, self._path = Path(folder), annotations
        self._images = sorted(self._coco.getImgIds())
        numbers = sorted(self._coco.getCatIds())
        self.categories = {number: str(self._coco.cats[number]["name"]) for number in numbers}
        names = list(self.categories.values())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{annotations}: got several categories named {twice}, allowed one.")
        self._class_of = {number: place for place, number in enumerate(numbers, 1)}
        has_box = [bool(self._boxes(image)) for image in self._images]
        self.annotated = np.flatnonzero(has_box).astype(np.int64)
        if not len(self.annotated):
            raise DataError(f"{annotations}: got no box of any area, allowed at least one.")

    def __len__(self) -> int:
        return len(self._images)

    def boxed(self) -> set[str]:
        """Name the categories that a box has."""
        numbers = {each["category_id"] for image in self._images for each in self._boxes(image)}
        return {self.categories[number] for number in numbers}

    def number_as(self, other: CocoImages) -> None:
        """Give categories the numbers that those of the same name have in other annotations."""
        numbers = {name: other._class_of[number] for number, name in other.categories.items()}
        self._class_of = {number: numbers[name] for number, name in self.categories.items()}

    def require_masks(self) -> None:
        """Refuse objects without a mask.

        Raises: DataError naming the first images that have one.
        """
        bare = [
            str(self._coco.imgs[image]["file_name"])
            for image in self._images
            if any(not each.get("segmentation") for each in self._boxes(image))
        ]
        if bare:
            shown = ", ".join(bare[:3]) + (f" and {len(bare) - 3} more" if len(bare) > 3 else "")
            raise DataError(
                f"{self._path}: got objects without a segmentation in {shown}, allowed a mask for "
                "every box. Set detection.masks to false."
            )

    def read_judged(self, row: int) -> tuple[Tensor, Target]:
        """Return what `read` does with crowds among the objects, "iscrowd" and "area".

        COCO's evaluation forgives what is found inside a crowd, and tells sizes by the annotated
        area.
        """
        objects = self._boxes(self._images[row], crowds=True)
        image, target = self._read(row, objects)
        target["iscrowd"] = torch.tensor([int(each.get("iscrowd", 0)) for each in objects])
        boxes = [each["bbox"] for each in objects]
        areas = [
            float(each.get("area", box[2] * box[3]))
            for each, box in zip(objects, boxes, strict=True)
        ]
        target["area"] = torch.tensor(areas)
        return image, target

    def read(self, row: int) -> tuple[Tensor, Target]:
        """Return an image, float32 (3, H, W) in 0..1, and its boxes, labels and masks.

        Raises:
            DataError: an image that cannot be read.
        """
        return self._read(row, self._boxes(self._images[row]))

    def _read(self, row: int, objects: list[dict[str, Any]]) -> tuple[Tensor, Target]:
        from PIL import Image

        number = self._images[row]
        path = self._folder / str(self._coco.imgs[number]["file_name"])
        try:
            pixels = np.array(Image.open(path).convert("RGB"))
        except OSError as error:
            raise DataError(f"{path}: got {error}, allowed an image.") from error
        boxes = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [self._coco.annToMask(each) for each in objects if each.get("segmentation")]
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor(
                [self._class_of[each["category_id"]] for each in objects], dtype=torch.int64
            ),
        }
        if len(masks) == len(objects):
            stacked = np.stack(masks) if masks else np.zeros((0, *pixels.shape[:2]), np.uint8)
            target["masks"] = torch.from_numpy(stacked).to(torch.uint8)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255, target

    def _boxes(self, image: int, *, crowds: bool = False) -> list[dict[str, Any]]:
        """Return an image's objects with an area; to learn from, those above a pixel a side."""
        objects, least = self._coco.imgToAnns.get(image, []), 0 if crowds else 1
        return [
            each
            for each in objects
            if (crowds or not each.get("iscrowd")) and min(each["bbox"][2:]) > least
        ]


def _ahead(
    pool: ThreadPoolExecutor, data: CocoImages, order: Iterator[np.ndarray]
) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """Yield batches, the next one read while this one is used."""
    waiting = [pool.submit(data.read, int(row)) for row in next(order)]
    while True:
        following = [pool.submit(data.read, int(row)) for row in next(order)]
        pairs = [future.result() for future in waiting]
        yield [image for image, _ in pairs], [target for _, target in pairs]
        waiting = following


def _mirrored(
    images: list[Tensor], targets: list[Target], *, device: torch.device
) -> tuple[list[Tensor], list[Target]]:
    """Mirror half of the images with their boxes and masks, and bring all to the device."""
    out: list[Tensor] = []
    moved: list[Target] = []
    for image, target in zip(images, targets, strict=True):
        target = dict(target)
        if float(torch.rand(())) < 0.5:
            width = image.shape[-1]
            image = image.flip(-1)
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            target["boxes"] = boxes
            if "masks" in target:
                target["masks"] = target["masks"].flip(-1)
        out.append(image.to(device))
        moved.append({name: value.to(device) for name, value in target.items()})
    return out, moved
