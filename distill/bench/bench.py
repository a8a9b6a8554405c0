"""What the tasks of one evaluation share: images, features, networks; made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dreamshard.progress import Progress
from pipeline.images.labelled import LabelledImages, LazyImages

if TYPE_CHECKING:
    import torch

    from distill.bench.representations import Extractor, Statistics
    from distill.configs.student import StudentConfig
    from distill.students.card import StudentCard
    from distill.students.student import Student
    from pipeline.images.source import ImageConfig, ImageSource, SourceConfig

Split = Literal["train", "heldout"]
SUBJECT, UNTRAINED = "distilled student", "random student"
MEASURED = 2048
"""Training images that give the untrained student its batch statistics, at most (count)."""


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
        train_labels: int64 (N,), classes 0..K-1, all of which are there.
        heldout_labels: int64 (M,), of the same classes.
        classes: their K names, for messages.
    """

    representations: Mapping[str, Features]
    train_labels: np.ndarray
    heldout_labels: np.ndarray
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Drawn:
    """Hold some images of a source.

    Args:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), -1 where there is none; None where the source has no labels.
        names: of the classes, by number; empty where they have none.
    """

    images: np.ndarray
    labels: np.ndarray | None
    names: Sequence[str] = ()


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

    def total(self, split: Split) -> int:
        """Return how many images are listed in a split."""
        ...

    def images(self, split: Split) -> LabelledImages | LazyImages:
        """Return the images of a split with labels and masks."""
        ...

    def listed(
        self, train: SourceConfig, heldout: SourceConfig, *, prefix: str
    ) -> Mapping[Split, ImageSource]:
        """List other images, once; `prefix` leads their keys."""
        ...

    def feature_sets(
        self, train: SourceConfig, heldout: SourceConfig, *, prefix: str
    ) -> FeatureSets:
        """Extract every representation of other labelled images; `prefix` leads their keys."""
        ...

    def draw(self, split: Split | SourceConfig, *, count: int, key: str = "") -> Drawn:
        """Draw images of a split or another source, class by class where labels are listed."""
        ...

    def embed(self, images: np.ndarray, *, first: int = 0) -> dict[str, np.ndarray]:
        """Return every representation (N, D) of uint8 (N, H, W, 3), which fit the student."""
        ...


