"""What an actor feeds its teacher with: images of a source, or nothing but sample numbers.

Both kinds have the same face, so that the actor and the main path know no difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import xxhash

from pipeline.images.labels import Labels
from pipeline.images.reading import content_digest, read_retrying
from pipeline.images.source import (
    ImageConfig,
    ImageSource,
    Record,
    fingerprint,
    labels_of,
    passed_over,
    prefix_digest,
)
from pipeline.teachers.base import Foresee, Mode, Teacher
from storage.schema import FeatureBatch

NO_MASK = 255
"""Value of a mask that the source does not have for a sample."""
PREFETCH = 3
"""Micro-batches prepared ahead of the teacher."""


@dataclass
class Work:
    """One micro-batch for the teacher; the first `count` rows are real, the rest padding."""

    offset: int
    """First row's place in the unit."""
    count: int
    indices: np.ndarray
    """int64 (micro_batch,)."""
    digest: bytes
    """Of the source's bytes that went in."""
    images: np.ndarray | None = None
    """uint8 (micro_batch, H, W, 3)."""
    latents: np.ndarray | None = None
    """float32 (micro_batch, C, h, w), in place of images to look at."""
    keys: list[str] = field(default_factory=list)
    valid: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    errors: dict[int, str] = field(default_factory=dict)
    foreseen: object = None
    """What the teacher prepared for it."""
    source_digests: np.ndarray | None = None
    """uint64 (count,), of every byte that the source holds of each sample."""


class Input(Protocol):
    """What decides which samples there are and what the teacher gets for each."""

    mode: Mode
    num_samples: int | None
    """Samples there can be; None for a generator."""
    has_labels: bool
    has_masks: bool

    def source(self) -> dict[str, object]:
        """Identify the input for the recipe."""
        ...

    def image_rule(self) -> dict[str, object]:
        """State for the recipe what is done to images."""
        ...

    def prefix_digest(self, count: int) -> str:
        """Digest the first `count` entries, to recognise a source that grew."""
        ...

    def works(
        self, start: int, count: int, *, micro_batch: int, foresee: Foresee | None = None
    ) -> Iterator[Work]:
        """Yield the micro-batches of samples [start, start + count), prepared ahead in threads.

        Args:
            start, count: which samples.
            micro_batch: rows of the forward pass; padding fills the rest.
            foresee: of the teacher that will be given them.
        """
        ...

    def gather(
        self,
        samples: np.ndarray,
        *,
        micro_batch: int,
        pool: ThreadPoolExecutor,
        foresee: Foresee | None = None,
    ) -> Work:
        """Return one micro-batch of any samples, at most `micro_batch`; for one thread at a time.

        Args:
            samples: int64 (n,).
            micro_batch, foresee: as in `works`.
            pool: threads that decode images.
        """
        ...

    def forward(self, teacher: Teacher, work: Work) -> FeatureBatch:
        """Run the teacher on one micro-batch and drop the padding."""
        ...

    def source_digests(self, samples: Sequence[int]) -> np.ndarray | None:
        """Digest what the source holds of some samples now, uint64 (N,); None without a source."""
        ...

    def labels(self) -> Labels | None:
        """Return the labels of all samples, as far as the source's listing tells them."""
        ...

    def notes(self) -> dict[str, object]:
        """Say what a dataset should keep of the listing: class names, what was passed over."""
        ...


class NumberedInput:
    """Prepare micro-batches from sample numbers alone, a few ahead in a thread; see `Input`."""

    def works(
        self, start: int, count: int, *, micro_batch: int, foresee: Foresee | None = None
    ) -> Iterator[Work]:
        """Yield the micro-batches of samples [start, start + count)."""

        def prepare(offset: int) -> Work:
            samples = start + offset + np.arange(min(micro_batch, count - offset))
            return self.prepare(samples, offset, micro_batch, foresee)

        yield from prepared_ahead(prepare, range(0, count, micro_batch))

    def gather(
        self,
        samples: np.ndarray,
        *,
        micro_batch: int,
        pool: ThreadPoolExecutor,
        foresee: Foresee | None = None,
    ) -> Work:
        """Return one micro-batch of any samples."""
        return self.prepare(samples, 0, micro_batch, foresee)

    def prepare(
        self, samples: np.ndarray, offset: int, micro_batch: int, foresee: Foresee | None
    ) -> Work:
        """Return the padded samples: here their numbers, and what the teacher foresees of them."""
        indices = padded(samples, micro_batch)
        foreseen = foresee(indices) if foresee is not None else None
        return Work(offset, len(samples), indices, b"", foreseen=foreseen)


