"""A few labelled images, read whole into memory: what interpreters and read-outs are fitted to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from dreamshard.errors import DataError
from dreamshard.rng import generator
from pipeline.images.prepare import InvalidImageError, prepare_record
from pipeline.images.reading import read_retrying
from pipeline.images.source import ImageConfig, ImageSource, Record, labels_of

NO_LABEL = -1
Draw = Literal["random", "even"]
KEEP_BYTES = 4 << 30
"""Prepared images with masks up to this size are kept in memory."""
THREADS = 4
"""Threads that decode."""
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

    def targets(self, kind: str) -> np.ndarray:
        """Return what is to be predicted: masks (N, H, W) of kind "mask", else labels (N,)."""
        values = self.masks if kind == "mask" else self.labels
        assert values is not None
        return values

    def rows(self, chosen: np.ndarray) -> LabelledImages:
        """Return some of them, by row."""
        return LabelledImages(
            images=self.images[chosen],
            keys=[self.keys[row] for row in chosen],
            numbers=self.numbers[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


class LazyImages:
    """Show a source too large for memory as `LabelledImages`; rows are read when asked for.

    Args:
        source: opened images.
        config: how they are brought to size; views are left out.
        size: (H, W) in pixels.
        seed: decides flips, where the config asks for them.
    """

    def __init__(
        self, source: ImageSource, *, config: ImageConfig, size: tuple[int, int], seed: int
    ) -> None:
        self._source, self._config, self._size, self._seed = source, config, size, seed
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._source)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """int64 (N,), all labels; where the listing does not tell, every record is read."""
        if not self._source.has_labels:
            return None
        if (known := labels_of(self._source)) is not None:
            return known.numbers
        parts = range(0, len(self), AT_ONCE)
        batches = [
            [record.label for record in read_retrying(self._source, self._numbers(first))]
            for first in parts
        ]
        return np.array([label for part in batches for label in part], np.int64)

    def rows(self, chosen: np.ndarray) -> LabelledImages:
        """Read some of them."""
        return read_labelled(
            self._source,
            config=self._config,
            size=self._size,
            numbers=chosen,
            seed=self._seed,
            pool=self._pool,
        )

    def _numbers(self, first: int) -> list[int]:
        return list(range(first, min(first + AT_ONCE, len(self))))


def open_labelled(
    source: ImageSource, *, config: ImageConfig, size: tuple[int, int], seed: int
) -> LabelledImages | LazyImages:
    """Read a source whole if it fits into `KEEP_BYTES`, else as it is needed.

    Raises:
        DataError: as `read_labelled`.
    """
    if len(source) * size[0] * size[1] * 4 <= KEEP_BYTES:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="decode") as pool:
            return read_labelled(source, config=config, size=size, seed=seed, pool=pool)
    return LazyImages(source, config=config, size=size, seed=seed)


def draw_labelled(total: int, *, count: int, seed: int, draw: Draw = "random") -> np.ndarray:
    """Draw which images of a source count as labelled.

    The draw of 20 is contained in the draw of 40 with the same seed, so that a second reader of the
    same source (an interpreter, a read-out) labels the same images.

    Args:
        total: images of the source.
        count: how many are labelled; all of them where there are no more.
        seed: of the draw.
        draw: at random, or at even distances from a random start.

    Returns:
        int64 (min(count, total),), ascending.
    """
    numbers = generator(seed, 0, 0, "labelled-images")
    order = numbers.permutation(total) if draw == "random" else _evenly(total, numbers)
    return np.sort(order[:count]).astype(np.int64)


def _evenly(total: int, numbers: np.random.Generator) -> np.ndarray:
    """Order all images so that the first n lie at about even distances, whatever n is.

    They follow a van der Corput sequence: every new one halves a gap that is among the widest.
    """
    bits = max(total - 1, 1).bit_length()
    count = np.arange(1 << bits)
    halved = np.zeros_like(count)
    for bit in range(bits):  # the bits of the number in reverse
        halved |= ((count >> bit) & 1) << (bits - 1 - bit)
    places = ((halved / (1 << bits) + numbers.random()) % 1.0 * total).astype(np.int64)
    _, first = np.unique(places, return_index=True)
    return places[np.sort(first)]


def read_labelled(
    source: ImageSource,
    *,
    config: ImageConfig,
    size: tuple[int, int],
    numbers: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
    pool: ThreadPoolExecutor | None = None,
) -> LabelledImages:
    """Read and prepare images with their labels and masks.

    Args:
        source: opened images.
        config: how they are brought to size; views are left out, every image is taken as it is.
        size: (H, W) in pixels.
        numbers: which of them, any order; None for all.
        seed: decides flips, where the config asks for them.
        pool: threads that decode; None: this one.

    Raises:
        DataError: an image or mask that cannot be decoded, a mask of another size than its image,
            or an image without a mask in a source of masks; the sample is named.
    """
    chosen = np.arange(len(source)) if numbers is None else np.asarray(numbers, np.int64)
    images = np.empty((len(chosen), *size, 3), np.uint8)
    masks = np.empty((len(chosen), *size), np.uint8) if source.has_masks else None
    labels = np.full(len(chosen), NO_LABEL, np.int64) if source.has_labels else None
    plain = dataclasses.replace(config, views=1)
    keys: list[str] = []

    def fill(row: int, record: Record) -> None:
        number = int(chosen[row])
        try:
            image, mask = prepare_record(record, config=plain, size=size, seed=seed, index=number)
            if masks is not None and mask is None:
                raise InvalidImageError("it has no mask")
        except InvalidImageError as error:
            raise DataError(
                f"source: got sample {number} ({record.key}) that cannot be used ({error}), "
                "allowed whole images with their labels. Repair it or leave it out."
            ) from error
        images[row] = image
        if masks is not None and mask is not None:
            masks[row] = mask

    for first in range(0, len(chosen), AT_ONCE):
        part = [int(number) for number in chosen[first : first + AT_ONCE]]
        records = read_retrying(source, part)
        rows = range(first, first + len(part))
        list((pool.map if pool else map)(fill, rows, records))
        keys += [record.key for record in records]
        if labels is not None:
            labels[first : first + len(part)] = [record.label for record in records]
    return LabelledImages(images, keys, chosen, labels, masks)


def check_classes(
    values: np.ndarray,
    *,
    num_classes: int,
    ignore: int,
    what: str,
    keys: Sequence[str],
    empty: bool = False,
) -> None:
    """Refuse classes that a head has no output for, and samples with nothing to learn from.

    Args:
        values: integers (N, ...), classes or `ignore`.
        num_classes: outputs of the head.
        ignore: value that stands for no class.
        what: "mask" or "label", for the message.
        keys: N names of the samples.
        empty: whether a sample may have nothing to learn from: where it is judged, it counts not.

    Raises:
        DataError: naming the values and the first samples that have them.
    """
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    known = flat != ignore
    beyond = known & ((flat >= num_classes) | (flat < 0))
    if beyond.any():
        unknown = np.unique(flat[beyond]).tolist()
        raise DataError(
            f"{what}s: got classes {unknown} in {_named(keys, beyond.any(axis=1))}, allowed 0.."
            f"{num_classes - 1} and {ignore} (to ignore). Name more classes, or set ignore."
        )
    bare = ~known.any(axis=1)
    if bare.any() and not empty:
        raise DataError(
            f"{what}s: got nothing but {ignore} (to ignore) in {_named(keys, bare)}, allowed a "
            "class somewhere. Leave those samples out."
        )


def count_classes(masks: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Count the pixels (or labels) of every class, int64 (K,); other values are left out."""
    counts: np.ndarray = np.bincount(masks.reshape(-1).astype(np.int64), minlength=256)
    return counts[:num_classes]


