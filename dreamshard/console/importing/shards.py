"""A folder of feature shards: which members are whose features, and which samples they are of.

Theia's layout: a folder per teacher and one of images, tar files in each, in a tar file one member
per sample, `KEY.TEACHER.safetensors` or `KEY.image` (npy). Tar files that hold several teachers'
members, and `KEY.safetensors` in the folder of its teacher, are read alike. Only headers are read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import xxhash

from dreamshard.errors import ConfigError, DataError, Problem
from dreamshard.foreign.guard import reading
from pipeline.images.listing import File, Passed, by_ending, key_of, open_filesystem, walk
from pipeline.images.ranges import HeaderFile, read_ranges
from pipeline.images.sources.folder import EXTENSIONS
from pipeline.images.sources.tar_index import Member, read_members

IMAGES = ""
"""Name of the column that holds images; teachers have names."""
FEATURES, NPY = "safetensors", "image"
MAX_MEMBER = 1 << 30
"""The most bytes of one sample's member: beyond any feature file."""
SHOWN = 3


@dataclass
class Column:
    """Say where one teacher's features of every sample lie, or the images.

    Args:
        name: the teacher's; IMAGES of the images.
        keys: of the samples, in the order they were found.
        places: (file, offset, bytes, mark of content) of each, one behind the other.
    """

    name: str
    keys: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("Q"))

    def __str__(self) -> str:
        return self.name or "images"

    def ordered(self, keys: Sequence[str]) -> np.ndarray:
        """Return the places of samples, int64 (N, 4).

        Raises:
            DataError: samples that it has not, or that the others have not.
        """
        at = {key: number for number, key in enumerate(self.keys)}
        wanted = set(keys)
        lacking = [key for key in keys if key not in at]
        further = [key for key in self.keys if key not in wanted]
        if lacking or further:
            told = lacking or further
            what = "lack" if lacking else "are alone with"
            raise DataError(
                f"{self}: {what} {len(told):,} of the {len(keys):,} samples, such as "
                f"{', '.join(map(repr, told[:SHOWN]))}; allowed the same samples everywhere. "
                "Finish the extraction, or choose with --teachers, --shards or --no_images."
            )
        rows = np.frombuffer(self.places, np.uint64).reshape(-1, 4)
        return rows[[at[key] for key in keys]].astype(np.int64)


