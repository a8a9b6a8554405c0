"""A feature dataset in Python: length, samples by number and by key, slices, batches for torch.

ds = dreamshard.open_dataset("data/photos")
sample = ds[0]; ds["cats/001.jpg"].levels["s4"]; len(ds[100:200])
for batch in ds.torch(batch_size=64, levels=["s4"]): ...
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dreamshard.errors import ConfigError, DataError, Problem
from storage.codecs.arrays import IMAGE, LABEL, MASK
from storage.dataset import Dataset
from storage.level_names import ByLevel, choose_levels
from storage.rows.pick import read_rows
from storage.schema import Level
from storage.snapshot import Snapshot

if TYPE_CHECKING:
    import torch

    from dreamshard.console.api.batches import TorchBatches

AT_ONCE = 64
"""Samples that iterating reads together: bounds memory, not the result."""


@dataclass(frozen=True)
class Sample:
    """Hold one sample.

    Args:
        index: its number in the dataset.
        key: the source's own name of it, such as the path of its file in the folder.
        image: uint8 (H, W, 3) as the teacher saw it; None where images are not stored.
        levels: float arrays (level.shape) by level name, decoded; a stride (`s4`) finds the one
            level of that stride.
        label: class number; -1 where there is none.
        mask: uint8 (H, W), class of every pixel; None where there is none.
        valid: whether it can be used; False for an image that could not be read.
        error: why not.
    """

    index: int
    key: str
    image: np.ndarray | None
    levels: ByLevel[np.ndarray]
    label: int
    mask: np.ndarray | None
    valid: bool
    error: str

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in self.levels.items())
        return f"Sample({self.index}, key={self.key!r}, label={self.label}, {shapes})"


class Samples:
    """Show some samples of a dataset, in an order of one's own; what a slice returns.

    Args:
        snapshot: what they are of.
        numbers: int64 (N,), theirs in the dataset.
    """

    def __init__(self, snapshot: Snapshot, numbers: np.ndarray) -> None:
        self.snapshot, self.numbers = snapshot, numbers

    def __repr__(self) -> str:
        return f"{len(self):,} samples of {self.snapshot.url}"

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, which: int | str) -> Sample: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | Sequence[str] | np.ndarray) -> Samples: ...
    def __getitem__(self, which: Any) -> Sample | Samples:
        """Return a sample by number or key; several by slice, list or mask.

        Args:
            which: a number (negative from the end) or a key; a slice of numbers, or of keys, whose
                end belongs to it; numbers, keys, or bool (N,).

        Raises:
            IndexError: there is no such number.
            KeyError: there is no such key.
            TypeError: what is none of these, such as one bool, None or a list of lists.
        """
        if isinstance(which, str):
            return self._read([self._place(which)])[0]
        if isinstance(which, (int, np.integer)) and not isinstance(which, bool):
            place = int(which) + (len(self) if which < 0 else 0)
            if not 0 <= place < len(self):
                raise IndexError(f"sample {which}: allowed {-len(self)}..{len(self) - 1}")
            return self._read([place])[0]
        return Samples(self.snapshot, self.numbers[self._places(which)])

    def __iter__(self) -> Iterator[Sample]:
        for first in range(0, len(self), AT_ONCE):
            yield from self._read(range(first, min(first + AT_ONCE, len(self))))

    @property
    def keys(self) -> list[str]:
        """The source's own names of the samples."""
        known = self.snapshot.keys
        return [known[number] for number in self.numbers.tolist()]

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 (N,); -1 where there is none."""
        return self.snapshot.labels[self.numbers]

    @property
    def valid(self) -> np.ndarray:
        """Whether samples can be used, bool (N,); False, too, where none was made."""
        return self.snapshot.valid[self.numbers]

    @property
    def levels(self) -> tuple[Level, ...]:
        """What is recorded of each sample."""
        return self.snapshot.levels

    def read(self, level: str) -> np.ndarray:
        """Return one level of all of these samples, (N, *level.shape), decoded.

        Args:
            level: its name, or a tap or stride that means one level; "image", "label" and "mask",
                too.

        Raises:
            ConfigError: there is no such level, or several.
            DataError: samples that were not made, or files that are damaged.
        """
        if level not in (IMAGE, LABEL, MASK):
            chosen, problems = choose_levels(self.levels, [level], key="level")
            if len(chosen) > 1:
                names = ", ".join(item.name for item in chosen)
                problems = [Problem("level", f"{level!r}, which is {len(chosen)} levels", names)]
            if problems:
                raise ConfigError([*problems])
            level = chosen[0].name
        self._check_made(self.numbers)
        return read_rows(self.snapshot, level, self.numbers)

    def torch(
        self,
        *,
        batch_size: int,
        levels: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        threads: int = 2,
    ) -> TorchBatches:
        """Return what a plain training loop iterates over: one pass over the samples at a time.

        Args:
            batch_size: samples per batch, 1 or more.
            levels: to read, by name, tap or stride (`s4`); None for all. No other is read.
            shuffle: draw a new order for every pass, by the seed; else the dataset's own, whatever
                the order of these samples.
            seed: of the order.
            device: where tensors go; quantised levels are decoded there.
            drop_last: leave a last smaller batch out.
            threads: that read ahead (count).

        Returns:
            An iterable whose `len` is its number of batches. A batch has `images` (float32
            (B, 3, H, W) in 0..1; None where none are stored), `levels` (float32 (B, *level.shape)
            by name or stride), `label` (int64 (B,), or None), `index` (int64 (B,)). Samples that
            cannot be used are left out.

        Raises:
            ConfigError: no such level, a batch size below 1, a device that is not there, or a
                sample that is more than once among these.
            DataError: units of the dataset are missing, or nothing is usable.
        """
        from dreamshard.console.api.batches import TorchBatches

        return TorchBatches(
            self.snapshot,
            index=self.numbers,
            batch_size=batch_size,
            levels=levels,
            shuffle=shuffle,
            seed=seed,
            device=device,
            drop_last=drop_last,
            threads=threads,
        )

    @functools.cached_property
    def _place_of(self) -> dict[str, int]:
        return {key: place for place, key in reversed(list(enumerate(self.keys))) if key}

    def _place(self, key: str) -> int:
        place = self._place_of.get(key)
        if place is None:
            close = difflib.get_close_matches(key, self._place_of, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            some = ", ".join(map(repr, [*self._place_of][:3]))
            raise KeyError(f"{key!r}: no sample has this key, keys are such as {some}{hint}")
        return place

    def _places(self, which: Any) -> np.ndarray:
        """Return places among these samples, int64."""
        if isinstance(which, slice):
            start, stop = which.start, which.stop
            if isinstance(start, str):
                start = self._place(start)
            if isinstance(stop, str):
                stop = self._place(stop) + 1
            return np.arange(len(self))[slice(start, stop, which.step)]
        wanted = list(which) if np.ndim(which) == 1 else None
        if wanted and all(isinstance(item, str) for item in wanted):
            return np.array([self._place(key) for key in wanted], np.int64)
        mask = np.asarray(which)
        if wanted is None or (wanted and mask.dtype.kind not in "biu"):
            raise TypeError(
                f"{which!r:.80}: allowed are a number or a key; a slice, or a list of numbers, "
                "keys or bools"
            )
        if mask.dtype == bool and len(mask) != len(self):
            raise IndexError(f"a mask of {len(mask)} samples: allowed one of {len(self)}")
        return np.arange(len(self))[mask if mask.size else mask.astype(np.int64)]

    def _check_made(self, index: np.ndarray) -> None:
        missing = index[~self.snapshot.present[index]]
        if len(missing):
            raise DataError(
                f"{self.snapshot.url}: got sample {missing[0]} ({len(missing):,} in all) of a unit "
                "that is not made, allowed those of committed units. Run the command that made the "
                "dataset again."
            )

    def _read(self, places: Sequence[int]) -> list[Sample]:
        shot, index = self.snapshot, self.numbers[np.asarray(places, np.int64)]
        self._check_made(index)
        names = [name for name in (IMAGE, MASK) if name in shot.array_names]
        rows = {n: read_rows(shot, n, index) for n in [*names, *(lv.name for lv in shot.levels)]}
        errors = {} if shot.valid[index].all() else shot.errors
        return [
            Sample(
                index=number,
                key=shot.keys[number],
                image=rows[IMAGE][row] if IMAGE in rows else None,
                levels=ByLevel({lv.name: rows[lv.name][row] for lv in shot.levels}, shot.levels),
                label=int(shot.labels[number]),
                mask=rows[MASK][row] if MASK in rows else None,
                valid=bool(shot.valid[number]),
                error=errors.get(number, ""),
            )
            for row, number in enumerate(index.tolist())
        ]


class FeatureDataset(Dataset):
    """A dataset to look into; all that `storage.dataset.Dataset` has, and its samples.

    It shows what was there when it was first looked into; `refresh` looks again.
    """

    @functools.cached_property
    def samples(self) -> Samples:
        """All samples, those included that cannot be used."""
        shot = self.snapshot()
        return Samples(shot, np.arange(shot.num_samples))

    def refresh(self) -> FeatureDataset:
        """Show what is committed now; return the dataset itself."""
        self.__dict__.pop("samples", None)
        return self

    def __repr__(self) -> str:
        names = ", ".join(f"{lv.name} {'x'.join(map(str, lv.shape))}" for lv in self.levels)
        return f"{len(self):,} samples of {self.url}: {names}"

    def __len__(self) -> int:
        return len(self.samples)

    def __bool__(self) -> bool:
        return True  # an empty dataset is one, too

    @overload
    def __getitem__(self, which: int | str) -> Sample: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | Sequence[str] | np.ndarray) -> Samples: ...
    def __getitem__(self, which: Any) -> Sample | Samples:
        """Return a sample by number or key, several by slice, list or mask; see `Samples`."""
        return self.samples[which]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def keys(self) -> list[str]:
        """The source's own names of the samples."""
        return self.samples.keys

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int64 (N,); -1 where there is none."""
        return self.samples.labels

    def read(self, level: str) -> np.ndarray:
        """Return one level of all samples, (N, *level.shape); see `Samples.read`."""
        return self.samples.read(level)

    def torch(
        self,
        *,
        batch_size: int,
        levels: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        threads: int = 2,
    ) -> TorchBatches:
        """Return what a plain training loop iterates over; see `Samples.torch`."""
        return self.samples.torch(
            batch_size=batch_size,
            levels=levels,
            shuffle=shuffle,
            seed=seed,
            device=device,
            drop_last=drop_last,
            threads=threads,
        )


def open_features(url: str) -> FeatureDataset:
    """Open a dataset by its folder, or by ROOT/NAME; see `dreamshard.open_dataset`."""
    from storage.catalog import find_dataset

    return FeatureDataset.open(find_dataset(str(url)).url)
