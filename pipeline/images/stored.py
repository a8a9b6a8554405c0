"""Latents that a dataset keeps, in place of images: no image is decoded, no autoencoder run.

    source:
      kind: latents
      path: data/sd-latents      # encoded with teacher.levels [latent]

Samples, their order, images, labels and source are those of that dataset, so what is made from its
latents joins it, and whatever else was made of the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import xxhash

from dreamshard.errors import ConfigError, DataError, Problem
from pipeline.images.inputs import NumberedInput, Work, padded, real_rows
from pipeline.images.labels import Labels
from pipeline.images.source import LATENTS, ImageConfig
from pipeline.teachers.base import Foresee, Mode, Teacher, TeacherSpec
from storage.catalog import find_dataset
from storage.codecs.arrays import IMAGE, MASK
from storage.dataset import Dataset
from storage.rows.chunk_files import Chunks
from storage.rows.chunks import open_chunks
from storage.schema import FeatureBatch
from storage.snapshot import Snapshot

LATENT = "latent"
MAX_OPEN = 16
RECORD = "Record them with --teacher.levels '[latent]' and a codec of plain floats."


def open_stored(path: str) -> StoredInput:
    """Open the dataset whose latents stand in for images.

    Raises:
        ConfigError: it keeps no latents of images, or not so that they can be read back.
        DataError: no such dataset, or one with holes.
    """
    dataset = find_dataset(path)
    content, problems = dataset.recipe.content, list[Problem | str]()
    mode = content.get("mode")
    made = mode.get("kind") if isinstance(mode, dict) else None
    kept = {level.name for level in dataset.levels if level.kind == "latent"}
    if LATENT not in kept:
        got = ", ".join(level.name for level in dataset.levels)
        problems.append(Problem("source.path", f"{path} ({got})", f"the level {LATENT}", RECORD))
    elif dataset.codec(LATENT).learned:
        got = f"latents kept as {dataset.codec(LATENT).name}"
        problems.append(Problem("source.path", got, "plain floats", RECORD))
    if made != "encode":
        allowed = "a dataset of given images: drawn ones are drawn again with more levels"
        problems.append(Problem("source.path", f"{path}, made by {made}", allowed))
    if IMAGE not in dataset.arrays:
        problems.append(Problem("source.path", f"{path} without images", "one that keeps them"))
    if problems:
        raise ConfigError(problems)
    snapshot = dataset.snapshot()
    if snapshot.holes:
        raise DataError(
            f"{dataset.url}: got {len(snapshot.holes)} units that are not made, allowed a whole "
            "dataset to start from. Run the command that made it again."
        )
    return StoredInput(dataset, snapshot)


class StoredInput(NumberedInput):
    """Read latents, images and what else is known of them out of a dataset; see `inputs.Input`."""

    mode: Mode = "encode"

    def __init__(self, dataset: Dataset, snapshot: Snapshot) -> None:
        self._url, self._version = dataset.url, snapshot.version
        self._content = dataset.recipe.content
        level = next(level for level in dataset.levels if level.name == LATENT)
        self._codec = dataset.recipe.codec_of(level)
        self.image_size = dataset.image_size
        self.num_samples: int | None = snapshot.num_samples
        self.has_labels, self.has_masks = dataset.about.labels, MASK in dataset.arrays
        self._opened: tuple[Dataset, Snapshot] | None = (dataset, snapshot)
        self._chunks: Chunks | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files behind: an actor opens its own."""
        return {**self.__dict__, "_opened": None, "_chunks": None}

    def problems(self, spec: TeacherSpec, *, image: ImageConfig, seed: int) -> list[Problem | str]:
        """Find why a teacher cannot start from these latents, or settings would not be read.

        Args:
            spec: of the teacher, described for images of `image_size`.
            image: settings, which must leave everything to the dataset.
            seed: of the request.
        """
        problems: list[Problem | str] = []
        mine = self.facts()["vae"]
        if not spec.latents:
            got = f"a teacher without latents, with source.kind {LATENTS}"
            hint = "Give the images themselves."
            problems.append(Problem("teacher.path", got, "one that works on latents", hint))
        elif spec.latents != mine:
            allowed = f"latents of this teacher's own autoencoder ({spec.latents[:12]})"
            got = f"{self._url}, of another ({str(mine)[:12]})"
            problems.append(Problem("source.path", got, allowed, "Record its latents first."))
        if seed != self._content.get("seed"):
            allowed = f"{self._content.get('seed')}, that of {self._url}"
            problems.append(Problem("seed", str(seed), allowed, "One dataset, one seed."))
        if image != ImageConfig():
            allowed = f"nothing: the images are those of {self._url}"
            problems.append(Problem("image", str(image), allowed, "Leave the section out."))
        return problems

    def facts(self) -> dict[str, object]:
        """Say what the latents are, for the recipe: autoencoder, codec, number format."""
        levels = self._content.get("levels")
        items = cast("Sequence[Any]", levels if isinstance(levels, list) else [])
        latent: Mapping[str, Any] = next(item for item in items if item.get("name") == LATENT)
        return {
            "vae": latent.get("vae"),
            "codec": self._codec,
            "compute_dtype": self._content.get("compute_dtype"),
        }

    def source(self) -> dict[str, object]:
        """Identify the images, as the dataset does."""
        return cast("dict[str, object]", self._content.get("source"))

    def image_rule(self) -> dict[str, object]:
        """State what was done to the images, as the dataset does."""
        return cast("dict[str, object]", self._content.get("image"))

    def prefix_digest(self, count: int) -> str:
        """Return the digest of the images; it is known of all of them alone."""
        source = self.source()
        return str(source.get("digest")) if count == source.get("count") else ""

    def prepare(
        self, samples: np.ndarray, offset: int, micro_batch: int, foresee: Foresee | None
    ) -> Work:
        """Read the latents and what goes with them."""
        work = self._read(samples, offset, micro_batch)
        work.foreseen = foresee(work.indices) if foresee is not None else None
        return work

    def forward(self, teacher: Teacher, work: Work) -> FeatureBatch:
        """Let the teacher start from the latents; add what the dataset knows of the images."""
        assert work.latents is not None and work.images is not None and work.valid is not None
        batch = real_rows(cast(Any, teacher).encode_latents(work.latents, work.indices), work.count)
        batch.image, batch.key, batch.valid = work.images, work.keys, work.valid
        batch.label, batch.mask, batch.error = work.labels, work.masks, work.errors
        batch.source_digest = work.source_digests
        return batch

    def source_digests(self, samples: Sequence[int]) -> np.ndarray | None:
        """Return what the dataset's commits keep of the images' bytes; None where they do not."""
        dataset, _ = self._open()
        numbers, per_unit = np.asarray(samples, np.int64), dataset.samples_per_unit
        digests = np.zeros(len(numbers), np.uint64)
        for unit in np.unique(numbers // per_unit).tolist():
            commit = dataset.commit_of(unit)
            kept = None if commit is None else commit.source_digests
            if commit is None or kept is None:
                return None
            rows = numbers // per_unit == unit
            digests[rows] = kept[numbers[rows] - commit.first]
        return digests

    def labels(self) -> Labels | None:
        """Return the labels of all samples."""
        _, snapshot = self._open()
        return Labels(np.array(snapshot.labels), snapshot.classes) if self.has_labels else None

    def notes(self) -> dict[str, object]:
        """Say which dataset the latents are of."""
        dataset, snapshot = self._open()
        told: dict[str, object] = {"latents_of": dataset.recipe.folder}
        return told | ({"classes": list(snapshot.classes)} if snapshot.classes else {})

    def _open(self) -> tuple[Dataset, Snapshot]:
        if self._opened is None:
            dataset = Dataset.open(self._url)
            self._opened = (dataset, dataset.snapshot(self._version))
        return self._opened

    def _read(self, samples: np.ndarray, offset: int, micro_batch: int) -> Work:
        _, snapshot = self._open()
        count, indices = len(samples), padded(samples, micro_batch)
        names = self._names(snapshot)
        rows: dict[str, np.ndarray] = {}
        for name in names:
            dtype, shape = snapshot.array_spec(name)
            rows[name] = np.empty((count, *shape), dtype)
        if self._chunks is None:  # its files stay open, as the next samples lie in them
            self._chunks = open_chunks(snapshot, names, access="pread", max_open=MAX_OPEN)
        self._chunks.copy(samples.astype(np.int64), [rows[name] for name in names])
        kept = np.ascontiguousarray(snapshot.decode(LATENT, rows))
        valid = np.array(snapshot.valid[samples])
        kept[~valid] = 0
        latents = np.zeros((micro_batch, *kept.shape[1:]), np.float32)
        latents[:count], latents[count:] = kept, kept[-1]
        errors = snapshot.errors if not valid.all() else {}
        work = Work(offset, count, indices, _digest(kept), images=rows[IMAGE], latents=latents)
        work.valid, work.masks = valid, rows.get(MASK)
        work.keys = [self._keys[sample] for sample in samples.tolist()]
        work.errors = {
            row: errors[sample] for row, sample in enumerate(samples.tolist()) if sample in errors
        }
        if self.has_labels:
            work.labels = np.array(snapshot.labels[samples])
        work.source_digests = self.source_digests(samples.tolist())
        return work

    def _names(self, snapshot: Snapshot) -> list[str]:
        """Name the arrays that are read of each sample."""
        return [*snapshot.components(LATENT), IMAGE, *([MASK] if self.has_masks else [])]

    @property
    def _keys(self) -> list[str]:
        return self._open()[1].keys


def _digest(latents: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(latents.tobytes())
