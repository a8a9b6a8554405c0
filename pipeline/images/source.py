"""Where images come from: one interface over folders, Parquet, tar shards and dataset libraries.

A source is opened once, by the driver, and handed to the actors as it is (it pickles): they never
list a bucket again, and all read the same list.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, cast

import numpy as np
from pydantic import Field

from dreamshard.errors import ConfigError, DataError, Problem

SOURCES: dict[str, str] = {
    "digits": "pipeline.images.sources.digits:DigitsSource",
    "folder": "pipeline.images.sources.folder:FolderSource",
    "parquet": "pipeline.images.sources.parquet:ParquetSource",
    "webdataset": "pipeline.images.sources.tarfiles:TarSource",
    "torchvision": "pipeline.images.sources.vision:VisionSource",
    "hf": "pipeline.images.sources.hub:HubSource",
}
"""Short name -> `module:Class`; `module:Class` of your own works as a kind too."""


@dataclass(kw_only=True)
class SourceConfig:
    """Which images to encode, in which order."""

    kind: str = "digits"
    """Source family: digits | folder | parquet | webdataset | torchvision | hf, or module:Class."""
    path: str = ""
    """Folder, file, glob pattern or URL (any fsspec protocol); a repository for hf; unused by
    digits."""
    name: str = ""
    """torchvision: the dataset's class name such as CIFAR10. hf: the configuration's name."""
    split: str = "train"
    """Part of the data: digits train | heldout; torchvision train | test; hf its own names."""
    key_column: str = "key"
    """Parquet: column with each sample's name; where it is absent, names are made of file and
    row."""
    image_column: str = "image"
    """Parquet and hf: column with encoded image bytes."""
    label_column: str = "label"
    """Parquet and hf: column with integer classes; taken where present, empty for none."""
    mask_column: str = "mask"
    """Parquet and hf: column with encoded masks; webdataset: members `<key>.<this>.png`."""
    class_folders: bool = False
    """Folder: number the first-level subfolders in sorted order and record them as labels."""

    def problems(self) -> list[Problem]:
        """List what can be told wrong without looking at the data."""
        if self.kind in SOURCES or ":" in self.kind:
            if self.kind in ("folder", "parquet", "webdataset", "hf") and not self.path:
                hint = "Give the images with --source.path."
                return [Problem("path", "nothing", "a path or URL", hint)]
            return []
        close = difflib.get_close_matches(self.kind, SOURCES, n=1)
        hint = f"Did you mean {close[0]}?" if close else ""
        return [Problem("kind", self.kind, " | ".join(SOURCES) + " | module:Class", hint)]


@dataclass(kw_only=True)
class ImageConfig:
    """How images are brought to the teacher's size; part of the recipe."""

    size: Annotated[int, Field(ge=0, le=8192)] = 0
    """Height given to the teacher, and width unless that is set (pixels); 0 for the teacher's own
    size."""
    width: Annotated[int, Field(ge=0, le=8192)] = 0
    """Width given to the teacher, where it differs from the height (pixels)."""
    resize: Literal["bicubic", "bilinear", "lanczos", "box", "adm"] = "bicubic"
    """Filter; adm halves with a box filter down to twice the size first, as guided-diffusion
    does."""
    crop: Literal["center", "squash"] = "center"
    """Fit the short side and cut the centre out, or squash the whole image into the square."""
    flip: Literal["none", "random"] = "none"
    """Mirror half of the samples, drawn by (seed, index), or none."""
    views: Annotated[int, Field(ge=1, le=1024)] = 1
    """Samples per image (count); view 0 is the image itself, the others are jittered as below."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0625
    """Largest shift of a view along each axis, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of a view's size: drawn from 1 - scale .. 1 + scale."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation of a view either way (degrees)."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width asked for, in pixels; None for the teacher's own."""
        return (self.size, self.width or self.size) if self.size else None

    def problems(self) -> list[Problem]:
        """List settings that contradict each other."""
        if self.width and not self.size:
            hint = "Set image.size to the height."
            return [Problem("width", str(self.width), "0 without image.size", hint)]
        return []


@dataclass
class Record:
    """One sample as the source keeps it."""

    key: str
    data: bytes | np.ndarray | None
    """Encoded image, or uint8 (H, W) | (H, W, 3); None where the source has an empty entry."""
    label: int = -1
    mask: bytes | np.ndarray | None = None


class ImageSource(Protocol):
    """An ordered, immutable, picklable list of images."""

    kind: str
    rule: str
    """What decides the images besides keys and sizes (split, version of a conversion)."""
    has_labels: bool
    has_masks: bool

    def __len__(self) -> int: ...

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes, without reading it."""
        ...

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read samples; called from one thread at a time.

        Raises:
            OSError: if storage fails; the caller retries. Damaged images are not errors here: their
                bytes are handed on and found out when decoded.
        """
        ...


def open_source(config: SourceConfig) -> ImageSource:
    """List a source.

    Raises:
        ConfigError: nothing at that path, an unknown kind or split, a missing package or column.
        DataError: no image in it.
    """
    target = SOURCES.get(config.kind, config.kind)
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        hint = "Check the spelling and that the module is on PYTHONPATH."
        problem = Problem(
            "source.kind", f"{target} ({error})", "a class that can be imported", hint
        )
        raise ConfigError(problem) from error
    source = cast(ImageSource, cls(config))
    if len(source) == 0:
        raise DataError(
            f"source: no image found in {config.path or config.kind}. Check source.path."
        )
    return source


def prefix_digest(source: ImageSource, count: int) -> str:
    """Digest the rule and the first `count` (key, size) pairs: SHA-256, hex.

    A source that only grew at its end has the digest of the shorter one for that count.
    """
    sha = hashlib.sha256(f"{source.kind}\n{source.rule}\n".encode())
    for index in range(count):
        key, size = source.entry(index)
        sha.update(f"{key}\0{size}\n".encode())
    return sha.hexdigest()


def fingerprint(source: ImageSource) -> dict[str, object]:
    """Identify a source for the recipe: kind, count and digest."""
    return {
        "kind": source.kind,
        "count": len(source),
        "digest": prefix_digest(source, len(source)),
    }
