"""Image files under a folder or URL, recursively, in sorted order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dreamshard.errors import ConfigError, Problem
from pipeline.images.source import Record, SourceConfig

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
READ_THREADS = 8
"""Files read at once: with many small ones a store's latency counts, not its bandwidth."""


class FolderSource:
    """Every image file below `path`; keys are paths relative to it."""

    kind = "folder"
    has_masks = False

    def __init__(self, config: SourceConfig) -> None:
        self.rule = ""
        filesystem, root = open_filesystem(config.path)
        if not filesystem.isdir(root):
            hint = "Check --source.path; it is read on every node."
            raise ConfigError(Problem("source.path", config.path, "an existing folder", hint))
        found = filesystem.find(root, detail=True)
        names = [name for name in found if name.lower().endswith(EXTENSIONS)]
        start = len(root.rstrip("/")) + 1
        files = sorted((name[start:], int(found[name].get("size") or 0)) for name in names)
        self._root, self._url = root.rstrip("/"), config.path
        self._keys = [key for key, _ in files]
        self._sizes = [size for _, size in files]
        self.has_labels = config.class_folders
        folders = sorted({key.split("/")[0] for key in self._keys if "/" in key})
        self._classes = {folder: number for number, folder in enumerate(folders)}
        self.rule = "class folders: " + ",".join(folders) if config.class_folders else ""

    def __len__(self) -> int:
        return len(self._keys)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._keys[index], self._sizes[index]

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read whole files, several at once."""
        filesystem, _ = open_filesystem(self._url)
        paths = [f"{self._root}/{self._keys[index]}" for index in indices]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            contents = list(pool.map(filesystem.cat_file, paths))
        return [
            Record(self._keys[i], data, label=self._label(self._keys[i]))
            for i, data in zip(indices, contents, strict=True)
        ]

    def _label(self, key: str) -> int:
        return self._classes.get(key.split("/")[0], -1) if self.has_labels else -1


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a path or URL, and the path within it."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        hint = "Install the protocol's package (s3fs, gcsfs, adlfs ...) or correct the URL."
        problem = Problem("source.path", f"{url} ({error})", "a path or fsspec URL", hint)
        raise ConfigError(problem) from error
    # Listings must be fresh: a source that grew since the last run has to be seen.
    filesystem.invalidate_cache()
    return filesystem, path


def find_files(url: str, extension: str) -> tuple[Any, list[str]]:
    """List the files of a path, sorted: itself, a pattern's matches, or those below a folder.

    Raises:
        ConfigError: if there are none.
    """
    filesystem, path = open_filesystem(url)
    if any(mark in path for mark in "*?["):
        files = filesystem.glob(path)
    elif filesystem.isdir(path):
        files = [name for name in filesystem.find(path) if name.endswith(extension)]
    else:
        files = [path] if filesystem.exists(path) else []
    if not files:
        hint = "Check --source.path."
        allowed = f"an existing {extension} file, a folder of them, or a glob pattern"
        raise ConfigError(Problem("source.path", url, allowed, hint))
    return filesystem, sorted(files)
