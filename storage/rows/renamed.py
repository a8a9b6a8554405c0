"""Show a snapshot's levels under other names, as where another teacher's have the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from storage.rows.chunk_files import Access, Chunks
from storage.schema import Level


class Renamed:
    """Show a snapshot with some of its levels renamed; all else is the snapshot's own.

    Args:
        snapshot: what is shown.
        prefixes: own name of a level -> the text that goes before its name and its tap, and before
            the names of the arrays it is stored as.
    """

    def __init__(self, snapshot: Any, prefixes: Mapping[str, str]) -> None:
        self._snapshot, self._prefixes = snapshot, dict(prefixes)
        own: dict[str, str] = {
            part: f"{prefix}.{part}"
            for name, prefix in prefixes.items()
            for part in snapshot.components(name)
        }
        self._shown: dict[str, str] = own
        self._own: dict[str, str] = {shown: name for name, shown in own.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._snapshot, name)

    def __len__(self) -> int:
        return len(self._snapshot)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels under the names that are shown."""
        return tuple(rename(level, self._prefixes) for level in self._snapshot.levels)

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of the stored arrays, as shown."""
        names: tuple[str, ...] = self._snapshot.array_names
        return tuple(self._shown.get(name, name) for name in names)

    def array_spec(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Return an array's dtype and shape per sample."""
        return self._snapshot.array_spec(self._name(name))

    def chunk_path(self, name: str, unit: int) -> str:
        """Return the local path of the file with an array's rows of a unit."""
        return self._snapshot.chunk_path(self._name(name), unit)

    def open_chunks(self, names: Sequence[str], *, access: Access, max_open: int) -> Chunks:
        """Return what copies rows of some arrays."""
        own = [self._name(name) for name in names]
        return self._snapshot.open_chunks(own, access=access, max_open=max_open)

    def components(self, name: str) -> tuple[str, ...]:
        """Name the arrays that a level is stored as, its own first."""
        parts: tuple[str, ...] = self._snapshot.components(self._name(name))
        return tuple(self._shown.get(part, part) for part in parts)

    def codec(self, level: str) -> Any:
        """Return a level's codec, ready to decode."""
        return self._snapshot.codec(self._name(level))

    def codec_name(self, level: str) -> str:
        """Return the name of a level's codec; `raw` for an array that is no level."""
        return self._snapshot.codec_name(self._name(level))

    def decode(self, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Turn stored rows into values; see `Snapshot.decode`."""
        own = {self._name(part): rows for part, rows in arrays.items()}
        return self._snapshot.decode(self._name(name), own)

    def _name(self, shown: str) -> str:
        return self._own.get(shown, shown)


def rename(level: Level, prefixes: Mapping[str, str]) -> Level:
    """Return a level under its prefix, tap included: what shares a tap shares a student's head."""
    prefix = prefixes.get(level.name)
    if prefix is None:
        return level
    return replace(level, name=f"{prefix}.{level.name}", tap=f"{prefix}.{level.tap}")
