"""What the tasks of one evaluation share: images, features, networks; made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dreamshard.progress import Progress
from pipeline.images.labelled import LabelledImages, LazyImages

if TYPE_CHECKING:
    import torch

    from distill.bench.representations import Extractor
    from distill.configs.student import StudentConfig
    from distill.students.card import StudentCard
    from distill.students.student import Student
    from pipeline.images.source import ImageConfig, ImageSource, SourceConfig

Split = Literal["train", "heldout"]
SUBJECT, UNTRAINED = "distilled student", "random student"


@dataclass(frozen=True)
class Features:
    """Hold one representation of all images.

    Args:
        train: float (N, D), of the training images.
        heldout: float (M, D), of the held-out images.
    """

    train: np.ndarray
    heldout: np.ndarray


@dataclass(frozen=True)
class FeatureSets:
    """Hold every representation of the same images, and their labels.

    Args:
        representations: by name; the subject of the evaluation comes last.
        train_labels: int64 (N,).
        heldout_labels: int64 (M,).
    """

    representations: Mapping[str, Features]
    train_labels: np.ndarray
    heldout_labels: np.ndarray


class ReadOuts:
    """Number the read-outs that are trained, in the order in which every run trains them.

    Args:
        folder: for what is kept of them; None: nothing is.
        key: of the evaluation, which another one's read-outs are told from.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.key, self._folder, self._count = key, folder, 0

    def next(self) -> Path | None:
        """Return the folder of the next read-out."""
        self._count += 1
        return self._folder and self._folder / f"{self._count:03d}"


class Bench(Protocol):
    """What a task may ask for."""

    names: list[str]
    """The representations, the subject last."""
    device: torch.device
    seed: int
    image_size: tuple[int, int]
    student_config: StudentConfig
    """How the student was built."""
    folder: Path
    """Where pictures go."""
    read_outs: ReadOuts
    """Where read-outs are kept until the evaluation is whole."""
    head: Path | None
    """Folder of the student's head of label distillation, if it has one."""

    @property
    def features(self) -> FeatureSets:
        """Every representation of all labelled images, extracted once."""
        ...

    @property
    def networks(self) -> Mapping[str, Callable[[], Student]]:
        """Name -> what builds a fresh copy of a student, in training mode; the subject last."""
        ...

    def images(self, split: Split) -> LabelledImages | LazyImages:
        """Return the images of a split with labels and masks."""
        ...


class StudentBench:
    """The bench of one student, as `dreamshard evaluate` uses it.

    Args:
        student: trained.
        card: its description.
        extractors: representation -> what computes it.
        sources: where the images of both splits come from.
        image: how they are brought to size.
        random: compare with the student before training, too.
        seed: of label draws, read-outs and the teacher's noise.
        micro_batch: images per forward pass (count).
        image_size: (H, W) of the images that judge, in pixels.
        folder: of the run.
        device: where networks run.
        head: folder with the student's logit head, if it has one.
        read_outs: where read-outs are kept until the evaluation is whole; None: they are not.
    """

    def __init__(
        self,
        *,
        student: Student,
        card: StudentCard,
        extractors: Mapping[str, Extractor],
        sources: Mapping[Split, SourceConfig],
        image: ImageConfig,
        random: bool,
        seed: int,
        micro_batch: int,
        image_size: tuple[int, int],
        folder: Path,
        device: torch.device,
        head: Path | None = None,
        read_outs: ReadOuts | None = None,
    ) -> None:
        self.names, self.device, self.seed = list(extractors), device, seed
        self.image_size, self._image, self._micro_batch = image_size, image, micro_batch
        self.folder, self.head, self.student_config = folder, head, card.config
        self._student, self._card, self._random = student, card, random
        self.read_outs = read_outs or ReadOuts(None, "")
        self._extractors, self._from = extractors, sources
        self._images: dict[Split, LabelledImages | LazyImages] = {}

    @cached_property
    def features(self) -> FeatureSets:
        """Every representation of all labelled images, extracted once."""
        from distill.bench.representations import extract_all
        from pipeline.images.inputs import ImageInput

        inputs = [
            ImageInput(
                self._sources[split],
                config=self._image,
                image_size=self.image_size,
                seed=self.seed,
            )
            for split in ("train", "heldout")
        ]
        counts = [source.num_samples or 0 for source in inputs]
        with Progress("features", total=sum(counts)) as progress:
            (train, train_labels), (heldout, heldout_labels) = (
                extract_all(
                    source,
                    extractors=self._extractors,
                    micro_batch=self._micro_batch,
                    first_index=first,  # no two images get the same noise from the teacher
                    progress=progress,
                )
                for source, first in zip(inputs, (0, counts[0]), strict=True)
            )
        both = {name: Features(train[name], heldout[name]) for name in self._extractors}
        return FeatureSets(both, train_labels, heldout_labels)

    @cached_property
    def networks(self) -> Mapping[str, Callable[[], Student]]:
        """Name -> what builds a fresh copy of a student, in training mode; the subject last."""
        import copy

        from distill.students.export import untrained_student

        found: dict[str, Callable[[], Student]] = {}
        if self._random:
            found[UNTRAINED] = lambda: untrained_student(self._card).train()
        found[SUBJECT] = lambda: copy.deepcopy(self._student).cpu().train()
        return found

    def facts(self) -> dict[str, object]:
        """Return how many images and dimensions the features have, if any task asked for them."""
        if "features" not in self.__dict__:
            return {}
        features = self.features
        sizes = {name: both.train.shape[1] for name, both in features.representations.items()}
        counts = {"train": len(features.train_labels), "heldout": len(features.heldout_labels)}
        return {"images": counts, "dimensions": sizes}

    def images(self, split: Split) -> LabelledImages | LazyImages:
        """Return the images of a split with labels and masks; a small set is read once."""
        if split not in self._images:
            from pipeline.images.labelled import open_labelled

            self._images[split] = open_labelled(
                self._sources[split],
                config=self._image,
                size=self.image_size,
                seed=self.seed,
            )
        return self._images[split]

    @cached_property
    def _sources(self) -> dict[Split, ImageSource]:
        from pipeline.images.source import open_source

        return {
            part: open_source(config, key=f"{part}_images", part=part)
            for part, config in self._from.items()
        }
