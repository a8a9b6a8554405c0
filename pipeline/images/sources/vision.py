"""Datasets of torchvision, by class name."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamshard.errors import ConfigError, Problem
from pipeline.images.source import Record, SourceConfig


class VisionSource:
    """A torchvision dataset that is already on disk below `path`; nothing is downloaded."""

    kind = "torchvision"
    has_labels = True
    has_masks = False

    def __init__(self, config: SourceConfig) -> None:
        try:
            import torchvision
        except ImportError as error:
            hint = "pip install 'dreamshard[pipeline]'."
            problem = Problem(
                "source.kind", f"torchvision ({error})", "torchvision installed", hint
            )
            raise ConfigError(problem) from error
        cls = getattr(torchvision.datasets, config.name, None)
        if not isinstance(cls, type):
            hint = "Try --source.name CIFAR10."
            raise ConfigError(
                Problem(
                    "source.name", config.name or "nothing", "a class of torchvision.datasets", hint
                )
            )
        self.rule = f"{config.name} {config.split}"
        self._name, self._split = config.name.lower(), config.split
        try:
            self._dataset: Any = cls(config.path or ".", **_split_argument(cls, config.split))
        except (RuntimeError, OSError, ValueError) as error:
            hint = "Download it first: torchvision.datasets does so with download=True."
            problem = Problem(
                "source.path", f"{config.path} ({error})", "the dataset's folder", hint
            )
            raise ConfigError(problem) from error

    def __len__(self) -> int:
        return len(self._dataset)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index`; sizes are not known to torchvision and count as 0."""
        return f"{self._name}-{self._split}-{index:08d}", 0

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Decode samples through the library."""
        records = []
        for index in indices:
            image, label = self._dataset[index][:2]
            label = label if isinstance(label, int | np.integer) else -1
            records.append(Record(self.entry(index)[0], np.asarray(image), label=int(label)))
        return records


def _split_argument(cls: type, split: str) -> dict[str, Any]:
    """Datasets take `train=True` or `split="train"`; find out which."""
    names = inspect.signature(cls).parameters
    if "split" in names:
        return {"split": split}
    if "train" in names:
        if split not in ("train", "test"):
            raise ConfigError(Problem("source.split", split, "train | test"))
        return {"train": split == "train"}
    return {}
