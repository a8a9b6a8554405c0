"""Say in plain facts what a dataset holds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from storage.codecs.arrays import codec_for
from storage.dataset import Dataset
from storage.relabel import classes_of


@dataclass(frozen=True)
class LevelFacts:
    """Say how one array is stored: bytes are of one sample, uncompressed and as stored."""

    name: str
    kind: str
    stride: int
    shape: tuple[int, ...]
    dtype: str
    codec: str
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Summary:
    """Hold the facts of a dataset.

    Args:
        requested: samples asked for so far.
        samples: samples committed.
        invalid: samples that could not be used.
        units: units committed.
        missing: units asked for and not there.
        stored_bytes: bytes of the committed samples.
        arrays: how each array is stored.
        errors: why samples could not be used, by index; the first few.
    """

    url: str
    requested: int
    samples: int
    invalid: int
    units: int
    missing: int
    stored_bytes: int
    arrays: tuple[LevelFacts, ...]
    errors: Mapping[int, str]


def summarize(dataset: Dataset, *, max_errors: int = 5) -> Summary:
    """Gather the facts of a dataset.

    Raises:
        DataError: if its manifest or a commit record is damaged.
    """
    snapshot = dataset.snapshot()
    counts = snapshot.counts
    sample_bytes = sum(spec.row_bytes for spec in dataset.arrays.values())
    missing = dataset.missing(dataset.requested())
    errors = dict(list(snapshot.errors.items())[:max_errors]) if snapshot.num_invalid else {}
    return Summary(
        url=dataset.url,
        requested=dataset.requested(),
        samples=int(counts.sum()),
        invalid=snapshot.num_invalid,
        units=len(counts),
        missing=len(missing),
        stored_bytes=int(counts.sum()) * sample_bytes,
        arrays=_array_facts(dataset),
        errors=errors,
    )


def _array_facts(dataset: Dataset) -> tuple[LevelFacts, ...]:
    facts = [
        LevelFacts(
            spec.name, "", 0, spec.shape, spec.dtype.name, "raw", spec.row_bytes, spec.row_bytes
        )
        for spec in dataset.arrays.values()
        if not spec.level
    ]
    for level in dataset.levels:
        stored = codec_for(dataset.recipe, level).arrays(level)
        itemsize = 2 if level.dtype == "bfloat16" else int(level.dtype.strip("uifloatn")) // 8
        facts.append(
            LevelFacts(
                level.name,
                level.kind,
                level.stride,
                level.shape,
                level.dtype,
                dataset.recipe.codec_of(level),
                itemsize * math.prod(level.shape),
                sum(spec.row_bytes for spec in stored),
            )
        )
    return tuple(facts)


def describe(dataset: Dataset) -> list[tuple[str, str]]:
    """Return (what, value) of everything `dataset.json` says, for people."""
    about, content = dataset.about, dataset.recipe.content
    skipped = {"levels", "source", "image"}
    lines = [
        ("recipe", dataset.recipe.name),
        ("content key", dataset.recipe.content_key),
        ("layout key", dataset.recipe.layout_key),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(about.created))),
        ("licence", about.licence),
        ("image size", f"{about.image_size[0]} x {about.image_size[1]}"),
        ("pins", _flat(vars(about.pins))),
        ("source", _flat(dataset.recipe.source)),
    ]
    lines += [(key, _flat(value)) for key, value in content.items() if key not in skipped]
    lines += [(f"layout {key}", _flat(value)) for key, value in dataset.recipe.layout.items()]
    extra = dict(about.extra)
    if names := classes_of(dataset):
        extra["classes"] = names
    lines += [(key, _flat(value)) for key, value in extra.items()]
    return [*lines, ("libraries", _flat(about.libraries))]


def _flat(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