class LatentInput(NumberedInput):
    """Sample numbers alone: the teacher draws its latents from them."""

    mode: Mode = "synthesize"
    num_samples: int | None = None
    has_masks = False

    def __init__(self, *, image_size: tuple[int, int], has_labels: bool = False) -> None:
        self.has_labels = has_labels
        self._size = image_size

    def source(self) -> dict[str, object]:
        """Identify the input for the recipe: a generator has no source but its seed."""
        return {"kind": "latents"}

    def image_rule(self) -> dict[str, object]:
        """State the image size; the generator makes images of it itself."""
        return {"size": list(self._size), "range": "0..255"}

    def prefix_digest(self, count: int) -> str:
        """Return the one digest of any number of latents."""
        return "latents"

    def forward(self, teacher: Teacher, work: Work) -> FeatureBatch:
        """Let the teacher draw the samples."""
        return real_rows(teacher.synthesize(work.indices), work.count)

    def source_digests(self, samples: Sequence[int]) -> np.ndarray | None:
        """Return None: seeds decide, not bytes."""
        return None

    def labels(self) -> Labels | None:
        """Return None: a generator's labels come with its images."""
        return None

    def notes(self) -> dict[str, object]:
        """Return nothing: there is no listing."""
        return {}


class ImageInput:
    """Images of a source, prepared to the teacher's size, `views` samples each."""

    mode: Mode = "encode"

    def __init__(
        self,
        source: ImageSource,
        *,
        config: ImageConfig,
        image_size: tuple[int, int],
        seed: int,
        threads: int = 2,
    ) -> None:
        self._source, self._config = source, config
        self._size, self._seed, self._threads = image_size, seed, threads
        self.num_samples: int | None = len(source) * config.views
        self.has_labels, self.has_masks = source.has_labels, source.has_masks

    def source(self) -> dict[str, object]:
        """Identify the source's images for the recipe; other labels are no other features."""
        return {k: v for k, v in fingerprint(self._source).items() if k != "labels"}

    def image_rule(self) -> dict[str, object]:
        """State size, resampling, crop, flip and views; settings without effect are left out."""
        config = self._config
        rule: dict[str, object] = {
            "size": list(self._size),
            "resize": config.resize,
            "crop": config.crop,
            "flip": config.flip,
            "range": "0..255",
            "views": config.views,
        }
        if config.views > 1:
            rule["jitter"] = {"shift": config.shift, "scale": config.scale, "rotate": config.rotate}
        return rule

    def prefix_digest(self, count: int) -> str:
        """Digest the first `count` entries of the source."""
        return prefix_digest(self._source, count)

    def works(
        self, start: int, count: int, *, micro_batch: int, foresee: Foresee | None = None
    ) -> Iterator[Work]:
        """Yield prepared micro-batches; reading, decoding and foreseeing run ahead in threads."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")

        def prepare(offset: int) -> Work:
            samples = start + offset + np.arange(min(micro_batch, count - offset))
            return self._prepare(pool, samples, offset, micro_batch, foresee)

        try:
            yield from prepared_ahead(prepare, range(0, count, micro_batch))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def gather(
        self,
        samples: np.ndarray,
        *,
        micro_batch: int,
        pool: ThreadPoolExecutor,
        foresee: Foresee | None = None,
    ) -> Work:
        """Return the images of any samples, prepared."""
        return self._prepare(pool, samples, 0, micro_batch, foresee)

    def forward(self, teacher: Teacher, work: Work) -> FeatureBatch:
        """Let the teacher see the images; add what the source knows of them."""
        assert work.images is not None and work.valid is not None
        batch = real_rows(teacher.encode(work.images, work.indices), work.count)
        batch.image, batch.key, batch.valid = work.images[: work.count], work.keys, work.valid
        batch.label, batch.mask, batch.error = work.labels, work.masks, work.errors
        batch.source_digest = work.source_digests
        return batch

    def source_digests(self, samples: Sequence[int]) -> np.ndarray | None:
        """Read samples and digest what the source holds of them."""
        numbers = sorted({sample // self._config.views for sample in samples})
        records = read_retrying(self._source, numbers)
        known = dict(zip(numbers, map(content_digest, records), strict=True))
        return np.array([known[sample // self._config.views] for sample in samples], np.uint64)

    def labels(self) -> Labels | None:
        """Return the labels of all samples, those of an image for each of its views."""
        known = labels_of(self._source)
        if known is None:
            return None
        return Labels(np.repeat(known.numbers, self._config.views), known.classes)

    def notes(self) -> dict[str, object]:
        """Say what a dataset should keep of the listing: class names, what was passed over."""
        known, passed = labels_of(self._source), passed_over(self._source)
        return {
            **({"classes": list(known.classes)} if known and known.classes else {}),
            **({"passed_over": passed} if passed else {}),
        }

    def _prepare(
        self,
        pool: ThreadPoolExecutor,
        samples: np.ndarray,
        offset: int,
        micro_batch: int,
        foresee: Foresee | None,
    ) -> Work:
        count, indices = len(samples), padded(samples, micro_batch)
        foreseen = pool.submit(foresee, indices) if foresee is not None else None
        real = indices[:count].tolist()
        views = self._config.views
        originals = sorted({index // views for index in real})
        records = dict(zip(originals, read_retrying(self._source, originals), strict=True))
        images = np.zeros((micro_batch, *self._size, 3), np.uint8)
        masks = np.full((count, *self._size), NO_MASK, np.uint8) if self.has_masks else None
        work = Work(offset, count, indices, _digest(records), images=images, masks=masks)
        work.valid = np.ones(count, bool)
        digests = {number: content_digest(record) for number, record in records.items()}
        work.source_digests = np.array([digests[index // views] for index in real], np.uint64)
        rows = [(row, index, records[index // views]) for row, index in enumerate(real)]
        for row, error in pool.map(lambda sample: self._fill(work, *sample), rows):
            if error:
                work.valid[row] = False
                work.errors[row] = error
        suffixes = [f".v{index % views}" if views > 1 else "" for index in real]
        work.keys = [sample[2].key + suffix for sample, suffix in zip(rows, suffixes, strict=True)]
        if self.has_labels:
            work.labels = np.array([record.label for _, _, record in rows], np.int64)
        work.foreseen = foreseen.result() if foreseen is not None else None
        return work

    def _fill(self, work: Work, row: int, index: int, record: Record) -> tuple[int, str]:
        """Decode one sample into its row; return why not, if not.

        Raises: MemoryError: that there was none says nothing of the image.
        """
        from pipeline.images.prepare import InvalidImageError, prepare_record

        assert work.images is not None
        try:
            pixels, mask = prepare_record(
                record, config=self._config, size=self._size, seed=self._seed, index=index
            )
        except InvalidImageError as error:
            return row, f"{record.key}: {error}"
        except MemoryError as error:
            raise MemoryError(f"{record.key}: not enough memory to decode it") from error
        work.images[row] = pixels
        if work.masks is not None and mask is not None:
            work.masks[row] = mask
        return row, ""


def prepared_ahead(prepare: Callable[[int], Work], offsets: Iterable[int]) -> Iterator[Work]:
    """Yield what is prepared for each offset, a few ahead, in a thread."""
    ahead = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        window = []
        for offset in offsets:
            window.append(ahead.submit(prepare, offset))
            if len(window) > PREFETCH:
                yield window.pop(0).result()
        while window:
            yield window.pop(0).result()
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)


def padded(samples: np.ndarray, micro_batch: int) -> np.ndarray:
    """Repeat the last sample up to the micro-batch, int64 (micro_batch,)."""
    return samples[np.minimum(np.arange(micro_batch), len(samples) - 1)].astype(np.int64)


def real_rows(batch: FeatureBatch, count: int) -> FeatureBatch:
    """Drop the padding rows of a teacher's answer."""
    batch.index, batch.key, batch.valid = (
        batch.index[:count],
        batch.key[:count],
        batch.valid[:count],
    )
    batch.image = None if batch.image is None else batch.image[:count]
    batch.label = None if batch.label is None else batch.label[:count]
    batch.levels = {name: values[:count] for name, values in batch.levels.items()}
    return batch


def _digest(records: dict[int, Record]) -> bytes:
    digest = xxhash.xxh3_128()
    for record in records.values():
        digest.update(record.key.encode())
        for part in (record.data, record.mask):
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else part or b"\0")
    return digest.digest()
