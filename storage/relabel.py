"""Take over labels that changed at a dataset's source; features and units stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from storage.dataset import Dataset
from storage.ledger.labels import add_version, count_versions, read_version


def classes_of(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the labels' numbers, the latest; empty where they are not known."""
    latest = read_version(dataset.files, count_versions(dataset.files))
    if latest is not None:
        return latest.classes
    return dataset.about.classes


def relabel(dataset: Dataset, numbers: np.ndarray, classes: Sequence[str] = ()) -> int:
    """Give samples the labels that their source has now, as a version that later readers see.

    Args:
        dataset: whose features stay.
        numbers: int64 (N,), a label for each sample from the first on, -1 = none.
        classes: names by number.

    Returns:
        samples whose label changed; where neither labels nor names did, nothing is written.
    """
    snapshot, known = dataset.snapshot(), classes_of(dataset)
    given = np.full(len(snapshot), -1, np.int64)
    given[: len(numbers)] = numbers[: len(snapshot)]
    changed = int((snapshot.labels != given)[snapshot.present].sum())
    if changed or (classes and known and tuple(classes) != known):
        add_version(dataset.files, numbers, classes, fsync=dataset.fsync)
    return changed
