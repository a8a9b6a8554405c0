"""Datasets of torchvision, by class name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import xxhash

from dreamshard.errors import ConfigError, Problem
from dreamshard.foreign import trusted
from dreamshard.foreign.guard import CannotReadError
from pipeline.images.evidence import sample_files
from pipeline.images.labels import Labels, read_labels
from pipeline.images.listing import File, Passed
from pipeline.images.source import FINAL, Record, SourceConfig, failed, labelled
from storage.fs.beneath import is_unreadable

UNSAFE = {"LSUN", "LSUNClass", "VisionDataset", "DatasetFolder"}
"""Classes that unpickle a file beside the data, or are none by themselves."""
VARIOUS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
UNPICKLES = " (it may run code that lies beside the data)"


class VisionSource:
    """A torchvision dataset that is already on disk below `path`; nothing is downloaded.

    Content is told from the arrays that the dataset keeps in memory, from the files that it lists,
    or, where it has neither, from some of its samples.
    """

    kind = "torchvision"
    has_masks = False

    def __init__(self, config: SourceConfig) -> None:
        try:
            import torchvision
        except ImportError as error:
            hint = "pip install dreamshard."
            problem = Problem(
                "source.kind", f"torchvision ({error})", "torchvision installed", hint
            )
            raise ConfigError(problem) from error
        cls = _dataset_class(torchvision.datasets, config.name)
        self._name, self._split = config.name.lower(), config.split
        split = _split_argument(cls, config.split)
        self.rule = f"{config.name} {config.split if split else ''}"
        _check_folder(cls)
        try:
            self._dataset: Any = cls(config.path or ".", **split)
        except (RuntimeError, OSError, ValueError) as error:
            if is_unreadable(error):
                raise CannotReadError(
                    f"source.path: {config.path}: cannot be read: {error}."
                ) from error
            hint = "Download it first: torchvision.datasets does so with download=True."
            problem = Problem(
                "source.path", f"{config.path} ({error})", "the dataset's folder", hint
            )
            raise ConfigError(problem) from error
        self.labels, self.passed = _labels(self._dataset, config.name), Passed()
        self.has_labels = self.labels is not None or self._tells_classes()
        evidence = _evidence(self._dataset, config.path or ".")
        if evidence is not None:
            self.evidence = evidence

    def __len__(self) -> int:
        return len(self._dataset)

    def _tells_classes(self) -> bool:
        """Say whether targets that are not listed are class numbers, by the first; count others."""
        if not len(self) or _path(self._dataset, 0) is not None:
            return len(self) > 0
        try:
            target = self._dataset[0][1]
        except Exception:  # of this sample: its reading tells
            return True
        if isinstance(target, int | np.integer):
            return True
        reason = "targets that are no class numbers, which are not read"
        self.passed.add(reason, f"{type(target).__name__} of {self._name}", len(self))
        return False

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index`; sizes are not known to torchvision and count as 0."""
        return f"{self._name}-{self._split}-{index:08d}", 0

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read samples through the library; what it lists as files is handed on undecoded."""
        records = []
        for index in indices:
            path = _path(self._dataset, index)
            if path is not None:
                try:
                    with open(path, "rb") as file:
                        records.append(Record(self.entry(index)[0], file.read()))
                except FINAL as error:
                    records.append(failed(self.entry(index)[0], error))
                continue
            image, label = self._dataset[index][:2]
            label = label if isinstance(label, int | np.integer) else -1
            records.append(Record(self.entry(index)[0], np.asarray(image), label=int(label)))
        return labelled(self, indices, records)


def _dataset_class(library: ModuleType, name: str) -> type:
    """Return a class of torchvision.datasets.

    Raises: ConfigError for one that there is not, or that runs code out of its files.
    """
    known = {n for n, item in vars(library).items() if isinstance(item, type)} - UNSAFE
    try:
        return trusted.attribute(library, name, allowed=known)
    except AttributeError as error:
        got = f"{name or 'nothing'}{UNPICKLES if name in UNSAFE else ''}"
        problem = Problem(
            "source.name", got, "a class of torchvision.datasets", "Try --source.name CIFAR10."
        )
        raise ConfigError(problem) from error


def _check_folder(cls: type) -> None:
    """Refuse a class that cannot be made from a folder alone.

    Raises: ConfigError.
    """
    first, *others = inspect.signature(cls).parameters.values()
    known = ("split", "train")
    empty = inspect.Parameter.empty
    wanted = [item.name for item in others if item.default is empty and item.kind not in VARIOUS]
    wanted = [name for name in wanted if name not in known]
    if first.name == "root" and not wanted:
        return
    got = f"{cls.__name__}, which takes {', '.join(wanted) or first.name}"
    hint = "Write a class of your own and name it with --source.kind module:Class."
    raise ConfigError(Problem("source.name", got, "a dataset made from a folder alone", hint))


def _split_argument(cls: type, split: str) -> dict[str, Any]:
    """Datasets take `train=True` or `split="train"`; find out which."""
    names = inspect.signature(cls).parameters
    if "split" in names:
        return {"split": split}
    if "train" in names:
        if split not in ("train", "test"):
            raise ConfigError(Problem("source.split", split, "train | test"))
        return {"train": split == "train"}
    if split != "train":
        hint = "Leave it out, and give the part's own folder as path."
        raise ConfigError(Problem("source.split", split, f"nothing: {cls.__name__} has none", hint))
    return {}


def _path(dataset: Any, index: int) -> str | None:
    """Return the file of a sample of a dataset of (path, class) pairs, such as ImageFolder."""
    samples = getattr(dataset, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
        path = samples[index][0]
        return path if isinstance(path, str) and os.path.isabs(os.path.abspath(path)) else None
    return None


def _labels(dataset: Any, name: str) -> Labels | None:
    """Read all class numbers where the dataset lists them, and their names."""
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if targets is None or len(targets) != len(dataset):
        return None
    values = np.asarray(targets)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        return None
    labels = read_labels(values.tolist(), where=f"the targets of {name}", way_out="another source")
    labels.classes = tuple(str(text) for text in getattr(dataset, "classes", None) or ())
    return labels


def _evidence(dataset: Any, root: str) -> np.ndarray | None:
    if len(dataset) and _path(dataset, 0) is not None:
        paths = [os.path.relpath(path, root) for path, *_ in dataset.samples]
        return sample_files(root, [_file(root, path) for path in paths])
    data = getattr(dataset, "data", None)
    if data is None or len(data) != len(dataset):
        return None
    array = np.ascontiguousarray(np.asarray(data))
    if array.dtype == object:
        return None
    return np.array([xxhash.xxh3_64_intdigest(row.tobytes()) for row in array], np.uint64)


def _file(root: str, name: str) -> File:
    try:
        info = os.stat(os.path.join(root, name))
    except OSError as error:
        if is_unreadable(error):  # the source is told by this: never guess
            raise CannotReadError(
                f"{os.path.join(root, name)}: cannot be read: {error}."
            ) from error
        return File(name, 0)
    return File(name, info.st_size, (info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
