"""A dataset's samples: found by key, label and validity, and listed a page at a time.

What a page shows comes from the commit records of its units and from rows of the arrays. Columns of
the manifest are read only where a filter asks for all samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamshard.redact import redact_line
from storage.dataset import Dataset
from storage.ledger.commits import Commit
from storage.schema import Level

STATES = ("all", "valid", "invalid", "missing")
_KEPT = 8  # answers of filters, and commit records


@dataclass(frozen=True)
class Wanted:
    """Say which samples are looked for.

    Args:
        key: part of a key, "" for any.
        label: class number, None for any.
        state: one of STATES.
    """

    key: str = ""
    label: int | None = None
    state: str = "all"


class Shelf:
    """Show one dataset as it was when it was opened.

    Attributes:
        dataset, snapshot: what is shown.
        name: folder of the dataset.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.snapshot = dataset, dataset.snapshot()
        self.name = dataset.url.rstrip("/").rpartition("/")[2]
        self.commit = functools.lru_cache(maxsize=_KEPT)(self._commit)
        self._matching = functools.lru_cache(maxsize=_KEPT)(self._find)
        self._dropped = {n: d.error for d in self.snapshot.drops for n in d.samples}

    def facts(self) -> dict[str, Any]:
        """Return what the page needs to know before it shows a sample."""
        shot = self.snapshot
        return {
            "name": self.name,
            "url": redact_line(self.dataset.url),
            "samples": shot.num_samples,
            "requested": shot.requested,
            "units": len(shot.units),
            "missing": len(shot.holes),
            "invalid": shot.num_invalid,
            "licence": self.dataset.about.licence,
            "image": "image" in shot.array_names,
            "image_size": list(self.dataset.image_size),
            "classes": list(shot.classes),
            "levels": [level_facts(level) for level in shot.levels],
        }

    def page(self, wanted: Wanted, *, first: int, count: int) -> dict[str, Any]:
        """List samples.

        Args:
            wanted: which.
            first: how many of them come before.
            count: at most so many.

        Returns:
            "total" of them, and "rows".
        """
        if wanted == Wanted():
            total = self.snapshot.num_samples
            chosen = list(range(min(first, total), min(first + count, total)))
        else:
            matching = self._matching(wanted)
            total, chosen = len(matching), matching[first : first + count].tolist()
        return {"total": total, "rows": self.rows(chosen)}

    def rows(self, samples: Sequence[int]) -> list[dict[str, Any]]:
        """Describe samples: index, key, label, made, valid, error."""
        return [self._row(index) for index in samples]

    def made(self, samples: Sequence[int]) -> list[int]:
        """Keep the samples that have rows to read."""
        size = self.snapshot.samples_per_unit
        kept = []
        for index in samples:
            commit = self.commit(index // size)
            if commit is not None and index - commit.first < commit.count:
                kept.append(index)
        return kept

    def same(self, keys: Sequence[str], *, near: Sequence[int]) -> list[int | None]:
        """Find samples by key, of another dataset of the same images, say.

        Args:
            keys: theirs.
            near: where each would be if both datasets had one order; that is looked at first.
        """
        size, total = self.snapshot.samples_per_unit, self.snapshot.num_samples
        matches: list[int | None] = []
        for key, index in zip(keys, near, strict=True):
            commit = self.commit(index // size) if 0 <= index < total else None
            row = index - commit.first if commit is not None else -1
            is_same = commit is not None and 0 <= row < commit.count and commit.keys[row] == key
            matches.append(index if is_same else None)
        left = [number for number, index in enumerate(matches) if index is None and keys[number]]
        import pyarrow.compute as pc

        for number in left:
            place = pc.index(self.snapshot.key_column, keys[number]).as_py()
            matches[number] = place if place >= 0 else None
        return matches

    def _commit(self, unit: int) -> Commit | None:
        return self.snapshot.commit(unit)

    def _row(self, index: int) -> dict[str, Any]:
        commit = self.commit(index // self.snapshot.samples_per_unit)
        row = index - commit.first if commit is not None else 0
        if commit is None or row >= commit.count:
            return {"index": index, "key": "", "label": -1, "made": False, "valid": False}
        label = -1 if commit.labels is None else commit.labels[row]
        if self.snapshot.relabelled:
            label = int(self.snapshot.labels[index])
        error = self._dropped.get(index) or commit.errors.get(row, "")
        valid = row not in commit.invalid and index not in self._dropped
        told = {"index": index, "key": commit.keys[row], "label": label}
        return told | {"made": True, "valid": valid, "error": error}

    def _find(self, wanted: Wanted) -> np.ndarray:
        """Return the numbers of the samples wanted, int64, ascending."""
        shot = self.snapshot
        if wanted.state == "valid":
            mask = shot.valid.copy()
        elif wanted.state == "invalid":
            mask = shot.present & ~shot.valid
        else:
            mask = ~shot.present if wanted.state == "missing" else np.ones(shot.num_samples, bool)
        if wanted.label is not None:
            mask &= (shot.labels == wanted.label) & shot.present
        if wanted.key:
            import pyarrow.compute as pc

            how = pc.MatchSubstringOptions(wanted.key, ignore_case=True)
            matched = pc.call_function("match_substring", [shot.key_column], how)
            mask &= matched.to_numpy()
        return np.flatnonzero(mask)


def level_facts(level: Level) -> dict[str, Any]:
    """Describe a level for the page; `map` tells whether it can be shown as colours."""
    return {
        "name": level.name,
        "tap": level.tap,
        "timestep": level.timestep,
        "stride": level.stride,
        "shape": list(level.shape),
        "kind": level.kind,
        "map": is_map(level),
        "vector": level.is_vector,
    }


def is_map(level: Level) -> bool:
    """Tell whether a level has cells of numbers, which colours can show."""
    return len(level.shape) == 3 and "float" in level.dtype
