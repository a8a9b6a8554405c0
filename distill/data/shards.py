"""Samples out of datasets that lie on disk: one, or several of the same samples joined."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.source import Reader, Stored
from storage.batches.filler import Share
from storage.batches.reader import BatchReader
from storage.catalog import find_dataset
from storage.codecs.base import Codec
from storage.dataset import Dataset
from storage.join import join, joined_levels, teachers_of
from storage.schema import Level

if TYPE_CHECKING:
    from distill.configs.train import DataConfig


def open_shards(config: DataConfig) -> ShardSource:
    """Find a run's dataset and those that join it.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one.
    """
    return ShardSource(config, tuple(find_dataset(name) for name in (config.dataset, *config.join)))


def open_real(config: DataConfig) -> ShardSource:
    """Find the dataset of real images.

    Raises:
        DataError: no such dataset, several of that name, or not a readable one.
    """
    return ShardSource(config, (find_dataset(config.real),))


class ShardSource:
    """Read shards; see `Source` for the rest.

    Args:
        config: how they are read.
        datasets: of the same samples; the first one's recipe is the run's.
        version: to show; None: the latest.
    """

    def __init__(
        self, config: DataConfig, datasets: tuple[Dataset, ...], *, version: str | None = None
    ) -> None:
        self._config, self.datasets, self._version = config, datasets, version
        first = datasets[0]
        self.url, self.recipe, self.image_size = first.url, first.recipe, first.image_size
        self.licence = "; ".join(dict.fromkeys(one.about.licence for one in datasets))
        self.labelled = any(one.about.labels for one in datasets)
        self.levels: tuple[Level, ...] = joined_levels(datasets)
        self.teachers = teachers_of(datasets)
        self.joined = tuple(one.recipe for one in datasets[1:])

    @cached_property
    def stored(self) -> Stored:
        """The dataset at the version asked for, else as it is now; several as one.

        Raises:
            ConfigError: datasets that are not of the same samples.
        """
        if len(self.datasets) == 1:
            return self.datasets[0].snapshot(version=self._version)
        return join(self.datasets, version=self._version)

    @property
    def version(self) -> str:
        """Name of that version."""
        return self.stored.version

    @property
    def num_valid(self) -> int:
        """Usable samples."""
        return self.stored.num_valid

    def at(self, version: str) -> ShardSource:
        """Return the same datasets at another version."""
        return ShardSource(self._config, self.datasets, version=version)

    def codec(self, level: str) -> Codec:
        """Return a level's codec; a learned one with its basis."""
        return self.stored.codec(level)

    def read(
        self,
        levels: Sequence[str],
        *,
        share: Share,
        seed: int,
        labels: bool = False,
        kept: np.ndarray | None = None,
    ) -> Reader:
        """Open a reader.

        Raises:
            DataError: units are missing, and holes are not allowed.
        """
        shown: Any = self.stored if kept is None else Subset(self.stored, kept)
        config = self._config
        return BatchReader(
            shown,
            levels=levels,
            labels=labels,
            batch_size=share.batch_size,
            rank=share.rank,
            world_size=share.world_size,
            seed=seed,
            shuffle=config.shuffle,
            depth=1,  # a batch is copied before the next one is asked for
            prefetch=config.prefetch,
            threads=config.threads,
            access=config.access,
            start=share.start,
            allow_holes=config.allow_holes,
        )


class Subset:
    """Show some samples of a snapshot to a reader.

    Args:
        snapshot: what is read.
        kept: bool (num_samples,), the samples to show, as far as they are valid.
    """

    def __init__(self, snapshot: Stored, kept: np.ndarray) -> None:
        self._snapshot = snapshot
        self.valid = snapshot.valid & kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)
