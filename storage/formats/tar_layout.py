"""Where things lie in a tar dataset: keys of shards and indices, members' names, their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamshard.errors import DataError
from dreamshard.foreign.text import number_in
from storage.codecs.arrays import LABEL
from storage.codecs.base import ArraySpec
from storage.formats.tar_format import (
    MAX_NAME,
    extension,
    json_member,
    member_key,
    older_json_member,
)
from storage.formats.tar_index import read_index
from storage.fs.local import Files
from storage.ledger.commits import Commit

FOLDER = "shards"
_INDEX_CHARS = 16  # a key is at least the sample's number


class TarLayout:
    """Say where the rows of a dataset's arrays lie in WebDataset shards.

    Raises:
        DataError: if an array is compressed, or a level's name too long for a member's.
    """

    def __init__(self, files: Files, arrays: Sequence[ArraySpec], *, samples_per_unit: int) -> None:
        self.files, self.samples_per_unit = files, samples_per_unit
        self.arrays = {spec.name: spec for spec in arrays}
        for spec in arrays:
            if spec.compression not in ("", "png"):
                raise DataError(
                    f"layout.codecs: array {spec.name}: got compression {spec.compression!r} in "
                    "format 'tar', allowed none. Choose format 'zarr', or compress the shards."
                )
        longest = max([len(".json"), *(len(extension(spec)) for spec in arrays)])
        self._key_room = MAX_NAME - longest
        if self._key_room < _INDEX_CHARS:
            raise DataError(
                f"levels: got a name of {longest - 5} characters, allowed "
                f"{MAX_NAME - _INDEX_CHARS - 5} in format 'tar'."
            )

    def array_key(self, name: str, unit: int) -> str:
        """Return the key of the shard that holds a unit, whatever the array."""
        return f"{FOLDER}/{unit:06d}.tar"

    def index_key(self, unit: int) -> str:
        """Return the key of a shard's index."""
        return f"{FOLDER}/{unit:06d}.idx"

    def unit_keys(self, unit: int) -> list[str]:
        """List the files of a unit."""
        return [self.array_key("", unit), self.index_key(unit)]

    def unit_of(self, key: str) -> int | None:
        """Return the unit whose file a key names, None if it is no unit's."""
        return number_in(key.rpartition("/")[2].partition(".")[0])

    def read_index(self, unit: int) -> np.ndarray:
        """Read a shard's index, int64 (2, arrays + 1, samples)."""
        return read_index(
            self.files,
            self.index_key(unit),
            members=len(self.arrays) + 1,
            max_samples=self.samples_per_unit,
        )

    def sample_key(self, index: int, key: str) -> str:
        """Return the WebDataset key of a sample, from its number and the source's name of it."""
        return member_key(index, key, room=self._key_room)

    def json_of(self, commit: Commit, row: int, *, size: int) -> bytes:
        """Return the JSON member of one of a unit's samples: in the form that has so many bytes."""
        none = -1 if LABEL in self.arrays else None
        told: dict[str, Any] = {
            "index": commit.first + row,
            "key": commit.keys[row],
            "label": none if commit.labels is None else commit.labels[row],
            "valid": row not in commit.invalid,
            "error": commit.errors.get(row),
        }
        text, older = json_member(**told), older_json_member(**told)
        return older if len(older) == size else text
