"""Images to train on and images to judge on out of one source that has no such parts of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dreamshard.config.reads import unread
from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign import trusted
from pipeline.images.labels import Labels
from pipeline.images.listing import Passed
from pipeline.images.source import (
    SOURCES,
    ImageSource,
    Record,
    SourceConfig,
    infer_kind,
    labels_of,
)
from pipeline.images.sources.parquet import ParquetSource

PARTS = ("train", "heldout", "all")
WHOLE = ("folder", "parquet", "webdataset")
"""Kinds that can be parted: those that tell every image's bytes by the listing, or by reading."""


class FifthsSource:
    """Four fifths of a path's images (split train), or the other fifth (split heldout).

    An image's bytes say where it belongs: neither its name nor what is added later moves it, and
    copies of an image are never on both sides.
    """

    kind = "fifths"

    def __init__(self, config: SourceConfig) -> None:
        part = config.split or "train"
        if part not in PARTS:
            raise ConfigError(Problem("source.split", part, " | ".join(PARTS)))
        kind = infer_kind(config.path)
        if kind not in WHOLE:
            hint = "Such a source has parts of its own: name them with source.split."
            raise ConfigError(Problem("source.kind", f"fifths of {kind}", " | ".join(WHOLE), hint))
        settings = SourceConfig(
            kind=kind,
            path=config.path,
            key_column=config.key_column,
            image_column=config.image_column,
            label_column=config.label_column,
            mask_column=config.mask_column,
            class_folders=config.class_folders,
            allow_unreadable=config.allow_unreadable,
        )
        if problems := list(unread(settings)):
            raise ConfigError([item.under("source") for item in problems])
        whole: ImageSource = trusted.listed(kind, table=SOURCES)(settings)
        self._whole, self._path = whole, config.path
        self.passed: Passed = getattr(whole, "passed", Passed())
        evidence = _each_image(whole)
        heldout = evidence % np.uint64(5) == 0
        kept = {"train": ~heldout, "heldout": heldout, "all": np.ones(len(evidence), bool)}[part]
        self._places = np.flatnonzero(kept)
        if len(evidence) and not len(self._places):
            raise DataError(
                f"source: got none of {len(evidence)} images in part {part} of {config.path}, "
                "allowed a source of some dozen images. Give images of their own to judge on."
            )
        self.evidence = evidence[kept]
        self.rule = f"{whole.rule};fifths-1;{part}"
        self.has_labels, self.has_masks = whole.has_labels, whole.has_masks
        self.labels = self._labels(labels_of(whole))

    def __len__(self) -> int:
        return len(self._places)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._whole.entry(int(self._places[index]))

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read samples of the whole source."""
        return self._whole.read([int(self._places[index]) for index in indices])

    def _labels(self, known: Labels | None) -> Labels | None:
        if known is None:
            return None
        errors = {
            row: known.errors[place]
            for row, place in enumerate(self._places.tolist())
            if place in known.errors
        }
        return replace(known, numbers=known.numbers[self._places], errors=errors)


def _each_image(source: ImageSource) -> np.ndarray:
    """Return what every image's bytes are, uint64 (N,).

    The listing of a Parquet file tells that of groups of rows, not of a row: there each is read.
    """
    if isinstance(source, ParquetSource):
        return source.each_image()
    return np.asarray(source.evidence, np.uint64)  # type: ignore[attr-defined]
