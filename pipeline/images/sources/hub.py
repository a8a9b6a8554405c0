"""Datasets of the Hugging Face `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamshard.errors import ConfigError, Problem
from pipeline.images.source import Record, SourceConfig


class HubSource:
    """A split of a repository on the Hub, or of a folder that `load_dataset` understands."""

    kind = "hf"

    def __init__(self, config: SourceConfig) -> None:
        try:
            import datasets
        except ImportError as error:
            hint = "pip install 'dreamshard[hf]'."
            problem = Problem(
                "source.kind", f"hf ({error})", "the datasets library installed", hint
            )
            raise ConfigError(problem) from error
        try:
            data: Any = datasets.load_dataset(config.path, config.name or None, split=config.split)
        except (ValueError, OSError, ConnectionError) as error:
            problem = Problem("source.path", f"{config.path} ({error})", "a dataset that loads")
            raise ConfigError(problem) from error
        columns = set(data.column_names)
        if config.image_column not in columns:
            allowed = ", ".join(sorted(columns))
            raise ConfigError(Problem("source.image_column", config.image_column, allowed))
        for name in (config.image_column, config.mask_column):
            if name in columns:
                data = data.cast_column(name, datasets.Image(decode=False))
        self._data, self._config = data, config
        self.rule = f"{config.path} {config.name} {config.split} {data._fingerprint}"
        self.has_labels = config.label_column in columns
        self.has_masks = config.mask_column in columns

    def __len__(self) -> int:
        return len(self._data)

    def entry(self, index: int) -> tuple[str, int]:
        """Name sample `index`; the library's fingerprint stands for the sizes."""
        return f"{self._config.split}-{index:08d}", 0

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Read encoded bytes from the library's tables."""
        records = []
        for index in indices:
            row = self._data[int(index)]
            label = row.get(self._config.label_column)
            records.append(
                Record(
                    self.entry(index)[0],
                    _content(row[self._config.image_column]),
                    label=int(label) if isinstance(label, int) else -1,
                    mask=_content(row.get(self._config.mask_column)),
                )
            )
        return records


def _content(cell: dict[str, Any] | None) -> bytes | None:
    """Return the bytes of an undecoded image cell, from the table or the file it points at."""
    if cell is None:
        return None
    if cell.get("bytes") is not None:
        return cell["bytes"]
    if not cell.get("path"):
        return None
    with open(cell["path"], "rb") as file:
        return file.read()
