"""Object detection and instance segmentation: torchvision's Mask R-CNN on a student's maps.

Boxes are (left, top, right, bottom) in pixels; annotations are COCO's JSON.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.bench.batches import endless_rows, ordered_rows
from distill.bench.bench import SUBJECT
from distill.bench.fitting import check_layers, fit
from distill.bench.layout import TextTable
from distill.tasks.coco import CocoImages, Target
from dreamshard.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import DetectionConfig
    from distill.students.student import Student

log = logging.getLogger(__name__)
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

    def check(self, bench: Bench) -> None:
        """Read the annotations, and build what the settings ask for once.

        Raises: as `run`, but for a training that diverged.
        """
        train, _ = self._annotated
        student = bench.networks[SUBJECT]()
        require_any_size(student, image_size=bench.image_size)
        check_layers(self.config.optimizer, student, bench=bench)
        build_detector(student, self.config, num_classes=len(train.categories))

    @cached_property
    def _annotated(self) -> tuple[CocoImages, CocoImages]:
        """Images to learn from and to judge on, read once."""
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
        return train, heldout

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {"bbox" | "segm": {"map", ... in per cent, or None}}}}.

        Raises:
            ConfigError: annotations that are not there; a student of one image size.
            DataError: annotations without a box, or without masks where these are wanted; held-out
                categories that training has not.
            DreamshardError: training diverged.
        """
        config, (train, heldout) = self.config, self._annotated
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
