"""Datasets of the same samples as one: levels recorded later cost only themselves.

view = join([first, second])            # datasets that share source, seed and index
BatchReader(view, levels=["up.1.t100", "up.1.t300"], batch_size=64)

Several teachers join on the same samples. Where a later one has a level of a name that is taken by
another teacher, it is shown, tap included, behind its dataset's name: `dino.stage.3`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem
from storage.codecs.arrays import IMAGE, LABEL, MASK
from storage.codecs.base import Codec
from storage.dataset import Dataset
from storage.rows.chunk_files import Access, Chunks, ReadableSnapshot
from storage.rows.chunks import open_chunks
from storage.rows.renamed import Renamed, rename
from storage.schema import Level, Recipe, canonical_json
from storage.snapshot import Snapshot

_SHARED = (IMAGE, LABEL, MASK)  # the same in all: taken from the first that has it


class JoinedSnapshot:
    """Show several datasets' snapshots as one; readers take it as they take a `Snapshot`.

    A sample is valid where it is in all of them. Units and formats may differ between them.

    Attributes:
        url, version: those of the datasets, joined by `+`.
        num_samples: samples that all of them serve.
        samples_per_unit: that of the first.
        levels: those of all, in order.
        holes: units (of the first's size) that lack a sample in any of them.
        snapshots: what is joined.
    """

    def __init__(self, snapshots: Sequence[Snapshot | Renamed]) -> None:
        self.snapshots = tuple(snapshots)
        first = self.snapshots[0]
        self.url = "+".join(item.url for item in self.snapshots)
        self.version = "+".join(item.version for item in self.snapshots)
        self.num_samples = min(item.num_samples for item in self.snapshots)
        self.requested = min(item.requested for item in self.snapshots)
        self.samples_per_unit = first.samples_per_unit
        self.levels: tuple[Level, ...] = tuple(
            level for item in self.snapshots for level in item.levels
        )
        self._owner: dict[str, Snapshot | Renamed] = {}
        for item in self.snapshots:
            for name in item.array_names:
                if name not in _SHARED or name not in self._owner:
                    self._owner[name] = item
        self.holes = self._find_holes()

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return f"JoinedSnapshot({self.url!r}, holes={len(self.holes)})"

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the stored arrays of all."""
        return tuple(self._owner)

    def array_spec(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return an array's dtype and shape per sample."""
        return self._of(name).array_spec(name)

    def chunk_path(self, name: str, unit: int) -> str:
        """Return the local path of a file; `unit` is a unit of the dataset that has the array."""
        return self._of(name).chunk_path(name, unit)

    def open_chunks(self, names: Sequence[str], *, access: Access, max_open: int) -> Chunks:
        """Return what copies rows of some arrays; `storage.rows.chunks.open_chunks` calls it."""
        return _JoinedChunks(self._of, names, access=access, max_open=max_open)

    def components(self, name: str) -> tuple[str, ...]:
        """Name the arrays that a level is stored as, its own first."""
        return self._of(name).components(name)

    def codec(self, level: str) -> Codec:
        """Return a level's codec, ready to decode."""
        return self._of(level).codec(level)

    def codec_name(self, level: str) -> str:
        """Return the name of a level's codec; `raw` for an array that is no level."""
        return self._of(level).codec_name(level)

    def decode(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Turn stored rows into values; see `Snapshot.decode`."""
        return self._of(name).decode(name, arrays)

    @cached_property
    def valid(self) -> np.ndarray:
        """Mask, bool (num_samples,): True where the sample is there and usable in all."""
        mask = np.ones(self.num_samples, bool)
        for item in self.snapshots:
            mask &= item.valid[: self.num_samples]
        mask.flags.writeable = False
        return mask

    @cached_property
    def num_valid(self) -> int:
        """Samples that are there and usable."""
        return int(self.valid.sum())

    @cached_property
    def labels(self) -> np.ndarray:
        """Labels, int64 (num_samples,), of the first that has any; -1 where there is none."""
        per_dataset = [item.labels[: self.num_samples] for item in self.snapshots]
        return next((labels for labels in per_dataset if (labels != -1).any()), per_dataset[0])

    @property
    def keys(self) -> list[str]:
        """The source's own names of the samples."""
        return self.snapshots[0].keys[: self.num_samples]

    @property
    def errors(self) -> dict[int, str]:
        """Why samples are not valid, by index; the first one's reason where several say so."""
        reasons: dict[int, str] = {}
        for item in reversed(self.snapshots):
            reasons.update({i: why for i, why in item.errors.items() if i < self.num_samples})
        return reasons

    def quarantined(self) -> dict[int, str]:
        """Return why units could not be made, of those datasets whose units are the first's."""
        same = [item for item in self.snapshots if item.samples_per_unit == self.samples_per_unit]
        return {unit: why for item in reversed(same) for unit, why in item.quarantined().items()}

    def _of(self, name: str) -> Snapshot | Renamed:
        """Return the snapshot that has an array; the first one says what is wrong if none has."""
        if name not in self._owner:
            allowed = ", ".join(self._owner)
            raise DataError(f"{self.url}: got array {name!r:.80}, allowed {allowed}.")
        return self._owner[name]

    def _find_holes(self) -> tuple[int, ...]:
        size, holes = self.samples_per_unit, set[int]()
        for item in self.snapshots:
            own = item.samples_per_unit
            for unit in item.holes:
                stop = min((unit + 1) * own, self.num_samples)
                holes.update(range(unit * own // size, -(-stop // size)))
        return tuple(sorted(holes))


class _JoinedChunks:
    """Copy rows out of several datasets' files; see `storage.rows.chunk_files.Chunks`."""

    def __init__(
        self,
        owner_of: Callable[[str], Snapshot | Renamed],
        names: Sequence[str],
        *,
        access: Access,
        max_open: int,
    ) -> None:
        places: dict[int, list[int]] = {}
        owners: dict[int, Snapshot | Renamed] = {}
        for place, name in enumerate(names):
            owner = owner_of(name)
            owners[id(owner)] = owner
            places.setdefault(id(owner), []).append(place)
        share = max(1, max_open // max(1, len(owners)))
        self._parts = [
            (
                open_chunks(
                    cast(ReadableSnapshot, owners[i]),
                    [names[p] for p in at],
                    access=access,
                    max_open=share,
                ),
                at,
            )
            for i, at in places.items()
        ]

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array."""
        for chunks, places in self._parts:
            chunks.copy(samples, [targets[place] for place in places])

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read sample ranges."""
        spans = list(ranges)
        for chunks, _ in self._parts:
            chunks.read_ahead(spans)

    def close(self) -> None:
        """Close every file."""
        for chunks, _ in self._parts:
            chunks.close()


def join(datasets: Sequence[Dataset], *, version: str | None = None) -> JoinedSnapshot:
    """Show datasets of the same samples as one.

    Args:
        datasets: one or more that share source, seed, image rule and mode; those that drew their
            images from a teacher must share it too.
        version: an earlier view's version, to show the same again.

    Raises:
        ConfigError: if they are not of the same samples, or record a level of the same name.
        DataError: if the version cannot be shown any more.
    """
    if not datasets:
        raise ConfigError(Problem("datasets", "none", "one or more"))
    _check(datasets)
    versions = version.split("+") if version else [None] * len(datasets)
    if len(versions) != len(datasets):
        raise DataError(
            f"version: got one of {len(versions)} datasets, allowed one of {len(datasets)}."
        )
    shown = []
    for dataset, text, names in zip(datasets, versions, prefixes(datasets), strict=True):
        snapshot = dataset.snapshot(text)
        shown.append(Renamed(snapshot, names) if names else snapshot)
    return JoinedSnapshot(shown)


def joined_levels(datasets: Sequence[Dataset]) -> tuple[Level, ...]:
    """Return the levels of several datasets under the names that `join` shows them by."""
    return tuple(
        rename(level, names)
        for dataset, names in zip(datasets, prefixes(datasets), strict=True)
        for level in dataset.levels
    )


def teachers_of(datasets: Sequence[Dataset]) -> dict[str, int]:
    """Number the teachers of several datasets' levels, by the names that `join` shows them by."""
    numbers: dict[str, int] = {}
    of_level = {}
    for dataset, names in zip(datasets, prefixes(datasets), strict=True):
        teacher = canonical_json(dataset.recipe.content.get("teacher"))
        number = numbers.setdefault(teacher, len(numbers))
        of_level |= {rename(level, names).name: number for level in dataset.levels}
    return of_level


def prefixes(datasets: Sequence[Dataset]) -> list[dict[str, str]]:
    """Return per dataset what goes before the names of its levels, where it must.

    A level keeps its name unless a dataset before it has one of that name from another teacher.
    """
    taken: dict[str, str] = {}
    per_dataset = []
    for dataset in datasets:
        teacher = canonical_json(dataset.recipe.content.get("teacher"))
        name = dataset.recipe.name
        own = {
            level.name: name
            for level in dataset.levels
            if taken.get(level.name, teacher) != teacher
        }
        taken |= {rename(level, own).name: teacher for level in dataset.levels}
        per_dataset.append(own)
    return per_dataset


def _check(datasets: Sequence[Dataset]) -> None:
    problems: list[Problem | str] = []
    first, names = datasets[0], set[str]()
    for dataset, own in zip(datasets, prefixes(datasets), strict=True):
        wanted, got = _identity(first.recipe), _identity(dataset.recipe)
        problems += [
            Problem(
                f"{dataset.url}: content.{what}",
                f"{got.get(what)!r:.120}",
                f"{wanted.get(what)!r:.120} as in {first.url}",
                "Only datasets of the same samples join.",
            )
            for what in sorted({*wanted, *got})
            if canonical_json(got.get(what)) != canonical_json(wanted.get(what))
        ]
        if dataset.image_size != first.image_size:
            size, other = dataset.image_size, first.image_size
            problems.append(Problem(f"{dataset.url}: image_size", f"{size}", f"{other}"))
        shown = [rename(level, own).name for level in dataset.levels]
        hint = "Give datasets of several teachers names of their own, with --name." if own else ""
        problems += [
            Problem(f"{dataset.url}: levels", f"{name!r} a second time", "each level once", hint)
            for name in shown
            if name in names
        ]
        names.update(shown)
    if problems:
        raise ConfigError(problems)


def _identity(recipe: Recipe) -> dict[str, object]:
    """Return what decides which sample has which index, and how it looks."""
    content = recipe.content
    kind = content.get("mode")
    kind = kind.get("kind") if isinstance(kind, dict) else kind
    shared = {"source": recipe.source, "seed": content.get("seed"), "image": content.get("image")}
    if kind == "synthesize":  # the teacher makes the samples: all of it must be the same
        return {**shared, "mode": content.get("mode"), "teacher": content.get("teacher")}
    return {**shared, "mode.kind": kind}
