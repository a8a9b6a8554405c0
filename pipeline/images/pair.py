"""Two sources that must agree: images to learn from and images to judge on, with one class table.

Shapes: N images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from dreamshard.errors import DataError
from dreamshard.rng import generator
from pipeline.images.inputs import ImageInput
from pipeline.images.labels import Labels, absent, renumbered
from pipeline.images.source import (
    ImageConfig,
    ImageSource,
    Record,
    SourceConfig,
    evidence_of,
    labelled,
    labels_of,
    open_source,
)

Part = Literal["train", "heldout"]
AT_ONCE = 256
"""Images prepared per call (count)."""

log = logging.getLogger(__name__)


class Renumbered:
    """Show a source with other class numbers.

    Args:
        source: opened images.
        labels: of all its images.
    """

    def __init__(self, source: ImageSource, labels: Labels) -> None:
        self.kind, self.rule = source.kind, source.rule
        self.has_labels, self.has_masks = source.has_labels, source.has_masks
        self.evidence, self.passed = evidence_of(source), getattr(source, "passed", None)
        self.labels, self._source = labels, source

    def __len__(self) -> int:
        return len(self._source)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._source.entry(index)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read samples, with the numbers of their classes here."""
        return labelled(self, indices, self._source.read(indices))


def open_pair(
    train: SourceConfig, heldout: SourceConfig, *, prefix: str = "", classes: bool = True
) -> dict[Part, ImageSource]:
    """List the images to learn from and those to judge on, and bring their classes together.

    Args:
        train, heldout: which.
        prefix: of their dotted keys, `PREFIXtrain_images` and `PREFIXheldout_images`.
        classes: whether the labels of both are compared; what is judged by masks needs none.

    Raises:
        ConfigError: as `open_source`.
        DataError: held-out classes that no training image has; as `open_source`.
    """
    keys: dict[Part, str] = {part: f"{prefix}{part}_images" for part in ("train", "heldout")}
    known = open_source(train, key=keys["train"], part="train")
    judged = open_source(heldout, key=keys["heldout"], part="heldout")
    _say_shared(known, judged, key=keys["heldout"], other=keys["train"])
    mine, theirs = labels_of(judged), labels_of(known)
    if classes and mine is not None and theirs is not None:
        mine = renumbered(mine, like=theirs, key=keys["heldout"], other=keys["train"])
        judged = Renumbered(judged, mine)
        if (mine.numbers >= 0).any() and (missing := absent(mine, like=theirs)):
            shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
            log.warning(
                "%s: no image of %d classes that are learnt (%s)",
                keys["heldout"], len(missing), shown,
            )  # fmt: skip
    return {"train": known, "heldout": judged}


def _say_shared(known: ImageSource, judged: ImageSource, *, key: str, other: str) -> None:
    """Warn of images that are in both sources, as far as the listings tell."""
    ours, theirs = evidence_of(judged), evidence_of(known)
    shared = int((np.isin(ours, theirs) & (ours != 0)).sum())
    if shared:
        log.warning(
            "%s: %d of %d images (of a Parquet file: groups of them) that were compared are in %s, "
            "too: they are judged after having been learnt",
            key, shared, int((ours != 0).sum()), other,
        )  # fmt: skip


def require_labels(
    labels: np.ndarray | None, *, key: str, keys: Sequence[str] = (), total: int = 0
) -> np.ndarray:
    """Return labels if every image has one.

    Args:
        labels: int64 (N,), -1 where there is none; None where the source has no labels.
        key: dotted key of the source, for messages.
        keys: N names of the images, where they are at hand.
        total: images of the source, where the labels are of some of them.

    Raises:
        DataError: saying how many have none, and which is the first.
    """
    if labels is None or (len(labels) and (labels < 0).all() and len(labels) >= total):
        raise DataError(
            f"{key}: got images without labels, allowed labelled ones: classes are learnt. "
            f"Set {key}.label_column or {key}.class_folders."
        )
    missing = np.flatnonzero(labels < 0)
    if len(missing):
        first = f"number {missing[0]}" + (f" ({keys[missing[0]]})" if len(keys) else "")
        raise DataError(
            f"{key}: got {len(missing)} of {len(labels)} images without a label, the first "
            f"{first}, allowed a class for every one. Leave those images out, or give them classes."
        )
    return labels