def require_classes(
    pixels: np.ndarray,
    ignored: int,
    *,
    classes: Sequence[str],
    ignore: int,
    key: str,
    all_of_them: bool = False,
) -> list[str]:
    """Refuse masks with nothing to tell apart, such as those of 0 and 255 where 255 is void.

    Args:
        pixels: int64 (K,), of every class, over all masks.
        ignored: pixels of `ignore`.
        classes: K names.
        ignore: value that stands for no class.
        key: dotted key of the masks' source.
        all_of_them: refuse any class without a pixel, too.

    Returns:
        The classes without a pixel.

    Raises:
        DataError: fewer than two classes there, or fewer than all where all are wanted.
    """
    missing = [name for name, count in zip(classes, pixels, strict=True) if not count]
    if not missing or (len(classes) - len(missing) >= 2 and not all_of_them):
        return missing
    shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if missing[10:] else "")
    share = 100 * ignored / max(1, ignored + int(pixels.sum()))
    hint = "Check the order of the names: a class's number is its place in the list."
    if ignored:
        hint = (
            f"{share:.3g} % of the pixels are {ignore}, which is ignored: if {ignore} is a class, "
            f"write masks of 0..{len(classes) - 1} (0/255 masks: divide by 255), or set ignore to "
            "a value that they do not have."
        )
    raise DataError(f"{key}: got masks without a pixel of class {shown}, allowed some. {hint}")


def _named(keys: Sequence[str], wanted: np.ndarray) -> str:
    """Name the first three samples wanted."""
    rows = np.flatnonzero(wanted)
    shown = ", ".join(str(keys[int(row)]) for row in rows[:3])
    return shown if len(rows) <= 3 else f"{shown} and {len(rows) - 3} more"
