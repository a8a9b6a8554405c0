"""Look at a source of images: kind, count, sizes, labels, parts, what is passed over."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dreamshard.errors import DataError
from dreamshard.owner.home import expanded
from pipeline.images.source import (
    ImageSource,
    SourceConfig,
    infer_kind,
    labels_of,
    open_source,
    passed_over,
)

LOOKED_AT = 64
"""Images whose sizes are read, spread over the source (count)."""
TRAIN = ("train", "training")
HELDOUT = ("heldout", "val", "valid", "validation", "test", "testing")
FEWEST_HELDOUT = 20
"""Images below which a fifth is not kept to judge on (count)."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Hold what was seen of the images.

    Args:
        source: settings that open those to train on.
        heldout: settings that open those to judge on; None where there are none.
        count: images to train on.
        heights, widths: int64, of the images looked at, in pixels.
        unreadable: of the images looked at, those that could not be read (count).
        classes: names of the classes, or their numbers as texts; empty without labels.
        heldout_count: images to judge on.
        passed: what the listing passed over, a line each.
        parted: the images to judge on are a fifth of the source.
        outside: why folders that look like classes are not taken as such; empty if there are none.
    """

    source: SourceConfig
    heldout: SourceConfig | None
    count: int
    heights: np.ndarray
    widths: np.ndarray
    unreadable: int
    classes: tuple[str, ...]
    heldout_count: int
    passed: tuple[str, ...]
    parted: bool
    outside: str = ""

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return int(np.median(np.minimum(self.heights, self.widths)))

    def lines(self) -> list[str]:
        """Say what was seen, a line each."""
        sizes = np.stack([self.heights, self.widths], axis=1)
        low, high = sizes.min(axis=0), sizes.max(axis=0)
        size = f"{low[0]}x{low[1]}" if (low == high).all() else f"{_by(low)} to {_by(high)}"
        kind = self.source.kind
        of = f" (four fifths of a {infer_kind(self.source.path)})" if self.parted else f" ({kind})"
        lines = [
            f"{self.count:,} images in {self.source.path}{of}",
            f"{size} pixels (height x width), median short side {self.short_side}, "
            f"of {len(self.heights)} looked at",
        ]
        if self.classes:
            some = ", ".join(self.classes[:6]) + (" ..." if len(self.classes) > 6 else "")
            lines.append(f"{len(self.classes)} classes: {some}")
        else:
            lines.append(f"no labels: probes need some, features do not{self.outside}")
        if self.heldout is not None:
            where = "a fifth of the images" if self.parted else self.heldout.path
            lines.append(f"{self.heldout_count:,} images to judge on: {where}")
        if self.unreadable:
            lines.append(f"{self.unreadable} of {len(self.heights) + self.unreadable} looked at "
                         "cannot be read; encoding names each and goes on")  # fmt: skip
        return [*lines, *(f"passed over: {line}" for line in self.passed)]


def look(path: str, *, heldout: str = "") -> Seen:
    """Look at the images at a path.

    Args:
        path: folder (class folders, or parts such as train and val, are seen), tar, Parquet, ...
        heldout: path of the images to judge on; "" for a part of that name, else a fifth.

    Raises:
        ConfigError: nothing at a path that could hold images.
        DataError: no image that can be read.
    """
    parts = _parts(path)
    if parts and not heldout:
        path, heldout = parts
    settings = SourceConfig(kind=infer_kind(path, key="PHOTOS"), path=path)
    has_classes, outside = _class_folders(settings)
    settings = replace(settings, class_folders=has_classes)
    source, judged, parted = open_source(settings), None, False
    labelled = bool(source.has_labels)
    if heldout:
        judged = SourceConfig(kind=infer_kind(heldout, key="heldout"), path=heldout)
        if judged.kind == "folder":
            judged = replace(judged, class_folders=settings.class_folders)
    elif labelled and settings.kind in ("folder", "parquet", "webdataset"):
        parted = len(source) >= 5 * FEWEST_HELDOUT
    sizes, unreadable = _sizes(source)
    classes, passed = _classes(source), tuple(passed_over(source))
    if parted:
        settings = replace(settings, kind="fifths", split="train")
        judged = replace(settings, split="heldout")
        source = open_source(settings)
    return Seen(
        source=settings,
        heldout=judged if labelled else None,
        count=len(source),
        heights=sizes[:, 0],
        widths=sizes[:, 1],
        unreadable=unreadable,
        classes=classes if labelled else (),
        heldout_count=len(open_source(judged, part="heldout")) if judged and labelled else 0,
        passed=passed,
        parted=parted,
        outside=outside,
    )


def _parts(path: str) -> tuple[str, str] | None:
    """Return the parts to train and to judge on that a local folder is divided into."""
    if not os.path.isdir(path):
        return None
    names = {entry.name.lower(): entry.path for entry in os.scandir(path) if entry.is_dir()}
    train = next((names[name] for name in TRAIN if name in names), None)
    judged = next((names[name] for name in HELDOUT if name in names), None)
    return (train, judged) if train and judged else None


def _class_folders(settings: SourceConfig) -> tuple[bool, str]:
    """Say whether every image of a folder lies in one of two or more first-level folders.

    Returns: that; and, where only some images lie outside of such folders, which.
    """
    if settings.kind != "folder":
        return False, ""
    source = open_source(settings)
    keys = [source.entry(index)[0] for index in range(len(source))]
    outside = [key for key in keys if "/" not in key]
    folders = {key.partition("/")[0] for key in keys if "/" in key}
    if len(folders) < 2 or 2 * len(outside) > len(keys):
        return False, ""
    if not outside:
        return True, ""
    told = f"{len(outside):,} images lie outside the {len(folders)} folders, such as {outside[0]}"
    return False, f". {told}: move them, and the folders are classes"


def _sizes(source: ImageSource) -> tuple[np.ndarray, int]:
    """Read the sizes of some images, int64 (N, 2), and count those that cannot be read."""
    from PIL import Image

    rows = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)).tolist()
    sizes, unreadable = [], 0
    for record in source.read(rows):
        try:
            if isinstance(record.data, bytes):
                with Image.open(io.BytesIO(record.data)) as image:
                    sizes.append(image.size[::-1])
            elif record.data is not None:
                sizes.append(record.data.shape[:2])
            else:
                raise OSError(record.error)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            unreadable += 1
    if not sizes:
        raise DataError(
            f"PHOTOS: got {len(rows)} files, none of which can be read as an image, allowed images."
        )
    return np.array(sizes, np.int64), unreadable


def _classes(source: ImageSource) -> tuple[str, ...]:
    known = labels_of(source)
    if known is None:
        return ()
    return tuple(known.name(n) for n in sorted(set(known.numbers.tolist())) if n >= 0)


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def shown(path: str | Path) -> str:
    """Return a path as it can be typed from here: short below the working folder, else whole."""
    if "://" in str(path):
        return str(path)
    whole, here = expanded(path).absolute(), Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)