def compact(
    train: np.ndarray, heldout: np.ndarray, *, keys: tuple[str, str] = ("train", "heldout")
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the classes of training images 0..K-1, whatever their numbers are.

    Args:
        train, heldout: int64 (N,) and (M,), class numbers.
        keys: dotted keys of the two sources, for messages.

    Returns:
        The labels of both by the new numbers, and the old numbers in order, int64 (K,).

    Raises:
        DataError: held-out classes that no training image has, or a single class.
    """
    classes, known = np.unique(train, return_inverse=True)
    unknown = np.setdiff1d(heldout, classes)
    if len(unknown):
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise DataError(
            f"{keys[1]}: got classes {unknown[:10].tolist()}{more} that no image of {keys[0]} has, "
            "allowed its classes alone. Leave those images out, or add images of their classes to "
            f"{keys[0]}."
        )
    if len(classes) == 1:
        raise DataError(
            f"{keys[0]}: got images of one class alone ({classes[0]}), allowed two classes or more:"
            " there is nothing to tell apart. Check where labels come from (label_column, "
            "class_folders)."
        )
    return known.reshape(-1), np.searchsorted(classes, heldout), classes


def draw_by_class(
    labels: np.ndarray, *, count: int, seed: int, only: np.ndarray | None = None
) -> np.ndarray:
    """Draw images so that every class has its share, whatever order they are listed in.

    Classes take turns; where there are more classes than images drawn, some have none.

    Args:
        labels: int64 (N,), class numbers; images without a label (-1) are not drawn.
        count: how many at most.
        seed: of the draw.
        only: classes to draw from; None for all.

    Returns:
        int64 (M,), places in the list, ascending.
    """
    chosen = np.flatnonzero(labels >= 0 if only is None else np.isin(labels, only))
    numbers = generator(seed, 0, 0, "images-by-class")
    chosen = chosen[numbers.permutation(len(chosen))]
    classes, inverse = np.unique(labels[chosen], return_inverse=True)
    inverse = numbers.permutation(len(classes))[inverse.reshape(-1)]
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(classes)))
    turn = np.empty(len(chosen), np.int64)
    turn[order] = np.arange(len(chosen)) - starts[inverse[order]]
    return np.sort(chosen[np.lexsort((inverse, turn))[:count]]).astype(np.int64)


def draw_pair(sources: dict[Part, ImageSource], *, count: int, seed: int) -> dict[Part, np.ndarray]:
    """Draw images of both sources, class by class where their listings know the labels.

    Held-out images are drawn from the classes that were drawn to learn from.

    Args:
        sources: as `open_pair` gives them.
        count: images of either source at most.
        seed: of the draw.

    Returns:
        int64 (M,) each, places in the sources, ascending.
    """
    drawn: dict[Part, np.ndarray] = {}
    only: np.ndarray | None = None
    for part, source in sources.items():
        labels = labels_of(source)
        if labels is None or (labels.numbers < 0).all():
            order = generator(seed, 0, 0, "images-by-class").permutation(len(source))
            drawn[part] = np.sort(order[:count])
            continue
        drawn[part] = draw_by_class(labels.numbers, count=count, seed=seed, only=only)
        only = np.unique(labels.numbers[drawn[part]]) if part == "train" else only
    return drawn


def read_usable(
    source: ImageSource,
    *,
    config: ImageConfig,
    size: tuple[int, int],
    numbers: np.ndarray,
    seed: int,
    key: str,
    report: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read some images and their labels into memory, without those that cannot be decoded.

    Args:
        source: opened images.
        config: how they are brought to size.
        size: (H, W) in pixels.
        numbers: int64 (N,), which of them.
        seed: of their flips and views, if there are any.
        key: dotted key of the source, for messages.
        report: told how many more were read.

    Returns:
        uint8 (N, H, W, 3), and int64 (N,) or None where the source has no labels.

    Raises:
        DataError: none of them can be used, or there are none.
    """
    if not len(numbers):
        raise DataError(f"{key}: got none of {len(source)} images, allowed one or more.")
    inputs = ImageInput(source, config=config, image_size=size, seed=seed)
    images, labels, errors = [], [], dict[str, str]()
    with ThreadPoolExecutor(4, thread_name_prefix="decode") as pool:
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            work = inputs.gather(part, micro_batch=len(part), pool=pool)
            assert work.images is not None and work.valid is not None
            errors |= {work.keys[row]: error for row, error in work.errors.items()}
            images.append(work.images[work.valid])
            if work.labels is not None:
                labels.append(work.labels[work.valid])
            report(len(part))
    say_unusable(errors, total=len(numbers), key=key)
    return np.concatenate(images), np.concatenate(labels) if labels else None


def say_unusable(errors: dict[str, str], *, total: int, key: str) -> None:
    """Say how many images were left out, and why the first was.

    Raises:
        DataError: all of them.
    """
    if errors and len(errors) >= total:
        raise DataError(
            f"{key}: got {total} images of which none can be used ({next(iter(errors.values()))}),"
            " allowed images that can be decoded."
        )
    if errors:
        log.warning(
            "%s: %d of %d images cannot be used and are left out, the first: %s",
            key, len(errors), total, next(iter(errors.values())),
        )  # fmt: skip
