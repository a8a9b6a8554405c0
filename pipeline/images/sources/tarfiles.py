"""WebDataset tar shards, read through an index of their members."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xxhash

from dreamshard.errors import ConfigError, Problem
from pipeline.images.labels import Labels, read_labels
from pipeline.images.listing import File, Passed, find_files, key_of, open_filesystem
from pipeline.images.ranges import HeaderFile, read_ranges
from pipeline.images.source import Record, SourceConfig, labelled
from pipeline.images.sources.columns import check_named
from pipeline.images.sources.folder import EXTENSIONS
from pipeline.images.sources.index_cache import IndexCache
from pipeline.images.sources.tar_index import Member, read_members

FILES_AT_ONCE = 8
Parts = dict[str, Member]


class TarSource:
    """Samples of tar files: members of one file that share their name up to its first dot.

    The image is the member with an image extension, the class in `<key>.cls` (a number or a text),
    the mask `<key>.<mask_column>.png`. Headers are read once and the index is kept; reading seeks.
    Samples of different files are never one: where a name stands in several, all names begin with
    their file's.
    """

    kind = "webdataset"

    def __init__(self, config: SourceConfig) -> None:
        self._config, self.passed, self.rule = config, Passed(), ""
        filesystem, root, files = find_files(config.path, (".tar",), self.passed)
        self._url = config.path
        self._paths = [f"{root}/{file.name}" if root else file.name for file in files]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            pairs = zip(self._paths, files, strict=True)
            indexed = list(pool.map(lambda pair: self._index(filesystem, *pair), pairs))
        self._samples: list[tuple[int, str, Parts]] = []
        marks: list[int] = []
        raw: list[bytes | None] = []
        for number, (samples, passed) in enumerate(indexed):
            for reason, count in passed.counts.items():
                self.passed.add(reason, passed.examples[reason], count)
            for key, parts, mark, label in samples:
                self._samples.append((number, key, parts))
                marks.append(mark)
                raw.append(label)
        self.evidence = np.array(marks, np.uint64)
        self._keys = self._unique_keys([file.name for file in files])
        self.labels = self._read_labels(raw)
        self.has_labels = self.labels is not None
        self.has_masks = any("mask" in parts for _, _, parts in self._samples)
        self._check_named()

    def __len__(self) -> int:
        return len(self._keys)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index` and give its size in bytes."""
        return self._keys[index], self._samples[index][2]["image"].size

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read members in place."""
        filesystem, _ = open_filesystem(self._url)
        wanted = [
            (row, part, self._samples[index][0], member)
            for row, index in enumerate(indices)
            for part, member in self._samples[index][2].items()
        ]
        ranges = [(number, member.offset, member.stored) for _, _, number, member in wanted]
        blocks = read_ranges(filesystem, self._paths, ranges)
        records = [Record(self._keys[index], None) for index in indices]
        for (row, part, _, member), block in zip(wanted, blocks, strict=True):
            if part == "image":
                records[row].data = member.unpack(block)
            else:
                records[row].mask = member.unpack(block)
        return labelled(self, indices, records)

    def _check_named(self) -> None:
        """Refuse a name for labels, which have one, and one for masks that no sample has."""
        name = self._config.label_column
        if name not in ("", "label"):
            hint = "Labels are the members <key>.cls, whatever their column is called elsewhere."
            problem = Problem("source.label_column", name, "label, or '' to leave them out", hint)
            raise ConfigError(problem)
        check_named(self._config, {"mask_column": self.has_masks}, names=[], where=self._url)

    def _index(self, filesystem: Any, path: str, file: File) -> tuple[list[Any], Passed]:
        """List one file's samples: (key, parts, mark of content, label's bytes)."""
        cache = IndexCache(path, file)
        if (kept := cache.load()) is not None:
            members, passed = kept
        else:
            passed, opened = Passed(), HeaderFile(filesystem, path, file.size)
            try:
                members = read_members(opened, path, file.size, passed)
            finally:
                opened.close()
            cache.save(members, passed)
        groups, labels = self._group(members, passed)
        samples = [
            (key, parts, _mark(parts), labels[key].head if key in labels else None)
            for key, parts in groups.items()
        ]
        return samples, passed

    def _group(
        self, members: list[Member], passed: Passed
    ) -> tuple[dict[str, Parts], dict[str, Member]]:
        """Gather the members of each sample, by the WebDataset rule: cut at the first dot."""
        image = self._config.image_column
        image_prefix = "" if image == "image" else f"{image}."
        mask_name = f"{self._config.mask_column}.png" if self._config.mask_column else None
        groups: dict[str, Parts] = {}
        labels: dict[str, Member] = {}
        rest: list[tuple[str, str]] = []
        for member in members:
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = key_of(f"{folder}/{stem}" if folder else stem)
            ending = extension.removeprefix(image_prefix) if image_prefix else extension
            is_image = extension.startswith(image_prefix) and f".{ending.lower()}" in EXTENSIONS
            if extension == mask_name:
                groups.setdefault(key, {})["mask"] = member
            elif extension.lower() == "cls" and key in labels:
                passed.add("further labels of one sample", member.name)
            elif extension.lower() == "cls":
                labels[key] = member
            elif is_image and "image" in groups.get(key, {}):
                passed.add("further images of one sample", member.name)
            elif is_image:
                groups.setdefault(key, {})["image"] = member
            else:
                rest.append((key, member.name))
        kept = {key: parts for key, parts in groups.items() if "image" in parts}
        for key, name in rest:
            if key not in kept and name.lower().endswith(EXTENSIONS):
                passed.add(
                    "images whose name has further dots (WebDataset cuts names at the first; "
                    "rename them, or set --source.image_column to what stands between the dots)",
                    name,
                )
            elif key not in kept:
                passed.add("members of samples without an image", name)
            else:
                passed.add("members beside images that are not read (labels are `.cls`)", name)
        for key in groups.keys() - kept.keys():
            passed.add("members of samples without an image", groups[key]["mask"].name)
        return kept, labels if self._config.label_column else {}

    def _unique_keys(self, names: list[str]) -> list[str]:
        keys = [key for _, key, _ in self._samples]
        if len(set(keys)) == len(keys):
            return keys
        return [f"{names[number].removesuffix('.tar')}/{key}" for number, key, _ in self._samples]

    def _read_labels(self, raw: list[bytes | None]) -> Labels | None:
        if all(value is None for value in raw):
            return None
        way_out = "--source.label_column ''"
        return read_labels(
            raw,
            where=f"the .cls members of {self._url}",
            way_out=way_out,
        )


def _mark(parts: Parts) -> int:
    """Digest what stands for a sample's image and mask; labels are their own."""
    marks = "".join(f"{part} {parts[part].mark} " for part in sorted(parts))
    return xxhash.xxh3_64_intdigest(marks.encode())
