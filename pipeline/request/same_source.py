"""Is a dataset still what its source holds? Compare the bytes, not names, sizes or times.

Every commit keeps a digest of every byte that went into each of its samples. Some are compared at
each look-up, all by `dreamshard verify DATASET --source RECIPE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dreamshard.errors import DataError
from pipeline.images.inputs import Input
from storage.dataset import Dataset
from storage.relabel import relabel

SPOT_UNITS, SPOT_SAMPLES = 8, 32
"""Looked at in a spot check: units, and samples over all of them (count)."""
AT_ONCE = 64
NAMED = 3


@dataclass
class Comparison:
    """What a comparison of samples with their source found."""

    same: int = 0
    unknown: int = 0
    """Samples whose commits keep no digest: made by an older version, or by a generator."""
    different: dict[int, str] = field(default_factory=dict)
    """Key by sample number."""
    units: set[int] = field(default_factory=set)
    """Units that hold a sample that differs."""

    def __str__(self) -> str:
        said = f"{self.same:,} samples compared with the source's bytes: the same"
        if self.unknown:
            said += f" ({self.unknown:,} not compared: their commits keep no digests)"
        return said


def check_source(dataset: Dataset, source: Input) -> list[str]:
    """Check a dataset that was found against its source, and take over labels that changed.

    Returns:
        what was checked and done, in words.

    Raises:
        DataError: a sample was made of other bytes than the source holds.
    """
    said = []
    checked = spot_check(dataset, source)
    if checked.same or checked.unknown:
        said.append(str(checked))
    labels = source.labels()
    if labels is not None:
        changed = relabel(dataset, labels.numbers, labels.classes)
        if changed:
            said.append(f"{changed:,} samples have other labels now: taken over, features kept")
    return said


def spot_check(dataset: Dataset, source: Input) -> Comparison:
    """Compare a few samples of some units with what the source holds now.

    Args:
        dataset: that was found for the source.
        source: as it is now.

    Raises:
        DataError: one differs; the message names samples and the way out.
    """
    numbers = np.random.default_rng()
    committed = dataset.snapshot()
    units = np.flatnonzero(committed.counts)
    chosen = numbers.permutation(units)[:SPOT_UNITS].tolist()
    per_unit = max(1, SPOT_SAMPLES // max(1, len(chosen)))
    result = Comparison()
    for unit in sorted(chosen):
        count = int(committed.counts[unit])
        rows = np.sort(numbers.permutation(count)[:per_unit])
        compare_unit(dataset, source, unit, rows.tolist(), result)
    refuse(dataset, result)
    return result


def full_check(
    dataset: Dataset, source: Input, *, progress: Callable[[int], None] = lambda count: None
) -> Comparison:
    """Compare every sample of every unit with what the source holds now."""
    result, committed = Comparison(), dataset.snapshot()
    for unit in np.flatnonzero(committed.counts).tolist():
        count = int(committed.counts[unit])
        compare_unit(dataset, source, unit, range(count), result)
        progress(count)
    return result


def compare_unit(
    dataset: Dataset, source: Input, unit: int, rows: Sequence[int], result: Comparison
) -> None:
    """Compare some rows of a unit; add what comes out to the result."""
    commit = dataset.commit_of(unit)
    kept = None if commit is None else commit.source_digests
    if commit is None or kept is None:
        result.unknown += len(rows)
        return
    for start in range(0, len(rows), AT_ONCE):
        part = list(rows[start : start + AT_ONCE])
        now = source.source_digests([commit.first + row for row in part])
        if now is None:
            result.unknown += len(part)
            continue
        for row, is_same in zip(part, now == kept[part], strict=True):
            if is_same:
                result.same += 1
            else:
                result.different[commit.first + row] = commit.keys[row]
                result.units.add(unit)


def refuse(dataset: Dataset, result: Comparison) -> None:
    """Raise DataError if a sample differs, saying which and what to do."""
    if not result.different:
        return
    named = ", ".join(f"{key} (sample {n})" for n, key in list(result.different.items())[:NAMED])
    raise DataError(
        f"{dataset.url}: got {len(result.different)} of "
        f"{len(result.different) + result.same} samples compared whose source now holds other "
        f"bytes than their features were made of: {named}; allowed none. Run `dreamshard verify "
        f"{dataset.url} --source RECIPE --repair`, which makes their units again, or give another "
        "--root for the changed images."
    )
