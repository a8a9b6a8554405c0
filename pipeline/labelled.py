"""A few labelled images, read whole into memory: what interpreters and read-outs are fitted to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import DataError
from dreamshard.rng import generator
from pipeline.images import ImageConfig, ImageSource
from pipeline.inputs import read_retrying
from pipeline.prepare import InvalidImageError, decode, decode_mask, prepare

NO_LABEL = -1
AT_ONCE = 64
"""Records read per call: bounds the encoded bytes held, not the result."""


@dataclass(frozen=True)
class LabelledImages:
    """Hold N images of one size with what is known of them.

    Args:
        images: uint8 (N, H, W, 3).
        keys: N texts, the source's names of them.
        numbers: int64 (N,), their places in the source.
        labels: int64 (N,), classes, -1 where there is none; None where the source has no labels.
        masks: uint8 (N, H, W), class of every pixel; None where the source has no masks.
    """

    images: np.ndarray
    keys: list[str]
    numbers: np.ndarray
    labels: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, chosen: np.ndarray) -> LabelledImages:
        """Return some of them, by row."""
        return LabelledImages(
            images=self.images[chosen],
            keys=[self.keys[row] for row in chosen],
            numbers=self.numbers[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


def draw_labelled(total: int, *, count: int, seed: int) -> np.ndarray:
    """Draw which images of a source count as labelled.

    The draw of 20 is contained in the draw of 40 with the same seed, so that a second reader of the
    same source (an interpreter, a read-out) labels the same images.

    Args:
        total: images of the source.
        count: how many are labelled; all of them where there are no more.
        seed: of the draw.

    Returns:
        int64 (min(count, total),), ascending.
    """
    order = generator(seed, 0, 0, "labelled-images").permutation(total)
    return np.sort(order[:count]).astype(np.int64)


def read_labelled(
    source: ImageSource,
    *,
    config: ImageConfig,
    size: tuple[int, int],
    numbers: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Read and prepare images with their labels and masks.

    Args:
        source: opened images.
        config: how they are brought to size; views are left out, every image is taken as it is.
        size: (H, W) in pixels.
        numbers: which of them, any order; None for all.
        seed: decides flips, where the config asks for them.

    Raises:
        DataError: an image or mask that cannot be decoded, a mask of another size than its image,
            or an image without a mask in a source of masks; the sample is named.
    """
    chosen = np.arange(len(source)) if numbers is None else np.asarray(numbers, np.int64)
    images = np.empty((len(chosen), *size, 3), np.uint8)
    masks = np.empty((len(chosen), *size), np.uint8) if source.has_masks else None
    labels = np.full(len(chosen), NO_LABEL, np.int64) if source.has_labels else None
    keys: list[str] = []
    for first in range(0, len(chosen), AT_ONCE):
        part = [int(number) for number in chosen[first : first + AT_ONCE]]
        for row, record in enumerate(read_retrying(source, part), first):
            number = int(chosen[row])
            try:
                image = decode(record.data)
                images[row] = prepare(image, config=config, size=size, seed=seed, index=number)
                if masks is not None:
                    if record.mask is None:
                        raise InvalidImageError("it has no mask")
                    mask = decode_mask(record.mask)
                    if mask.size != image.size:
                        raise InvalidImageError(f"mask of {mask.size}, image of {image.size}")
                    masks[row] = prepare(
                        mask, config=config, size=size, seed=seed, index=number, mask=True
                    )
            except InvalidImageError as error:
                raise DataError(
                    f"source: got sample {number} ({record.key}) that cannot be used ({error}), "
                    "allowed whole images with their labels. Repair it or leave it out."
                ) from error
            keys.append(record.key)
            if labels is not None:
                labels[row] = record.label
    return LabelledImages(images, keys, chosen, labels, masks)


def check_classes(
    values: np.ndarray, *, num_classes: int, ignore: int, what: str, keys: Sequence[str]
) -> None:
    """Refuse classes that a head has no output for, and samples with nothing to learn from.

    Args:
        values: integers (N, ...), classes or `ignore`.
        num_classes: outputs of the head.
        ignore: value that stands for no class.
        what: "mask" or "label", for the message.
        keys: N names of the samples.

    Raises:
        DataError: naming the values and the first samples that have them.
    """
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    known = flat != ignore
    beyond = known & ((flat >= num_classes) | (flat < 0))
    if beyond.any():
        found = np.unique(flat[beyond]).tolist()
        raise DataError(
            f"{what}s: got classes {found} in {_named(keys, beyond.any(axis=1))}, allowed 0.."
            f"{num_classes - 1} and {ignore} (to ignore). Name more classes, or set ignore."
        )
    empty = ~known.any(axis=1)
    if empty.any():
        raise DataError(
            f"{what}s: got nothing but {ignore} (to ignore) in {_named(keys, empty)}, allowed a "
            "class somewhere. Leave those samples out."
        )


def _named(keys: Sequence[str], wanted: np.ndarray) -> str:
    """Name the first three samples wanted."""
    rows = np.flatnonzero(wanted)
    shown = ", ".join(str(keys[int(row)]) for row in rows[:3])
    return shown if len(rows) <= 3 else f"{shown} and {len(rows) - 3} more"
