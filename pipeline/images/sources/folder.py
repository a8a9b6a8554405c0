"""Image files under a folder or URL, recursively, in sorted order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.images.evidence import sample_files
from pipeline.images.labels import Labels
from pipeline.images.listing import (
    Passed,
    by_ending,
    is_hidden,
    is_local,
    key_of,
    open_filesystem,
    walk,
)
from pipeline.images.source import FINAL, Record, SourceConfig, failed, labelled, tag_digests

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PARTS = frozenset(
    "train training val valid validation test testing heldout held-out dev eval".split()
)
"""Names of parts of a dataset; with further folders in all of them they are no classes."""
READ_THREADS = 8
"""Files read at once: with many small ones a store's latency counts, not its bandwidth."""


class FolderSource:
    """Every visible image file below `path`; keys are paths relative to it.

    Class folders are the visible first-level folders in sorted order, empty ones included, as
    torchvision numbers them.
    """

    kind = "folder"
    has_masks = False

    def __init__(self, config: SourceConfig) -> None:
        filesystem, root = open_filesystem(config.path)
        if not filesystem.isdir(root):
            hint = "Check --source.path; it is read on every node."
            raise ConfigError(Problem("source.path", config.path, "an existing folder", hint))
        self._root, self._url = root.rstrip("/"), config.path
        self.passed = Passed()
        listed = walk(filesystem, self._root, self.passed, allow_unreadable=config.allow_unreadable)
        files = by_ending(listed, EXTENSIONS, self.passed)
        self._names = [file.name for file in files]
        self._keys = [key_of(name) for name in self._names]
        self._sizes = [file.size for file in files]
        local = is_local(filesystem)
        self.evidence = sample_files(self._root, files) if local else tag_digests(files)
        self.has_labels = config.class_folders
        self.rule, self.labels = "", None
        if config.class_folders:
            names = _class_folders(filesystem, self._root, self._keys)
            _check_parts(names, self._keys, config.path)
            self.labels = _folder_labels(self._keys, names, self.passed)

    def __len__(self) -> int:
        return len(self._keys)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._keys[index], self._sizes[index]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read whole files, several at once."""
        filesystem, _ = open_filesystem(self._url)

        def read_one(index: int) -> Record:
            try:
                path = f"{self._root}/{self._names[index]}"
                return Record(self._keys[index], filesystem.cat_file(path))
            except FINAL as error:
                return failed(self._keys[index], error)

        if len(indices) == 1:
            return labelled(self, indices, [read_one(indices[0])])
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return labelled(self, indices, list(pool.map(read_one, indices)))


def _class_folders(filesystem: Any, root: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Name the visible first-level folders, sorted; a remote store knows no empty ones."""
    names = {key.split("/")[0] for key in keys if "/" in key}
    for item in filesystem.ls(root, detail=True):
        name = item["name"].rstrip("/").rsplit("/", 1)[-1]
        if not is_hidden(name) and filesystem.isdir(item["name"]):
            names.add(key_of(name))
    return tuple(sorted(names))


def _check_parts(names: tuple[str, ...], keys: Sequence[str], path: str) -> None:
    """Refuse a folder of parts (train, val) whose class folders lie one step deeper.

    Raises: ConfigError.
    """
    inside = [key for key in keys if "/" in key]
    if (
        inside
        and {name.lower() for name in names} <= PARTS
        and all(k.count("/") > 1 for k in inside)
    ):
        got = f"true for {path}, whose first-level folders are {', '.join(names)}"
        hint = f"Give one of them as the path, such as {path.rstrip('/')}/{names[0]}."
        allowed = "a folder of folders that are classes"
        raise ConfigError(Problem("source.class_folders", got, allowed, hint))


def _folder_labels(keys: Sequence[str], names: tuple[str, ...], passed: Passed) -> Labels:
    table = {name: number for number, name in enumerate(names)}
    numbers = np.array(
        [table[key.split("/")[0]] if "/" in key else -1 for key in keys], np.int64
    ).reshape(len(keys))
    outside = np.flatnonzero(numbers < 0)
    if len(outside):
        passed.add(
            "images outside class folders, without a label", keys[int(outside[0])], len(outside)
        )
    empty = set(range(len(names))) - set(numbers.tolist())
    if empty:
        passed.add("class folders without images", names[min(empty)], len(empty))
    return Labels(numbers, names)
