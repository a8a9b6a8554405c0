"""What a run trains on: a source, the levels and labels its method needs, flips and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from distill.data.source import Source
from dreamshard.errors import ConfigError, Problem
from dreamshard.rng import generator
from storage.rows.pick import read_rows
from storage.schema import Level

if TYPE_CHECKING:
    from distill.data.shards import ShardSource

REAL, NUMBER = "real images", "sample number"
"""Names among a batch's targets beside the levels', which have no space."""
SPARSE = 100
"""Outputs of a classifier for each class that occurs, beyond which labels are no class numbers."""


@dataclass(frozen=True)
class Needs:
    """Say what a method needs of its training set.

    Args:
        kinds: of the teacher's levels: feature (maps), soft_label; at least one level of each.
            Empty: it has no teacher.
        labels: the samples' labels.
        share: of each class's samples (0..1]; only with labels.
        classes: of the method's classifier; 0: as many as the labels have, or none.
        views: of the images that the student sees, as the method names them.
        deepest: the student's deepest map, whatever strides the levels have.
        bridged: maps of other resolutions than the student's are taken, too.
        real: real images beside the samples, as many.
        numbers: of the samples in the dataset.
    """

    kinds: tuple[str, ...] = ("feature",)
    labels: bool = False
    share: float = 1.0
    classes: int = 0
    views: tuple[str, ...] = ()
    deepest: bool = False
    bridged: bool = False
    real: bool = False
    numbers: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what two parts of a method need together."""
        return Needs(
            kinds=tuple(dict.fromkeys((*self.kinds, *other.kinds))),
            labels=self.labels or other.labels,
            share=min(self.share, other.share),
            classes=max(self.classes, other.classes),
            views=tuple(sorted({*self.views, *other.views})),
            deepest=self.deepest or other.deepest,
            bridged=self.bridged or other.bridged,
            real=self.real or other.real,
            numbers=self.numbers or other.numbers,
        )


@dataclass(frozen=True)
class TrainingSet:
    """Hold what a run trains on.

    Args:
        source: of the samples, at the version that the run keeps to its end.
        levels: those to distil as the student sees them (cropped), finest first.
        needs: of the method.
        crop: (H, W) in pixels of the random part that the student sees; None: the whole.
        mirror: half of the samples are mirrored left to right.
        seed: of the order, the share of the labels, flips and crops.
        real: of the real images beside the samples, where the method needs them.
    """

    source: Source
    levels: tuple[Level, ...]
    needs: Needs = Needs()
    crop: tuple[int, int] | None = None
    mirror: bool = False
    seed: int = 0
    real: ShardSource | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images a student sees, in pixels."""
        return self.crop or self.source.image_size

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the feature maps, ascending, each once."""
        return tuple(sorted({level.stride for level in self.levels if level.is_map}))

    @property
    def finest(self) -> int:
        """Stride of the finest soft label of maps, in pixels; 0 without any."""
        soft = [level.stride for level in self.levels if level.kind == "soft_label"]
        return min((stride for stride in soft if stride), default=0)

    @property
    def recorded(self) -> dict[str, Level]:
        """The levels as the source has them, by name."""
        by_name = {level.name: level for level in self.source.levels}
        return {level.name: by_name[level.name] for level in self.levels}

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,); -1 = none."""
        assert self.source.stored is not None, "refused where the set is opened"
        return read_rows(self.source.stored, "label", np.arange(self.source.stored.num_samples))

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    @property
    def kept(self) -> np.ndarray | None:
        """Mask, bool (N,), of the share of labelled samples that is read; None: all."""
        if self.needs.share == 1.0:
            return None
        return labelled_share(self.labels, share=self.needs.share, seed=self.seed)

    def check_labels(self) -> None:
        """Refuse labels that no classifier can learn, or that the method's has no output for.

        Raises:
            ConfigError: naming them.
        """
        assert self.source.stored is not None, "refused where the set is opened"
        shown, kept = self.source.stored.valid, self.kept
        found = np.unique(self.labels[shown if kept is None else shown & kept])
        classes = self.needs.classes or self.num_classes
        known = found[found >= 0]
        if len(known) < 2:
            allowed = "two classes or more: there is nothing to tell apart"
            told = f"a dataset with labels {_listed(known) or 'of no sample'} alone"
            raise ConfigError(Problem("data.dataset", told, allowed))
        if not self.needs.classes and classes > SPARSE * max(len(known), SPARSE):
            got = f"{len(known):,} classes numbered up to {classes - 1:,}"
            hint = "Number them from 0, or set supervised.classes to mean it."
            raise ConfigError(Problem("supervised.classes", got, "numbers without wide gaps", hint))
        beyond = found[(found < 0) | (found >= classes)]
        if len(beyond):
            got = f"labels {_listed(beyond)}"
            hint = (
                "Set supervised.classes, or supervised.label_share below 1 to leave out -1 (none)."
            )
            raise ConfigError(Problem("supervised.classes", got, f"0..{classes - 1}", hint))

    def offers(self, needs: Needs) -> bool:
        """Tell whether it has the kinds of levels and the labels that a part of a method needs."""
        if needs.labels and not self.source.labelled:
            return False
        return all(any(is_usable(level, [kind]) for level in self.levels) for kind in needs.kinds)

    @property
    def sources(self) -> tuple[Source | ShardSource, ...]:
        """Of the samples and, where they are read, of the real images beside them."""
        return (self.source,) if self.real is None else (self.source, self.real)

    def at(self, version: str, *, real: str = "") -> TrainingSet:
        """Return the same at other versions, where a resumed run began.

        Args:
            version: of the source.
            real: of the real images; empty: as they are now.
        """
        at_version = self
        if version != self.source.version:
            at_version = replace(at_version, source=self.source.at(version))
        if self.real is not None and real not in ("", self.real.version):
            at_version = replace(at_version, real=self.real.at(real))
        return at_version


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:5].tolist())) + (" ..." if len(numbers) > 5 else "")


def is_usable(level: Level, kinds: Sequence[str]) -> bool:
    """Tell whether a level is of one of the kinds; a map, averaged over space, is an embedding."""
    return (
        ("soft_label" in kinds and level.kind == "soft_label")
        or ("feature" in kinds and level.is_map)
        or ("embedding" in kinds and (level.is_vector or level.is_map))
    )


def labelled_share(labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """Draw a share of each class's samples, at least one of each.

    Args:
        labels: int64 (N,); -1 for none, which is never drawn.
        share: of each class's samples (0..1].
        seed: of the draw; a larger share of the same seed has the smaller one's samples.

    Returns:
        bool (N,).
    """
    kept = np.zeros(len(labels), bool)
    for value in np.unique(labels[labels >= 0]).tolist():
        members = generator(seed, value, 0, "label-share").permutation(
            np.flatnonzero(labels == value)
        )
        kept[members[: max(1, round(share * len(members)))]] = True
    return kept
