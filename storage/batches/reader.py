"""Read shuffled batches from a snapshot's chunk files at memory speed, endlessly, resumably."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem
from storage.batches.filler import Filler, Share
from storage.batches.positions import PositionStream, Shuffle
from storage.batches.prefetch import Prefetcher
from storage.batches.ring import Slot
from storage.rows.chunk_files import Access, ReadableSnapshot
from storage.rows.chunks import open_chunks


@dataclass(frozen=True, slots=True)
class Batch:
    """Carry one rank's share of a global batch; N = batch_size / world_size.

    Args:
        position: stream position of the global batch's first sample.
        index: int64 (N,), the samples' numbers in the dataset.
        levels: arrays by name, as stored: (N, *level shape) by level name where the codec keeps
            plain numbers; quantised levels have their scales beside them (`<level>.scale`).
        image: uint8 (N, H, W, 3), or None where not asked for.
        label: int64 (N,), -1 = none, or None where not asked for.
    """

    position: int
    index: np.ndarray
    levels: dict[str, np.ndarray]
    image: np.ndarray | None = None
    label: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)


class BatchReader:
    """Hand out batches of valid samples without end, read ahead by background threads.

    Iterating never ends; every rank gets the same number of batches, and every valid sample comes
    once per epoch over all ranks. `position` is all it takes to resume, at any world size.

    **Aliasing.** Batches are views into a ring of `depth + prefetch` reused buffers. A batch stays
    valid until `depth` further batches were handed out, then its memory is overwritten. Copy what
    must live longer, or set `copy=True`: every batch then gets memory of its own, at less speed.

    A file of a chunk must not be truncated while it is read (committed chunks never change). Only
    the arrays asked for are opened. Make a reader after a fork, not before: threads do not follow.

    Args:
        snapshot: what to read; samples with `valid` False are skipped.
        levels: names of the levels to read; may be empty. `components` says which arrays of a
            batch each is stored as, `snapshot.codec_name(level)` by which codec.
        batch_size: samples per GLOBAL batch, 1 or more, a multiple of world_size.
        rank, world_size: rank r of R takes samples [r*b/R, (r+1)*b/R) of every global batch of b.
        seed, shuffle: the order, see `PositionStream`; a block is an eighth of a unit.
        images, labels: read the arrays `image` and `label` too.
        depth: further batches during which a batch stays valid, 1 or more.
        prefetch: batches filled ahead, 1 or more.
        threads: threads that copy, 1 or more; also the parts a batch is split into.
        copy: give every batch memory of its own.
        start: stream position to begin at, 0 or more.
        allow_holes: read a dataset that lacks units instead of refusing.
        access, max_open: how chunk files are read, see `open_chunks`.

    Raises:
        ConfigError: if a setting is out of range or a level does not exist; all at once.
        DataError: if the dataset has holes or no valid sample; from `next` if a file is damaged.
    """

    def __init__(
        self,
        snapshot: ReadableSnapshot,
        *,
        levels: Sequence[str],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: Shuffle = "full",
        images: bool = True,
        labels: bool = False,
        depth: int = 2,
        prefetch: int = 2,
        threads: int = 2,
        copy: bool = False,
        start: int = 0,
        allow_holes: bool = False,
        access: Access = "map",
        max_open: int = 256,
    ) -> None:
        share = Share(batch_size=batch_size, rank=rank, world_size=world_size, start=start)
        _check(share, depth=depth, prefetch=prefetch, threads=threads)
        _check_whole(snapshot, allow_holes)
        self.levels, self.batch_size, self.position = tuple(levels), batch_size, start
        self.components = _components(snapshot, levels)
        self.arrays = tuple(dict.fromkeys(part for c in self.components.values() for part in c))
        self._images, self._labels, self._reuses = images, labels, not copy
        names = list(dict.fromkeys([*self.arrays, *["image"] * images, *["label"] * labels]))
        self._chunks = open_chunks(snapshot, names, access=access, max_open=max_open)
        self.stream = PositionStream(
            num_samples=snapshot.num_samples,
            valid=snapshot.valid,
            seed=seed,
            shuffle=shuffle,
            block_samples=max(1, snapshot.samples_per_unit // 8),
        )
        filler = Filler(
            chunks=self._chunks, names=names, stream=self.stream, share=share, parts=threads,
            prefetch=prefetch,
        )  # fmt: skip
        slot_of = _slots(snapshot, names, share.rows, 0 if copy else depth + prefetch)
        self._filler, self._prefetcher = (
            filler,
            Prefetcher(
                fill=filler.fill, slot_of=slot_of, parts=threads, threads=threads, ahead=prefetch
            ),
        )
        self._stopper = weakref.finalize(self, _stop, self._prefetcher, filler)

    @property
    def reuses_memory(self) -> bool:
        """Whether batches lie in the same few buffers, one after another."""
        return self._reuses

    @property
    def epoch_size(self) -> int:
        """Valid samples per epoch."""
        return self.stream.epoch_size

    @property
    def wait_s(self) -> float:
        """Seconds that `next` has spent waiting for data so far."""
        return self._prefetcher.wait_s

    def next(self) -> Batch:
        """Return the next batch; see the class for how long it stays valid.

        Raises:
            DataError: if a chunk file is missing, damaged or of another size.
            DreamshardError: after `close`, or in a forked process.
        """
        slot = self._prefetcher.next()
        arrays, position = slot.arrays, self.position
        self.position += self.batch_size
        return Batch(
            position=position,
            index=slot.index,
            levels={name: arrays[name] for name in self.arrays},
            image=arrays["image"] if self._images else None,
            label=arrays["label"] if self._labels else None,
        )

    __next__ = next

    def __iter__(self) -> Iterator[Batch]:
        return self

    def close(self) -> None:
        """Stop the threads and unmap the files; batches handed out stay as they are."""
        self._stopper.detach()
        self._filler.stop()
        self._prefetcher.close()
        self._chunks.close()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _slots(
    snapshot: ReadableSnapshot, names: Sequence[str], rows: int, count: int
) -> Callable[[int], Slot]:
    """Return where each batch goes: round a ring of `count` slots, or to a new one each if 0."""
    specs = {name: snapshot.array_spec(name) for name in names}
    ring = [Slot(rows, specs) for _ in range(count)]
    if not ring:
        return lambda _number: Slot(rows, specs)
    return lambda number: ring[number % count]


def _stop(prefetcher: Prefetcher[Slot], filler: Filler) -> None:
    filler.stop()
    prefetcher.stop()


def _check_share(share: Share) -> list[Problem | str]:
    batch, ranks = share.batch_size, share.world_size
    problems: list[Problem | str] = []
    if ranks < 1:
        problems.append(Problem("world_size", str(ranks), "1 or more"))
    elif not 0 <= share.rank < ranks:
        problems.append(Problem("rank", str(share.rank), f"0..{ranks - 1}"))
    if batch < 1:
        problems.append(Problem("batch_size", str(batch), "1 or more"))
    elif ranks >= 1 and batch % ranks:
        below = batch - batch % ranks
        near = f"{below} or {below + ranks}" if below else str(ranks)
        got = f"{batch} over {ranks} ranks ({batch} % {ranks} = {batch % ranks})"
        allowed = f"a multiple of {ranks}, so that every rank gets as many"
        problems.append(Problem("batch_size", got, allowed, f"Try {near}."))
    if share.start < 0:
        problems.append(Problem("start", str(share.start), "0 or more"))
    return problems


def _check(share: Share, **counts: int) -> None:
    problems = _check_share(share)
    problems += [Problem(key, str(n), "1 or more") for key, n in counts.items() if n < 1]
    if problems:
        raise ConfigError(problems)


def _components(snapshot: ReadableSnapshot, levels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the arrays that each level is stored as; unknown ones are refused when opened."""
    known = set(levels).intersection(snapshot.array_names)
    return {name: snapshot.components(name) if name in known else (name,) for name in levels}


def _check_whole(snapshot: ReadableSnapshot, allow_holes: bool) -> None:
    holes = [int(unit) for unit in snapshot.holes]
    if holes and not allow_holes:
        told = snapshot.quarantined()
        some = [f"{unit} ({told[unit]})" if unit in told else str(unit) for unit in holes[:5]]
        text = ", ".join([*some, *["..."] * (len(holes) > 5)])
        raise DataError(
            f"{snapshot.url}: got {len(holes)} missing units ({text}), allowed none. Run the "
            "command that made the dataset again to fill them, or allow_holes to read without."
        )