@dataclass(frozen=True)
class Shards:
    """Hold what a folder of feature shards has, by sample.

    Args:
        filesystem: fsspec's.
        paths: of the tar files.
        keys: of the samples, in order.
        places: column -> (file, offset, bytes, mark) of every sample, int64 (N, 4).
        passed: what was passed over.
    """

    filesystem: Any
    paths: list[str]
    keys: list[str]
    places: dict[str, np.ndarray]
    passed: Passed

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers."""
        return [name for name in self.places if name != IMAGES]

    @property
    def digest(self) -> str:
        """XXH3 over keys, sizes and what stands for the content of every member, 32 hex digits."""
        told = xxhash.xxh3_128("\n".join([*self.keys, *self.places]).encode("utf-8", "replace"))
        for places in self.places.values():
            told.update(np.ascontiguousarray(places[:, 2:]).tobytes())
        return told.hexdigest()

    def where(self, column: str, sample: int) -> str:
        """Name one member, for messages."""
        file = self.paths[int(self.places[column][sample, 0])]
        return f"{file}: {column or 'image'} of {self.keys[sample]!r}"

    def read(self, column: str, samples: Sequence[int], *, limit: int) -> list[bytes]:
        """Read samples' members.

        Args:
            column: whose.
            samples: their numbers.
            limit: the most bytes that one of them may have.

        Raises:
            DataError: one has more.
        """
        rows = self.places[column][samples]
        if (rows[:, 2] > limit).any():
            row = int(np.argmax(rows[:, 2]))
            raise DataError(
                f"{self.where(column, samples[row])}: got {int(rows[row, 2]):,} bytes, allowed "
                f"{limit:,}: those of the first sample."
            )
        ranges = [(int(file), int(offset), int(size)) for file, offset, size, _ in rows]
        with reading(self.where(column, samples[0]), "what was listed"):
            return read_ranges(self.filesystem, self.paths, ranges)


def find_shards(url: str, *, pattern: str, teachers: Sequence[str] | None, images: bool) -> Shards:
    """Look into the tar files below a folder.

    Args:
        url: the folder, or an fsspec URL.
        pattern: of the tar files' names that are meant.
        teachers: whose features are meant; None for all.
        images: whether images are meant, where there are any.

    Raises:
        ConfigError: no such folder, teacher or features.
        DataError: damaged tar files, or samples that a teacher lacks.
    """
    passed = Passed()
    filesystem, root = open_filesystem(url)
    root = root.rstrip("/")
    if not filesystem.isdir(root):
        raise ConfigError(Problem("FOLDER", url, "a folder of tar files of features"))
    files = by_ending(walk(filesystem, root, passed), (".tar",), passed)
    meant = [file for file in files if fnmatchcase(file.name.rpartition("/")[2], pattern)]
    if rest := len(files) - len(meant):
        passed.add(f"tar files that are not {pattern}", files[0].name, rest)
    columns: dict[str, Column] = {}
    pool: dict[str, str] = {}  # keys are the same texts in every column
    for number, file in enumerate(meant):
        for name, key, member in _members(filesystem, root, file, passed):
            if name == IMAGES and not images:
                passed.add("images, as --no_images says", member.name)
                continue
            column = columns.setdefault(name, Column(name))
            column.keys.append(pool.setdefault(key, key))
            column.places.extend((number, member.offset, member.size, member.mark))
    chosen = _chosen(columns, teachers, url=url, pattern=pattern, passed=passed)
    for column in chosen:
        _check_once(column)
    keys = chosen[0].keys
    return Shards(
        filesystem,
        [f"{root}/{file.name}" for file in meant],
        keys,
        {column.name: column.ordered(keys) for column in chosen},
        passed,
    )


def _members(
    filesystem: Any, root: str, file: File, passed: Passed
) -> Iterator[tuple[str, str, Member]]:
    """Yield (column, key, member) of one tar file."""
    path = f"{root}/{file.name}"
    with reading(path, "a tar archive"), HeaderFile(filesystem, path, file.size) as opened:
        members = read_members(opened, path, file.size, passed)
    top = file.name.partition("/")[0] if "/" in file.name else root.rpartition("/")[2]
    for member in members:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = key_of(f"{folder}/{stem}" if folder else stem)
        if ending == FEATURES or ending.endswith(f".{FEATURES}"):
            column = ending.removesuffix(FEATURES).rstrip(".") or top
        elif ending == NPY or f".{ending.lower()}" in EXTENSIONS:
            column = IMAGES
        else:
            passed.add("members that are neither features nor images", member.name)
            continue
        if member.pieces is not None or member.size > MAX_MEMBER:
            raise DataError(
                f"{path}: got member {member.name!r} of {member.size:,} bytes"
                f"{' with holes' if member.pieces is not None else ''}, allowed {MAX_MEMBER:,} "
                "without holes. Write it anew."
            )
        yield column, key, member


def _chosen(
    columns: dict[str, Column],
    teachers: Sequence[str] | None,
    *,
    url: str,
    pattern: str,
    passed: Passed,
) -> list[Column]:
    """Return the columns that are meant: teachers by name, then the images."""
    present = sorted(name for name in columns if name != IMAGES)
    if not present:
        hint = "; ".join(
            ["Look at --shards and at the names inside the tar files.", *passed.lines()]
        )
        allowed = f"KEY.TEACHER.{FEATURES} in tar files named {pattern}"
        raise ConfigError(Problem("FOLDER", f"{url} without features", allowed, hint))
    wanted = present if teachers is None else list(dict.fromkeys(teachers))
    if lost := [name for name in wanted if name not in present] or (["none"] if not wanted else []):
        raise ConfigError(Problem("teachers", ", ".join(lost), ", ".join(present)))
    for name in present:
        if name not in wanted:
            passed.add("teachers that --teachers leaves out", name)
    return [columns[name] for name in [*wanted, *([IMAGES] if IMAGES in columns else [])]]


def _check_once(column: Column) -> None:
    """Raise DataError where a sample stands twice."""
    if len(set(column.keys)) < len(column.keys):
        seen: set[str] = set()
        twice = next(key for key in column.keys if key in seen or seen.add(key))
        raise DataError(
            f"{column}: got sample {twice!r} twice, allowed once. Where several splits lie side by "
            "side, name one, such as --shards '*-train.tar'."
        )
