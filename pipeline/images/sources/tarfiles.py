"""WebDataset tar shards, read through an index of their members."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from typing import Any

from dreamshard.errors import DataError
from pipeline.images.source import Record, SourceConfig
from pipeline.images.sources.folder import EXTENSIONS, find_files, open_filesystem

Place = tuple[int, int, int]
"""(file, offset of the bytes, size)."""


class TarSource:
    """Samples of tar files: members that share their name up to its first dot.

    The image is the member with an image extension, the class an integer in `<key>.cls`, the mask
    `<key>.<mask_column>.png`. Headers are read once, to index the members; reading seeks.
    """

    kind = "webdataset"

    def __init__(self, config: SourceConfig) -> None:
        filesystem, self._files = find_files(config.path, ".tar")
        self._url, self.rule = config.path, ""
        self._keys: list[str] = []
        self._places: list[dict[str, Place]] = []
        for number, name in enumerate(self._files):
            try:
                with filesystem.open(name, "rb") as file:
                    self._index(file, number, f"{config.mask_column}.png")
            except tarfile.TarError as error:
                raise DataError(f"{name}: not a tar file that can be read: {error}") from error
        kept = [i for i, places in enumerate(self._places) if "image" in places]
        self._keys = [self._keys[i] for i in kept]
        self._places = [self._places[i] for i in kept]
        self.has_labels = any("label" in places for places in self._places)
        self.has_masks = any("mask" in places for places in self._places)

    def __len__(self) -> int:
        return len(self._keys)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._keys[index], self._places[index]["image"][2]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read members in place."""
        filesystem, _ = open_filesystem(self._url)
        handles: dict[int, Any] = {}
        try:
            return [self._record(index, filesystem, handles) for index in indices]
        finally:
            for handle in handles.values():
                handle.close()

    def _record(self, index: int, filesystem: Any, handles: dict[int, Any]) -> Record:
        parts = {}
        for part, (number, offset, size) in self._places[index].items():
            if number not in handles:
                handles[number] = filesystem.open(self._files[number], "rb")
            handles[number].seek(offset)
            parts[part] = handles[number].read(size)
        label = parts.get("label", b"").strip()
        return Record(
            self._keys[index],
            parts["image"],
            label=int(label) if label.lstrip(b"-").isdigit() else -1,
            mask=parts.get("mask"),
        )

    def _index(self, file: Any, number: int, mask_name: str) -> None:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isfile() or not stem:
                    continue
                if not self._keys or self._keys[-1] != key:
                    self._keys.append(key)
                    self._places.append({})
                place = (number, member.offset_data, member.size)
                if extension == mask_name:
                    self._places[-1]["mask"] = place
                elif extension == "cls":
                    self._places[-1]["label"] = place
                elif f".{extension.lower()}" in EXTENSIONS:
                    self._places[-1].setdefault("image", place)
