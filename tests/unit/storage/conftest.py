"""A stand-in for a snapshot: chunk files and nothing else, so that readers are tested alone."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from storage.rows.chunk_files import Access, Chunks
from storage.rows.chunks import open_raw

Spec = tuple[np.dtype, tuple[int, ...]]


class FakeSnapshot:
    """Hold random rows in `rows` and in chunk files; the last unit is padded to full size."""

    def __init__(
        self,
        root: Path,
        specs: dict[str, tuple[str, tuple[int, ...]]],
        *,
        num_samples: int,
        samples_per_unit: int,
        invalid: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.url, self.version = str(root), "1"
        self.num_samples, self.samples_per_unit = num_samples, samples_per_unit
        self.specs: dict[str, Spec] = {n: (np.dtype(d), shape) for n, (d, shape) in specs.items()}
        self.units = np.arange(-(-num_samples // samples_per_unit))
        self.holes: list[int] = []
        self.valid = np.ones(num_samples, bool)
        self.valid[invalid or []] = False
        random = np.random.default_rng(seed)
        self.rows: dict[str, np.ndarray] = {}
        for name, (dtype, shape) in self.specs.items():
            padded = len(self.units) * samples_per_unit
            size = padded * math.prod(shape) * dtype.itemsize
            array = random.integers(0, 256, size, dtype=np.uint8).view(dtype)
            array = array.reshape(padded, *shape)
            (root / name).mkdir(parents=True)
            for unit in self.units.tolist():
                chunk = array[unit * samples_per_unit : (unit + 1) * samples_per_unit]
                Path(self.chunk_path(name, unit)).write_bytes(chunk.tobytes())
            self.rows[name] = array[:num_samples]

    @property
    def array_names(self) -> list[str]:
        return list(self.specs)

    def array_spec(self, name: str, /) -> Spec:
        return self.specs[name]

    def chunk_path(self, name: str, unit: int, /) -> str:
        return f"{self.url}/{name}/{unit}"

    def open_chunks(self, names: Sequence[str], *, access: Access, max_open: int) -> Chunks:
        return open_raw(self, names, access=access, max_open=max_open)

    def components(self, name: str, /) -> tuple[str, ...]:
        return (name,)

    def decode(self, name: str, arrays: Mapping[str, np.ndarray], /) -> np.ndarray:
        return arrays[name]

    def quarantined(self) -> dict[int, str]:
        return {}

    @property
    def row_bytes(self) -> int:
        return sum(d.itemsize * math.prod(shape) for d, shape in self.specs.values())


class MakeSnapshot:
    """Make fake snapshots below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(
        self,
        specs: dict[str, tuple[str, tuple[int, ...]]] | None = None,
        *,
        num_samples: int = 40,
        samples_per_unit: int = 8,
        invalid: list[int] | None = None,
    ) -> FakeSnapshot:
        if specs is None:
            specs = {
                "s8": ("<f2", (4, 3, 3)),
                "s16": ("<f2", (5,)),
                "image": ("u1", (4, 4, 3)),
                "label": ("<i8", ()),
            }
        root = Path(tempfile.mkdtemp(dir=self.root))
        return FakeSnapshot(
            root,
            specs,
            num_samples=num_samples,
            samples_per_unit=samples_per_unit,
            invalid=invalid,
        )


@pytest.fixture(scope="session")
def make_snapshot() -> Iterator[MakeSnapshot]:
    with tempfile.TemporaryDirectory() as folder:
        yield MakeSnapshot(Path(folder))
