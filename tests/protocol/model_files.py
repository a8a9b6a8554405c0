"""The store's file operations on the files of a world, each of them one step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

from storage.fs.local import MAX_RECORD_BYTES, LocalFiles
from tests.protocol.world import Node, World


class ModelSink:
    """Write one file of a world sequentially."""

    def __init__(self, files: ModelFiles, key: str) -> None:
        self.key, self._files = key, files
        world = files.world
        world.step("create", key)
        self._node = world.new_node(b"")
        world.disk[files.path(key)] = self._node

    def write(self, data: memoryview | bytes) -> None:
        self.write_many([data])

    def write_many(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Append; a file that was removed meanwhile takes what comes, and nobody sees it."""
        world, path = self._files.world, self._files.path(self.key)
        world.step("write", self.key)
        node = self._node
        data = b"".join([node.data, *map(bytes, buffers)])
        self._node = Node(node.number, data, world.clock + world.wall, node.changes + 1)
        if world.disk.get(path) is node:
            world.disk[path] = self._node

    def seal(self, *, fsync: bool) -> tuple[int, int]:
        return (1, self._node.number)

    def close(self) -> None:
        """Nothing is open."""


class ModelFiles(LocalFiles):
    """Keep files in a world: POSIX's rename, hard links and times."""

    remote = True  # there are no paths: what is read is fetched
    poll_s = 8.0

    def __init__(self, world: World, url: str) -> None:
        self.world, self.url = world, url.rstrip("/")

    def _node(self, kind: str, key: str) -> Node | None:
        self.world.step(kind, key)
        return self.world.disk.get(self.path(key))

    def _there(self, kind: str, key: str) -> Node:
        node = self._node(kind, key)
        if node is None:
            raise FileNotFoundError(self.path(key))
        return node

    def read(self, key: str, *, limit: int = MAX_RECORD_BYTES) -> bytes:
        return self._there("read", key).data

    @contextlib.contextmanager
    def fetched(self, key: str) -> Iterator[str]:
        data = self._there("read", key).data
        descriptor = os.memfd_create("model")
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)

    def size(self, key: str) -> int | None:
        node = self._node("stat", key)
        if node is None:
            return 0 if self._below(key) else None
        return len(node.data)

    def modified(self, key: str) -> float | None:
        node = self._node("stat", key)
        return None if node is None else node.touched

    def identity(self, key: str) -> tuple[int, int] | None:
        node = self._node("stat", key)
        return None if node is None else (1, node.number)

    def stamp(self, key: str) -> tuple[object, ...] | None:
        node = self._node("stat", key)
        return None if node is None else (node.number, node.touched, node.changes)

    def _below(self, prefix: str) -> list[str]:
        start = f"{self.path(prefix)}/"
        return [path for path in self.world.disk if path.startswith(start)]

    def names(self, prefix: str) -> list[str]:
        self.world.step("list", prefix)
        start = len(self.path(prefix)) + 1
        return sorted({path[start:].partition("/")[0] for path in self._below(prefix)})

    def walk(self, prefix: str) -> Iterator[str]:
        self.world.step("list", prefix)
        start = len(self.url) + 1
        yield from sorted(path[start:] for path in self._below(prefix))

    def now(self) -> float:
        return self.world.clock + self.world.wall

    def create(self, key: str) -> ModelSink:  # type: ignore[override]
        return ModelSink(self, key)

    def rename(self, source: str, target: str) -> None:
        self._there("rename", source)
        self._note(target, replaces=True)
        self.world.disk[self.path(target)] = self.world.disk.pop(self.path(source))

    def link(self, source: str, target: str) -> bool:
        node = self._there("link", source)
        if self.path(target) in self.world.disk:
            return False
        self.world.disk[self.path(target)] = node
        return True

    def _note(self, key: str, *, replaces: bool) -> None:
        """Note down what must never happen: a record that changes or goes."""
        if key.startswith(("commits/", "drops/")) and self.path(key) in self.world.disk:
            what = "replaced" if replaces else "removed"
            self.world.violations.append(f"the record {key} was {what}")

    def sync_folders(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.world.step("fsync", key)

    def touch(self, key: str) -> None:
        node = self._there("touch", key)
        self.world.disk[self.path(key)] = self.world.touched(node)

    def remove(self, key: str) -> bool:
        self.world.step("remove", key)
        self._note(key, replaces=False)
        return self.world.disk.pop(self.path(key), None) is not None

    def remove_tree(self, prefix: str) -> int:
        start, removed = len(self.url) + 1, 0
        for path in sorted(self._below(prefix)):
            self.world.step("remove", path[start:])
            removed += self.world.disk.pop(path, None) is not None
        return removed

    def prune(self, prefix: str) -> None:
        """There are no folders."""
