"""What a run asks of the place its samples come from: shards, a stream, or a teacher in-process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from storage.batches.filler import Share
from storage.batches.reader import Batch
from storage.codecs.base import Codec
from storage.join import JoinedSnapshot
from storage.schema import Level, Recipe
from storage.snapshot import Snapshot

Stored = Snapshot | JoinedSnapshot


class Reader(Protocol):
    """Hand out one rank's share of every global batch, in the order of an endless stream."""

    @property
    def position(self) -> int:
        """Samples of the stream handed out so far, over all ranks."""
        ...

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for data so far."""
        ...

    def next(self) -> Batch:
        """Return the next batch, whose memory the one after it may reuse."""
        ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


class Source(Protocol):
    """Say what there is, of which recipe, and open readers of it."""

    url: str
    """Where it is, or its name, for messages and records."""
    recipe: Recipe
    """What decides the samples' bytes; a run goes on only with the same one."""
    levels: tuple[Level, ...]
    """Every level, as recorded."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""
    teachers: dict[str, int]
    """Number of the teacher that a level is of, by the level's name."""
    joined: tuple[Recipe, ...]
    """Recipes of what joins it on the same samples, such as those of further teachers."""
    licence: str
    """Licence of the teachers' weights."""
    labelled: bool
    """Whether samples have labels that a run can learn."""

    @property
    def version(self) -> str:
        """State of what is stored, which a run keeps to its end."""
        ...

    @property
    def stored(self) -> Stored | None:
        """What is stored at that version; None where samples are gone once they are used."""
        ...

    @property
    def num_valid(self) -> int:
        """Usable samples per epoch; a generator without end counts as none."""
        ...

    def at(self, version: str) -> Source:
        """Return the same at another version, where a resumed run began."""
        ...

    def codec(self, level: str) -> Codec:
        """Return how a level's values lie in batches, ready to decode."""
        ...

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

        Args:
            levels: names of the levels to read.
            share: which part of every batch, and where in the stream to begin.
            seed: of the order.
            labels: read the samples' labels, too.
            kept: bool (samples,), those to read; None: all.
        """
        ...
