"""Semantic segmentation on a student's maps, with all training masks or a few.

Shapes: B images, K classes, H and W pixels.
"""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.bench.augment import crop_and_flip
from distill.bench.batches import Images, endless_rows, normalised, ordered_rows
from distill.bench.bench import SUBJECT
from distill.bench.fitting import check_layers, fit
from distill.bench.layout import TextTable
from distill.modules.heads import FcnHead, UperHead, load_head
from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.images.labelled import (
    check_classes,
    count_classes,
    draw_labelled,
    require_classes,
)
from pipeline.learning.device import on_device

if TYPE_CHECKING:
    from distill.bench.bench import Bench
    from distill.configs.tasks import SegmentationConfig
    from distill.students.student import Student

log = logging.getLogger(__name__)
PICTURE = "segmentation.png"
COUNTS = "segmentation-counts.npz"
"""Pixels by true and found class of every held-out image: `keys`, and `NETWORK/IMAGES` (N, K, K).

Scores of a part of the images, or of resampled ones, need no second training.
"""
KEEP_COUNTS = 1 << 28
"""Counts up to this size are kept (bytes per read-out): 2,000 images of 150 classes take 180 MB."""


class Segmenter(nn.Module):
    """A student and a head that gives logits for every pixel."""

    def __init__(self, student: Student, head: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.student, self.head, self.frozen = student, head, frozen
        student.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Segmenter:
        """Set training mode; a frozen student keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.student.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to float32 logits (B, K, H, W)."""
        logits = self.head(self.student(images)).float()
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear")


@dataclass(frozen=True)
class Judged:
    """What a read-out found in N held-out images.

    Args:
        counts: int32 (N, K, K), pixels of every image by true and found class.
        keys: N texts, the source's names of the images.
        shown: uint8 (M, H, W), the classes found in the first images.
    """

    counts: np.ndarray
    keys: list[str]
    shown: np.ndarray


class Segmentation:
    """Train a read-out on every network, on the same images from the same seed, and judge it.

    The intersection over union of a class is summed over all held-out pixels; the mean is over the
    classes that are there, in truth or in the prediction.

    Source: DreamTeacher, section 4 (UPerNet, label-efficient) and table of the frozen FCN read-out.
    """

    def __init__(self, config: SegmentationConfig, *, seed: int) -> None:
        self.config, self.seed = config, seed

    def describe(self) -> str:
        """Say in one line what is measured."""
        config = self.config
        how = "a frozen" if config.frozen else "a fine-tuned"
        return f"segmentation, {config.head} on {how} backbone, {config.steps:,} steps"

    def count(self, bench: Bench) -> int:
        """Return how many steps `run` will report."""
        return len(bench.networks) * len(self.config.shots) * self.config.steps

    def check(self, bench: Bench) -> None:
        """Compare what is asked for with the images and the student there are.

        Raises: ConfigError: as `run`; layer decay for a backbone that has none.
        """
        self._require_shots(bench.total("train"))
        student = bench.networks[SUBJECT]()
        check_layers(self.config.optimizer, student, bench=bench)
        self._build(student, bench, subject=True)

    def run(self, bench: Bench, *, report: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Return {"rows": {name: {images: {"mean": mIoU in per cent, "accuracy", "classes"}}}}.

        Raises:
            ConfigError: more images asked for than there are; a distilled head that does not fit.
            DataError: images without masks, classes that are not named or in no mask, masks
                without a class.
            DreamshardError: training diverged.
        """
        train, heldout = bench.images("train"), bench.images("heldout")
        total = len(train)
        self._require_shots(total)
        drawn = self._draws(total)
        learnt = np.unique(np.concatenate(list(drawn.values())))
        pixels = self._pixels(train, rows=learnt, split="train")
        self._require(pixels, all_used=len(learnt) == total and 0 in self.config.shots)
        judged = self._pixels(heldout, rows=np.arange(len(heldout)), split="heldout")
        self._compare(pixels[0], judged)
        self._build(bench.networks[SUBJECT](), bench, subject=True)  # its head fits, or we hear now
        table: dict[str, dict[str, Any]] = {}
        guesses: dict[str, np.ndarray] = {}
        counts: dict[str, Any] = {}
        for name, build in bench.networks.items():
            table[name] = {}
            for column, chosen in drawn.items():
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    network = self._build(build(), bench, subject=name == SUBJECT)
                    network = on_device(network, bench.device).train()
                    self._train(network, train, rows=chosen, bench=bench, report=report)
                result = self._judge(network, heldout)
                table[name][column] = {"images": len(chosen), **self._cell(result.counts)}
                guesses[name] = result.shown
                if result.counts.nbytes <= KEEP_COUNTS:
                    counts |= {"keys": np.array(result.keys), f"{name}/{column}": result.counts}
        if counts:
            np.savez_compressed(bench.folder / COUNTS, **counts)
        if self.config.pictures:
            self._draw(bench.folder / PICTURE, heldout, guesses)
        return {"rows": table, "classes": self.config.classes}

    def _require_shots(self, total: int) -> None:
        if max(self.config.shots) > total:
            allowed = f"up to {total}, the training images (0: all)"
            raise ConfigError(Problem("segmentation.shots", str(self.config.shots), allowed))

    def _draws(self, total: int) -> dict[str, np.ndarray]:
        """Return the rows to learn from, by column."""
        config = self.config
        return {
            str(shots or "all"): draw_labelled(
                total, count=shots or total, seed=self.seed, draw=config.draw
            )
            for shots in config.shots
        }

    def tables(self, result: Mapping[str, Any]) -> list[TextTable]:
        """Lay a result of `run` out: the means, then every class of the last column."""
        rows = result["rows"]
        columns = list(next(iter(rows.values())))
        lines = [[name, *(f"{row[c]['mean']:.1f}" for c in columns)] for name, row in rows.items()]
        header = ["network", *(f"{column} images" for column in columns)]
        tables = [TextTable("mean intersection over union, %", header, lines)]
        lines = [
            [name, *(_percent(row[columns[-1]]["classes"][c]) for c in result["classes"])]
            for name, row in rows.items()
        ]
        title = f"intersection over union by class, {columns[-1]} images, %"
        return [*tables, TextTable(title, ["network", *result["classes"]], lines)]

    def _pixels(self, images: Images, *, rows: np.ndarray, split: str) -> tuple[np.ndarray, int]:
        """Check masks; count their pixels by class, int64 (K,), and those of no class."""
        config = self.config
        total, ignored = np.zeros(len(config.classes), np.int64), 0
        for at in ordered_rows(len(rows), batch_size=256):
            part = images.rows(rows[at])
            if part.masks is None:
                raise DataError(
                    f"{split}_images: got images without masks, allowed a class for every pixel. "
                    f"Set {split}_images.mask_column."
                )
            check_classes(
                part.masks,
                num_classes=len(config.classes),
                ignore=config.ignore,
                what="mask",
                keys=part.keys,
                empty=split == "heldout",
            )
            total += count_classes(part.masks, num_classes=len(config.classes))
            ignored += int((part.masks == config.ignore).sum())
        return total, ignored

    def _require(self, counted: tuple[np.ndarray, int], *, all_used: bool) -> None:
        """Refuse training masks without what they are to teach; name what a draw has not."""
        config, (pixels, ignored) = self.config, counted
        expected = [place for place, n in enumerate(config.classes) if n not in config.absent]
        missing = require_classes(
            pixels[expected],
            ignored,
            classes=[config.classes[place] for place in expected],
            ignore=config.ignore,
            key="train_images",
            all_of_them=all_used,
        )
        if missing:
            log.warning(
                "train_images: no pixel of class %s in the images drawn", ", ".join(missing)
            )

    def _compare(self, learnt: np.ndarray, counted: tuple[np.ndarray, int]) -> None:
        """Refuse held-out masks that judge nothing; name classes that only one side has."""
        config, (judged, ignored) = self.config, counted
        known = np.flatnonzero(learnt)
        require_classes(
            judged[known],
            ignored,
            classes=[config.classes[place] for place in known],
            ignore=config.ignore,
            key="heldout_images",
        )
        for these, those, what in (
            (learnt, judged, "heldout_images: no pixel of class %s, which is learnt"),
            (judged, learnt, "heldout_images: pixels of class %s, which no training mask has"),
        ):
            names = [config.classes[place] for place in np.flatnonzero((these > 0) & (those == 0))]
            if names:
                log.warning(what, ", ".join(names))

    def _build(self, student: Student, bench: Bench, *, subject: bool) -> Segmenter:
        """Put a head on a student; only the subject may have one that was trained before."""
        config, classes = self.config, len(self.config.classes)
        if config.head == "fcn":
            head: nn.Module = FcnHead(student.channels, num_classes=classes)
        else:
            head = UperHead(student.channels, num_classes=classes, width=config.width)
        if config.head == "distilled" and subject:
            load_head(head, bench.head, num_classes=classes)
        return Segmenter(student, head, frozen=config.frozen)

    def _train(
        self,
        network: Segmenter,
        images: Images,
        *,
        rows: np.ndarray,
        bench: Bench,
        report: Callable[[], None],
    ) -> None:
        config, device = self.config, next(network.parameters()).device
        order = endless_rows(rows, batch_size=config.batch_size, seed=self.seed)

        def next_loss() -> Tensor:
            batch = images.rows(next(order))
            assert batch.masks is not None
            pixels = normalised(batch.images, student=network.student, device=device)
            masks = torch.from_numpy(batch.masks.astype(np.int64)).to(device)
            pixels, moved = crop_and_flip(pixels, masks, smallest=config.smallest_crop)
            assert moved is not None
            summed = F.cross_entropy(
                network(pixels), moved, ignore_index=config.ignore, reduction="sum"
            )
            return summed / (moved != config.ignore).sum().clamp(min=1)

        fit(
            network,
            config=config.optimizer,
            steps=config.steps,
            batch_size=config.batch_size,
            next_loss=next_loss,
            student=network.student,
            bench=bench,
            precision=config.precision,
            report=report,
            skip=lambda: next(order),
        )

    def _judge(self, network: Segmenter, images: Images) -> Judged:
        """Count pixels by true and found class, image by image."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        config, device = self.config, next(network.parameters()).device
        counts, shown, keys = [], [], []
        with torch.inference_mode():
            for rows in ordered_rows(len(images), batch_size=config.batch_size):
                batch = images.rows(rows)
                assert batch.masks is not None
                keys += batch.keys
                pixels = normalised(batch.images, student=network.student, device=device)
                guess = network(pixels).argmax(dim=1)
                truth = torch.from_numpy(batch.masks.astype(np.int64)).to(device)
                for pair in zip(guess, truth, strict=True):
                    confusion = multiclass_confusion_matrix(
                        *pair, num_classes=len(config.classes), ignore_index=config.ignore
                    )
                    counts.append(confusion.cpu().numpy().astype(np.int32))
                if rows[0] < config.pictures:
                    shown.append(guess.cpu().numpy().astype(np.uint8))
        return Judged(np.stack(counts), keys, np.concatenate(shown) if shown else np.empty(0))

    def _cell(self, counts: np.ndarray) -> dict[str, Any]:
        scores = scores_of(counts.sum(axis=0, dtype=np.float64))
        classes = dict(zip(self.config.classes, scores.pop("iou"), strict=True))
        return {**scores, "classes": classes}

    def _draw(self, path: Path, images: Images, guesses: Mapping[str, np.ndarray]) -> None:
        """Draw image, truth and every network's last prediction side by side."""
        from dreamshard.pictures import image_grid

        batch = images.rows(np.arange(min(self.config.pictures, len(images))))
        assert batch.masks is not None
        colours = palette(len(self.config.classes))
        cells = []
        for row, (pixels, mask) in enumerate(zip(batch.images, batch.masks, strict=True)):
            cells += [pixels, colours[mask]]
            cells += [colours[guess[row]] for guess in guesses.values()]
        columns = 2 + len(guesses)
        path.write_bytes(image_grid(np.stack(cells), columns=columns, cell_px=240))


def scores_of(confusion: np.ndarray) -> dict[str, Any]:
    """Return "mean" IoU and "accuracy" in per cent, and "iou" per class (None: not there).

    Args:
        confusion: float (K, K), pixels by true and found class.
    """
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = [100.0 * float(h / u) if u else None for h, u in zip(hits, union, strict=True)]
    defined = [value for value in iou if value is not None]
    accuracy = 100.0 * float(hits.sum() / max(1.0, confusion.sum()))
    return {"mean": float(np.mean(defined)), "accuracy": accuracy, "iou": iou}


def palette(num_classes: int) -> np.ndarray:
    """Return a colour for every mask value, uint8 (256, 3); values without a class are black."""
    colours = np.zeros((256, 3), np.uint8)
    for number in range(num_classes):
        hue, level = (0.618 * number) % 1, (0.95, 0.7, 0.45)[number % 3]
        colours[number] = np.rint(255 * np.array(colorsys.hsv_to_rgb(hue, 0.75, level)))
    return colours


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
