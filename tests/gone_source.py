"""Digits on a disk that goes away: while the file at `source.path` exists, 16 of them fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.images.source import Record, SourceConfig
from pipeline.images.sources.digits import DigitsSource

GONE = range(16, 32)


class GoneSource(DigitsSource):
    """See the module."""

    def __init__(self, config: SourceConfig) -> None:
        super().__init__(replace(config, split="train"))
        self._flag = Path(config.path)

    def read(self, indices: Sequence[int]) -> list[Record]:
        if self._flag.exists() and set(indices) & set(GONE):
            raise OSError("the disk went away")
        return super().read(indices)