class StudentBench:
    """The bench of one student, as `dreamshard evaluate` uses it.

    Args:
        student: trained.
        card: its description.
        baselines: representation -> what computes it; the students' come after them.
        sources: where the images of both splits come from.
        classes: whether a task reads their labels, so that both must have the same classes.
        image: how they are brought to size.
        random: compare with the student before training, too, with its own or measured batch
            statistics, whichever are better on training images.
        pool: a student's pooled features: of all its maps, or of the deepest alone.
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
        baselines: Mapping[str, Extractor],
        sources: Mapping[Split, SourceConfig],
        classes: bool,
        image: ImageConfig,
        random: bool,
        pool: Literal["all", "last"],
        seed: int,
        micro_batch: int,
        image_size: tuple[int, int],
        folder: Path,
        device: torch.device,
        head: Path | None = None,
        read_outs: ReadOuts | None = None,
    ) -> None:
        students = [UNTRAINED, SUBJECT] if random else [SUBJECT]
        self.names, self.device, self.seed = [*baselines, *students], device, seed
        self.image_size, self._image, self._micro_batch = image_size, image, micro_batch
        self.folder, self.head, self.student_config = folder, head, card.config
        self._student, self._card, self._random = student, card, random
        self.read_outs = read_outs or ReadOuts(None, "")
        self._baselines, self._from, self._classes = baselines, sources, classes
        self._pool: Literal["all", "last"] = pool
        self._images: dict[Split, LabelledImages | LazyImages] = {}
        self._listed: dict[str, dict[Split, ImageSource]] = {}
        self.statistics: Statistics = "initial"

    @cached_property
    def features(self) -> FeatureSets:
        """Every representation of all labelled images, extracted once."""
        return self._extract(self._sources, prefix="")

    def feature_sets(
        self, train: SourceConfig, heldout: SourceConfig, *, prefix: str
    ) -> FeatureSets:
        """Extract every representation of other labelled images; `prefix` leads their keys."""
        return self._extract(self.listed(train, heldout, prefix=prefix), prefix=prefix)

    def listed(
        self, train: SourceConfig, heldout: SourceConfig, *, prefix: str, classes: bool = True
    ) -> dict[Split, ImageSource]:
        """List images to learn from and to judge on, once; `prefix` leads their keys.

        Raises:
            ConfigError, DataError: as `open_pair`.
        """
        from pipeline.images.pair import open_pair

        if prefix not in self._listed:
            self._listed[prefix] = open_pair(train, heldout, prefix=prefix, classes=classes)
        return self._listed[prefix]

    def check(self, *, images: bool) -> None:
        """List the images that the tasks or the untrained student ask for.

        Args:
            images: whether a task reads train_images and heldout_images.

        Raises:
            ConfigError, DataError: as `open_pair`.
        """
        if images or (self._random and self._are_given):
            self._sources  # noqa: B018 - listed once

    def draw(self, split: Split | SourceConfig, *, count: int, key: str = "") -> Drawn:
        """Draw images of a split or another source, class by class where labels are listed.

        Raises:
            DataError: none of them can be used.
        """
        from pipeline.images.pair import draw_pair, read_usable
        from pipeline.images.source import labels_of, open_source

        if isinstance(split, str):
            source, key = self._sources[split], f"{split}_images"
        else:
            source = open_source(split, key=key, part="train")
        numbers = draw_pair({"train": source}, count=count, seed=self.seed)["train"]
        how = {"config": self._image, "size": self.image_size, "seed": self.seed}
        with Progress(key, total=len(numbers)) as progress:
            report = progress.update
            images, labels = read_usable(source, numbers=numbers, key=key, report=report, **how)
        listed = labels_of(source)
        return Drawn(images, labels, listed.classes if listed else ())

    def embed(self, images: np.ndarray, *, first: int = 0) -> dict[str, np.ndarray]:
        """Return every representation (N, D) of uint8 (N, H, W, 3), which fit the student."""
        from distill.bench.representations import embed

        how = {"extractors": self._extractors, "micro_batch": self._micro_batch}
        return embed(images, first_index=first, **how)

    @cached_property
    def _extractors(self) -> dict[str, Extractor]:
        """Representation -> what computes it, in the order of `names`."""
        from distill.bench.representations import student_extractor

        extractors = dict(self._baselines)
        for name in self.names[len(extractors) :]:
            network = self._untrained if name == UNTRAINED else self._student
            extractors[name] = student_extractor(network, device=self.device, pool=self._pool)
        return extractors

    def _extract(self, sources: Mapping[Split, ImageSource], *, prefix: str) -> FeatureSets:
        from distill.bench.representations import extract_all
        from pipeline.images.inputs import ImageInput
        from pipeline.images.labels import Labels
        from pipeline.images.pair import compact
        from pipeline.images.source import labels_of

        extractors = self._extractors
        splits: tuple[Split, Split] = ("train", "heldout")
        how = {"config": self._image, "image_size": self.image_size, "seed": self.seed}
        inputs = [ImageInput(sources[split], **how) for split in splits]
        counts = [source.num_samples or 0 for source in inputs]
        with Progress(f"{prefix}features", total=sum(counts)) as progress:
            (train, train_labels), (heldout, heldout_labels) = (
                extract_all(
                    source,
                    extractors=extractors,
                    key=f"{prefix}{split}_images",
                    micro_batch=self._micro_batch,
                    first_index=first,  # no two images get the same noise from the teacher
                    progress=progress,
                )
                for split, source, first in zip(splits, inputs, (0, counts[0]), strict=True)
            )
        both = {name: Features(train[name], heldout[name]) for name in extractors}
        keys = (f"{prefix}train_images", f"{prefix}heldout_images")
        known, judged, numbers = compact(train_labels, heldout_labels, keys=keys)
        listed = labels_of(sources["train"]) or Labels(train_labels)
        return FeatureSets(both, known, judged, [listed.name(int(n)) for n in numbers])

    @cached_property
    def networks(self) -> Mapping[str, Callable[[], Student]]:
        """Name -> what builds a fresh copy of a student, in training mode; the subject last."""
        import copy

        builders: dict[str, Callable[[], Student]] = {}
        if self._random:
            builders[UNTRAINED] = lambda: copy.deepcopy(self._untrained).cpu().train()
        builders[SUBJECT] = lambda: copy.deepcopy(self._student).cpu().train()
        return builders

    def facts(self) -> dict[str, object]:
        """Return what was asked for: counts of images and dimensions, the random student's form."""
        known: dict[str, object] = {}
        if "_untrained" in self.__dict__:
            known["random_statistics"] = self.statistics
        if "features" not in self.__dict__:
            return known
        features = self.features
        sizes = {name: both.train.shape[1] for name, both in features.representations.items()}
        counts = {"train": len(features.train_labels), "heldout": len(features.heldout_labels)}
        return {"images": counts, "dimensions": sizes, **known}

    def total(self, split: Split) -> int:
        """Return how many images are listed in a split, those that cannot be used among them."""
        return len(self._sources[split])

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
    def _untrained(self) -> Student:
        """The student before training, with the better of its own and measured statistics."""
        from distill.bench.representations import stronger_untrained
        from distill.students.export import untrained_student
        from pipeline.images.pair import draw_pair, read_usable

        student = untrained_student(self._card)
        if not self._are_given:
            return student  # detection alone: its training measures them
        train = self._sources["train"]
        drawn = draw_pair({"train": train}, count=MEASURED, seed=self.seed)["train"]
        images, labels = read_usable(
            train,
            config=self._image,
            size=self.image_size,
            numbers=drawn,
            seed=self.seed,
            key="train_images",
        )
        stronger, self.statistics = stronger_untrained(
            student,
            images,
            labels if self._classes else None,
            device=self.device,
            pool=self._pool,
            seed=self.seed,
        )
        return stronger

    @property
    def _are_given(self) -> bool:
        return any(config.path or config.kind != "auto" for config in self._from.values())

    @property
    def _sources(self) -> dict[Split, ImageSource]:
        own = self._from
        return self.listed(own["train"], own["heldout"], prefix="", classes=self._classes)
