"""An object store for many processes, in a folder; a share of its requests goes wrong."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from fsspec.spec import AbstractFileSystem


class FlakyStore(AbstractFileSystem):
    """Objects under `gs://`: whole or not at all, put-if-absent, and as unreliable as asked for.

    A request may fail before it did anything, fail after it did its work (the answer is lost), or
    give a body that is cut short.
    """

    protocol = ("gs", "gcs")
    cachable = False
    folder: ClassVar[Path]
    share: ClassVar[float] = 0.0
    rng: ClassVar[random.Random] = random.Random(0)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    def _local(self, path: str) -> Path:
        return self.folder / self._strip_protocol(path)

    def _trouble(self) -> str:
        """Draw what goes wrong with this request."""
        if self.rng.random() >= self.share:
            return ""
        kind = self.rng.choice(("timeout", "reset", "lost", "short"))
        if kind == "timeout":
            raise TimeoutError("the store does not answer")
        if kind == "reset":
            raise ConnectionResetError("connection reset by the store")
        return kind

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        self._trouble()
        file = self._local(path)
        stat = file.stat()
        kind = "directory" if file.is_dir() else "file"
        return {
            "name": self._strip_protocol(path),
            "size": stat.st_size,
            "type": kind,
            "mtime": stat.st_mtime,
            "ETag": f"{stat.st_ino}-{stat.st_mtime_ns}",
        }

    def isdir(self, path: str) -> bool:
        return self._local(path).is_dir()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self._trouble()
        base = self._strip_protocol(path)
        names = [f"{base}/{name}" for name in os.listdir(self._local(path)) if name[0] != "."]
        return [self.info(name) for name in names] if detail else names

    def find(self, path: str, **_: Any) -> list[str]:
        self._trouble()
        files = [file for file in self._local(path).rglob("*") if file.is_file()]
        return sorted(str(file.relative_to(self.folder)) for file in files if file.name[0] != ".")

    def cat_file(self, path: str, **_: Any) -> bytes:
        kind = self._trouble()
        data = self._local(path).read_bytes()
        return data[: len(data) // 2] if kind == "short" else data

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(self.cat_file(rpath))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        kind = self._trouble()
        target = self._local(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=self.folder, prefix=".part-")
        with os.fdopen(handle, "wb") as file:
            file.write(value)
        if mode == "create":
            try:
                os.link(part, target)  # fails where there is one
            finally:
                os.unlink(part)
        else:
            os.replace(part, target)
        if kind == "lost":
            raise TimeoutError("the answer was lost")

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def rm_file(self, path: str) -> None:
        self._trouble()
        self._local(path).unlink()
