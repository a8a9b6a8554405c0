"""Know where each row of a snapshot lies, and open its chunk files after checking their size.

A chunk file holds `samples_per_unit` rows of one array as raw little-endian C-order bytes, so a row
is found by arithmetic alone.
"""

from __future__ import annotations

import math
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np

from dreamshard.errors import DataError
from storage.fs.beneath import is_unreadable, open_regular, refused

_Opened = TypeVar("_Opened")
Access = Literal["map", "pread", "range"]


class Chunks(Protocol):
    """Copy rows of several arrays at once; safe to call from several threads."""

    def copy(self, samples: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Copy samples' rows of every array, in the order of the names.

        Args:
            samples: int64 (N,), any order, repeats allowed.
            targets: one C-contiguous array (N, *per-sample shape) per array.

        Raises:
            DataError: if a sample is out of range, or a file missing or of another size.
        """
        ...

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel for sample ranges [first, stop), to read in the background."""
        ...

    def close(self) -> None:
        """Close every file that no copy under way still needs."""
        ...


class ReadableSnapshot(Protocol):
    """Say what a reader needs to know of a dataset at one version."""

    @property
    def url(self) -> str:
        """Where the dataset is, for messages."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples, valid or not."""
        ...

    @property
    def samples_per_unit(self) -> int:
        """Rows of every chunk file."""
        ...

    @property
    def valid(self) -> Any:  # an ndarray: pyright does not see through a cached_property
        """Mask, bool (num_samples,), False where readers skip the sample."""
        ...

    @property
    def holes(self) -> Sequence[int]:
        """Units that are not there."""
        ...

    @property
    def array_names(self) -> Sequence[str]:
        """Names of all arrays: levels, and `image` and `label` where kept."""
        ...

    def array_spec(self, name: str, /) -> tuple[np.dtype, tuple[int, ...]]:
        """Return an array's dtype and per-sample shape."""
        ...

    def chunk_path(self, name: str, unit: int, /) -> str:
        """Return the local path of an array's chunk file."""
        ...

    def open_chunks(self, names: Sequence[str], *, access: Access, max_open: int) -> Chunks:
        """Return what copies rows of some arrays out of the files."""
        ...

    def components(self, name: str, /) -> tuple[str, ...]:
        """Name the arrays that a level is stored as, its own first; any other array is itself."""
        ...

    def decode(self, name: str, arrays: Mapping[str, np.ndarray], /) -> np.ndarray:
        """Turn stored rows of an array's components into its values."""
        ...

    def quarantined(self) -> dict[int, str]:
        """Return why units among the holes could not be made, as far as that is known."""
        ...


class ChunkFiles:
    """Find rows of several arrays, and open the files they are in.

    Args:
        names: arrays to read; no other array's file is touched.
        max_open: files that may be open at a time; one unit's always may.
    """

    def __init__(self, snapshot: ReadableSnapshot, names: Sequence[str], max_open: int) -> None:
        self.snapshot, self.names = snapshot, list(names)
        specs = [snapshot.array_spec(name) for name in names]
        sizes = [np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in specs]
        self.row_bytes = np.array(sizes, np.uint64)
        self.units = -(-snapshot.num_samples // snapshot.samples_per_unit)
        self.max_units = max(1, max_open // max(1, len(self.names)))
        self.fits = self.units <= self.max_units

    def open(self, array: int, unit: int) -> tuple[int, int]:
        """Open a chunk file, return its descriptor and size.

        Raises:
            DataError: if it is missing, unreadable, or not exactly as long as its rows.
        """
        name = self.names[array]
        path = self.snapshot.chunk_path(name, unit)
        want = self.snapshot.samples_per_unit * int(self.row_bytes[array])
        mend = f"Run `dreamshard verify --repair {self.snapshot.url}`."
        try:
            descriptor = open_again(path, lambda: self.snapshot.chunk_path(name, unit))
        except OSError as error:
            if is_unreadable(error):
                raise refused(path, "read", error) from error
            why = error.strerror or type(error).__name__
            raise DataError(f"{path}: got {why}, allowed a chunk of {want} bytes. {mend}") from None
        size = os.fstat(descriptor).st_size
        if size != want:
            os.close(descriptor)
            raise DataError(f"{path}: got {size} bytes, allowed exactly {want}. {mend}")
        return descriptor, size

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the unit and the row within it of each sample."""
        if samples.size and (samples.min() < 0 or samples.max() >= self.snapshot.num_samples):
            raise DataError(
                f"{self.snapshot.url}: got sample {samples.min()} to {samples.max()}, allowed "
                f"0..{self.snapshot.num_samples - 1}."
            )
        return np.divmod(samples, self.snapshot.samples_per_unit)

    def read_ahead(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Ask the kernel to read sample ranges; it does so in the background."""
        if not hasattr(os, "posix_fadvise"):
            return
        per_unit = self.snapshot.samples_per_unit
        for first, stop in ranges:
            for unit in range(first // per_unit, -(-stop // per_unit)):
                low = max(first - unit * per_unit, 0)
                rows = min(stop - unit * per_unit, per_unit) - low
                for array, size in enumerate(self.row_bytes.tolist()):
                    descriptor, _size = self.open(array, unit)
                    will_need = os.POSIX_FADV_WILLNEED
                    os.posix_fadvise(descriptor, low * size, rows * size, will_need)
                    os.close(descriptor)


def runs(units: np.ndarray, most: int) -> Iterator[slice]:
    """Yield parts of a batch, in its order, none of which lies in more than `most` units."""
    start, seen = 0, set[int]()
    for at, unit in enumerate(units.tolist()):
        if unit not in seen and len(seen) == most:
            yield slice(start, at)
            start, seen = at, set()
        seen.add(unit)
    yield slice(start, len(units))


def descriptors(max_open: int) -> int:
    """Return how many files may be kept open: no more than a quarter of what the process may."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max_open if limit == resource.RLIM_INFINITY else max(1, min(max_open, limit // 4))


def open_again(path: str, ask: Callable[[], str]) -> int:
    """Open a file for reading; if it is gone, ask for its path again.

    A copy in the disk cache may go between being asked for and being opened. A pipe or a device is
    refused, not waited for.
    """
    for _ in range(4):
        try:
            return open_regular(path)
        except FileNotFoundError:
            path = ask()
    return open_regular(path)


class OpenFile:
    """Keep a file open as long as this object lives."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class OpenUnits(Generic[_Opened]):
    """Keep the most recently used units open; whoever still uses an older one keeps it alive.

    Args:
        open_unit: returns what belongs to a unit; called by one thread at a time.
        limit: units kept open.
    """

    def __init__(self, open_unit: Callable[[int], _Opened], limit: int) -> None:
        # The owner of this object opens the units: a circle would keep both, with the snapshot
        # that they read and its hold on the dataset, until the collector comes round.
        method = isinstance(open_unit, MethodType)
        self._open_unit = weakref.WeakMethod(open_unit) if method else lambda: open_unit
        self._limit = limit
        self._units: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def use(self, units: Iterable[int]) -> list[_Opened]:
        """Return what belongs to each unit, opening what is missing, then close the oldest."""
        used = []
        with self._lock:
            for unit in units:
                opened = self._units.get(unit)
                if opened is None:
                    opened = self._units[unit] = self._opener()(unit)
                self._units.move_to_end(unit)
                used.append(opened)
            while len(self._units) > self._limit:
                self._units.popitem(last=False)
        return used

    def _opener(self) -> Callable[[int], _Opened]:
        opener = self._open_unit()
        assert opener is not None  # its owner is what asks
        return opener

    def clear(self) -> None:
        """Close all that nobody uses."""
        with self._lock:
            self._units.clear()
