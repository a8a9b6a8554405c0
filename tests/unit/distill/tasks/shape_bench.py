"""A bench of squares on a ground: two networks, images with labels and masks, no files."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from distill.bench.bench import SUBJECT, UNTRAINED, Features, FeatureSets, ReadOuts, Split
from distill.bench.representations import pixels, student_extractor
from distill.configs.train import StudentConfig
from distill.students.student import Student, build_student
from pipeline.images.labelled import LabelledImages
from tests.unit.pipeline.masked_shapes import shapes

CLASSES = ["ground", "bright", "dark"]
STUDENT = StudentConfig(name="cifar_resnet", settings={"depths": [1, 1, 1], "widths": [8, 12, 16]})


def labelled(count: int, *, seed: int) -> LabelledImages:
    images, masks, labels = zip(*shapes(count, seed=seed), strict=True)
    return LabelledImages(
        images=np.stack(images),
        keys=[f"shape-{number}" for number in range(count)],
        numbers=np.arange(count),
        labels=np.array(labels, np.int64),
        masks=np.stack(masks),
    )


class ShapeBench:
    """Stand in for `distill.bench.bench.StudentBench`; see `distill.bench.bench.Bench`."""

    def __init__(self, folder: Path, *, train: int = 48, heldout: int = 24) -> None:
        self.names, self.device = ["pixels", UNTRAINED, SUBJECT], torch.device("cpu")
        self.seed, self.student_config = 0, STUDENT
        self.image_size, self.folder = (16, 16), folder
        self.head: Path | None = None
        self.read_outs = ReadOuts(None, "")
        self._images = {"train": labelled(train, seed=1), "heldout": labelled(heldout, seed=2)}
        self.student: Student = build_student(STUDENT, strides=[1, 2, 4], seed=0)

    @cached_property
    def features(self) -> FeatureSets:
        train, heldout = self._images["train"], self._images["heldout"]
        extract = student_extractor(copy.deepcopy(self.student), device=self.device)
        found = {}
        for name, extractor in zip(self.names, (pixels, extract, extract), strict=True):
            both = [extractor(part.images, part.numbers) for part in (train, heldout)]
            found[name] = Features(*both)
        assert train.labels is not None and heldout.labels is not None
        return FeatureSets(found, train.labels, heldout.labels)

    @cached_property
    def networks(self) -> Mapping[str, Callable[[], Student]]:
        def build() -> Student:
            return copy.deepcopy(self.student).train()

        return {UNTRAINED: build, SUBJECT: build}

    def images(self, split: Split) -> LabelledImages:
        return self._images[split]
